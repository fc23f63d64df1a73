"""Several seeds of a small net at once on one device: stacked weights against processes.

Stacked: one process with all threads (or the GPU), whose weights, velocities and running statistics of S seeds are
stacked along a first dimension; torch.func's vmap of grad of functional_call takes one step of all of them, each on
its own batch. Nothing but forward, backward and Nesterov's step is in it: no augmentation, no schedule, no recording.

Processes: what a sweep does. As many processes as cores, of one thread each, each going through dynamics.steps, which
draws, augments and normalises its batches too, so that the comparison favours the stack; on a GPU one process.

Both train resnet9 in float32 and in the precision that "auto" chooses; each side's faster one is compared. The sides
are measured in turn, trial by trial. First a check in float64: every seed of a stack ends where it ends alone,
weights and running statistics.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from _common import as_json, machine, parse, parser, print_header, print_json, print_table, random_split, span
from torch import nn

import dynamics as dyn
from dynamics.stats import mean_interval, ratio_interval
from dynamics.training import resolve_precision

LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
Tensors = dict[str, torch.Tensor]


class Stack:
    """S seeds of one net and their next steps; loss: of the last step, [S]."""

    def __init__(self, width: int, seeds: range, batch_size: int, device: torch.device, precision: str) -> None:
        nets = [dyn.Net("resnet9", width=width).build(classes=10, seed=s).train() for s in seeds]
        dtype = torch.float64 if precision == "float64" else torch.float32
        self.net = nets[0].to(device, dtype)
        self.device, self.low = device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.params = self._stacked([dict(n.named_parameters()) for n in nets], dtype)
        self.buffers = self._stacked([dict(n.named_buffers()) for n in nets], dtype)
        self.velocity = {k: torch.zeros_like(v) for k, v in self.params.items()}
        draws = [torch.Generator().manual_seed(s) for s in seeds]
        # two batches for each seed, in turn: where they come from does not matter for what a step costs
        self.batches = [
            (
                torch.stack([torch.randn(batch_size, 3, 32, 32, generator=g) for g in draws]).to(device, dtype),
                torch.stack([torch.randint(10, (batch_size,), generator=g) for g in draws]).to(device),
            )
            for _ in range(2)
        ]
        self.step_of_all = torch.func.vmap(torch.func.grad_and_value(self._loss, has_aux=True), randomness="different")
        self.steps = 0

    def _stacked(self, parts: list[Tensors], dtype: torch.dtype) -> Tensors:
        return {k: torch.stack([p[k].detach().to(self.device, dtype) for p in parts]) for k in parts[0]}

    def _loss(self, params: Tensors, buffers: Tensors, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Tensors]:
        # the running statistics are arguments, so that batch norm's updates in place are of this seed's own
        with torch.autocast(self.device.type, self.low, enabled=self.low is not None):
            logits = torch.func.functional_call(self.net, (params, buffers), (x,))
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), y), buffers

    def train(self, steps: int) -> None:
        for _ in range(steps):
            x, y = self.batches[self.steps % 2]
            grads, (self.loss, self.buffers) = self.step_of_all(self.params, self.buffers, x, y)
            names = list(self.params)
            params, g = [self.params[k] for k in names], [grads[k] for k in names]
            velocity = [self.velocity[k] for k in names]
            torch._foreach_add_(g, params, alpha=WEIGHT_DECAY)
            torch._foreach_mul_(velocity, MOMENTUM)
            torch._foreach_add_(velocity, g)
            torch._foreach_add_(g, velocity, alpha=MOMENTUM)
            torch._foreach_add_(params, g, alpha=-LR)
            self.steps += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def alone(width: int, seed: int, batches: list[Any], steps: int) -> nn.Module:
    """What a stack does to one seed, the ordinary way, in float64."""
    net = dyn.Net("resnet9", width=width).build(classes=10, seed=seed).double().train()
    sgd = torch.optim.SGD(net.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    for i in range(steps):
        x, y = batches[i % 2]
        sgd.zero_grad()
        F.cross_entropy(net(x), y).backward()
        sgd.step()
    return net


def largest_difference(width: int) -> float:
    """Of stacked seeds after three steps from the same seeds alone, relative to each tensor's largest value."""
    stack, worst = Stack(width, range(3), 16, torch.device("cpu"), "float64"), 0.0
    stack.train(3)
    for i in range(3):
        net = alone(width, i, [(x[i], y[i]) for x, y in stack.batches], 3)
        for mine, theirs in ((stack.params, net.named_parameters()), (stack.buffers, net.named_buffers())):
            for name, tensor in theirs:
                scale = float(tensor.detach().abs().max()) or 1.0
                worst = max(worst, float((mine[name][i] - tensor.detach()).abs().max()) / scale)
    return worst


def serve(pipe: Connection, width: int, seed: int, batch_size: int, precision: str, threads: int | None) -> None:
    """A process of a sweep: takes as many steps as it is told, again and again."""
    if threads is not None:
        torch.set_num_threads(threads)
    train = stepper(width, seed, batch_size, torch.device("cpu"), precision)
    pipe.send("ready")
    while steps := pipe.recv():
        train(steps)
        pipe.send("done")


def stepper(width: int, seed: int, batch_size: int, device: torch.device, precision: str) -> Callable[[int], None]:
    """Take so many steps of dynamics.steps."""
    sgd = dyn.SGD(LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    net = dyn.Net("resnet9", width=width)
    recipe = dyn.Recipe(net, sgd, batch_size=batch_size, epochs=10_000, seed=seed, precision=precision)
    snaps = iter(dyn.steps(recipe, random_split(8 * batch_size).to(device)))

    def train(steps: int) -> None:
        for _ in range(steps):
            next(snaps)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return train


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Processes:
    """Processes of one thread each, as many as cores; on a GPU this process alone."""

    def __init__(self, n: int, width: int, batch_size: int, device: torch.device, precision: str) -> None:
        self.pipes: list[Connection] = []
        if device.type != "cpu":
            self.n, self.here = 1, stepper(width, 0, batch_size, device, precision)
            return
        self.n, context, self.started = n, multiprocessing.get_context("spawn"), []
        for seed in range(n):
            ours, theirs = context.Pipe()
            given = (theirs, width, seed, batch_size, precision, 1)
            self.started.append(context.Process(target=serve, args=given, daemon=True))
            self.started[-1].start()
            self.pipes.append(ours)
        for pipe in self.pipes:
            pipe.recv()

    def train(self, steps: int) -> None:
        if not self.pipes:
            return self.here(steps)
        for pipe in self.pipes:
            pipe.send(steps)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(0)
        for process in self.started if self.pipes else ():
            process.join()


def measure(args: argparse.Namespace, width: int, device: torch.device, cores: int) -> dict[str, Any]:
    """Images per second of every stack and of processes, trial by trial, and the ratio of the two sides' best."""
    precisions = ("float32", *({resolve_precision("auto", device)} - {"float32"}))
    sides: dict[str, tuple[Any, int]] = {}
    for precision in precisions:
        made = Processes(cores, width, args.batch, device, precision)
        sides[f"{made.n} process{'es' if made.n > 1 else ''}, {precision}"] = made, made.n
        for s in args.stacks:
            try:
                stack = Stack(width, range(s), args.batch, device, precision)
                stack.train(1)
            except RuntimeError as error:  # a low precision that vmap cannot do here
                print(f"{s} stacked in {precision}: {str(error).splitlines()[0]}")
                continue
            sides[f"{s} stacked, {precision}"] = stack, s
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _, (side, _) in sides.items():
        side.train(2)
    for trial in range(args.trials):
        for name in list(sides)[:: 1 if trial % 2 else -1]:
            side, n = sides[name]
            steps = max(1, args.steps // n)
            rates[name].append(n * steps * args.batch / seconds(lambda side=side, steps=steps: side.train(steps)))
    for side, _ in sides.values():
        if isinstance(side, Processes):
            side.close()
    means = {name: mean_interval(found).mean for name, found in rates.items()}
    best = {kind: max((n for n in means if kind in n), key=means.__getitem__) for kind in ("stacked", "process")}
    ratio = ratio_interval(rates[best["stacked"]], rates[best["process"]])
    print_table((f"width {width}, batch {args.batch}", "images/s"), [(k, f"{v:,.0f}") for k, v in means.items()])
    print(
        f"{best['stacked']} over {best['process']}: {ratio.mean:.3f} (95 %: {span(ratio)}, n = {ratio.n})\n", flush=True
    )
    interval = as_json(ratio) if ratio.n > 1 else {"mean": ratio.mean, "low": None, "high": None, "n": ratio.n}
    return {"ratio": interval, "stacked": best["stacked"], "processes": best["process"], "images_per_second": means}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--widths", type=int, nargs="+", default=[2, 8], help="channels of the first layer")
    arguments.add_argument("--stacks", type=int, nargs="+", default=[2, 4, 8], help="seeds in a stack")
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=24, help="steps of a trial, over all seeds of a side")
    arguments.add_argument("--trials", type=int, default=10)
    args = parse(arguments, widths=[2], stacks=[2], batch=16, steps=4, trials=2)
    about, device = machine(args.threads), torch.device(args.device)
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    print_header("Seeds at once: stacked weights against processes", about, args.quick)
    worst = largest_difference(2)
    print(f"stacked and alone after 3 steps in float64: largest relative difference {worst:.1e}\n")
    result: dict[str, Any] = {"quick": args.quick, "stacked_differs_by": worst, "widths": {}}
    for width in args.widths:
        result["widths"][str(width)] = measure(args, width, device, about["threads"])
    if args.json:
        print_json(result, about)
    if worst > 1e-9:
        raise SystemExit("a stack does not train its seeds as they train alone")


if __name__ == "__main__":
    main()
