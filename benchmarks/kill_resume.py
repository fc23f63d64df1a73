"""Runs killed with SIGKILL at random moments and resumed, compared bit by bit with runs that nothing disturbed.

A trial is a process of its own, which trains a small net with every probe due at every step (one of them remembers)
and writes a chunk every few steps. It is killed at a moment drawn uniformly from the time that the undisturbed run
took, from the start of Python on; in half of the trials the process that resumes it is killed as well, and then
a last one finishes. Compared are all readings, and all tensors of all States kept (weights, buffers, velocities, what
probes remember). Trials alternate between float32 and bf16; threads are the same throughout.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _common import machine, parse, parser, print_header, print_json, print_table, random_split

import dynamics as dyn
from dynamics.training import flatten

PRECISIONS = ("float32", "bf16")
CHUNK_STEPS = 3


def moved(snap: dyn.Snapshot, carry: dict[str, torch.Tensor] | None) -> tuple[dict, dict[str, torch.Tensor]]:
    """A probe that remembers: the distance of the weights from a moving average of themselves."""
    now = torch.cat([p.flatten() for p in snap.params.values()])
    mean = now if carry is None else torch.lerp(carry["mean"], now, 0.1)
    return {"distance": ((), (now - mean).norm(), {"units": "1"})}, {"mean": mean.clone()}


def work(folder: Path, precision: str, steps: int) -> None:
    """Train, or go on where a killed process stopped; a kill before the folder exists means to begin again."""
    data = random_split(840)
    train, valid = data[:640], data[640:]
    probes = {"moved": dyn.every(1, moved)}
    if folder.exists():
        dyn.resume(folder, train, valid, probes=probes, progress=False)
        return
    sgd = dyn.SGD(dyn.PiecewiseLinear((0, 2, steps / 20), (0, 0.1, 0)), momentum=0.9, nesterov=True)
    net = dyn.Net("resnet9", width=4)
    recipe = dyn.Recipe(net, sgd, batch_size=32, epochs=steps / 20, precision=precision)
    probes |= dyn.standard(1)
    dyn.train(recipe, train, valid, probes=probes, out=folder, chunk_steps=CHUNK_STEPS, progress=False)


def run(folder: Path, precision: str, args: argparse.Namespace, kill_after: float | None = None) -> str | None:
    """Work in a process of its own; if it is killed, after so many seconds, returns what it left."""
    command = [sys.executable, __file__, "--work", str(folder), "--precision", precision]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    process = subprocess.Popen(command)
    try:
        code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a process of {folder.name} ended with code {code}")
    return found(folder, process.pid) if code else None


def differences(a: dyn.Run, b: dyn.Run) -> Iterator[str]:
    """Names of what is not the same in two runs, bit for bit."""
    if (a.status, a.checkpoints, set(a.readings)) != (b.status, b.checkpoints, set(b.readings)):
        yield "status, checkpoints or names of readings"
        return
    for name, x in a.readings.items():
        y = b.readings[name]
        if list(x.variables) != list(y.variables) or x.sizes != y.sizes:
            yield f"readings of {name}"
            continue
        for variable in x.variables:
            if not same(x[variable].values, y[variable].values):
                yield f"{name}/{variable}"
    for step in a.checkpoints:
        s, t = (
            flatten({"params": r.params, "buffers": r.buffers, "opt": r.opt or {}, "carries": r.carries})
            for r in (a.state_at(step), b.state_at(step))
        )
        if set(s) != set(t):
            yield f"names of tensors at step {step}"
            continue
        yield from (f"{k} at step {step}" for k in s if not same(s[k].numpy(), t[k].numpy()))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal type, shape and bits: nan is the same as nan, and 0.0 is not -0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


def found(folder: Path, pid: int) -> str:
    """When a process was killed, from what it left."""
    if not folder.exists():
        return "before the folder existed"
    if list(folder.glob(f".chunk-*.{pid}")):
        return "while a chunk was being written"
    last = max(folder.glob("chunk-*")).stem
    if last.endswith("-end"):
        return "after the last chunk"
    return "before the first chunk after the start" if last == "chunk-00000000" else "between chunks"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=300, help="updates of a run, in epochs of 20")
    arguments.add_argument("--seed", type=int, default=None, help="of the moments (default: drawn, and printed)")
    arguments.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--precision", help=argparse.SUPPRESS)
    args = parse(arguments, trials=2, steps=100)
    if args.steps % 20 or args.steps < 60:
        arguments.error("--steps takes a multiple of 20 (an epoch) of at least 60")
    if args.work:
        torch.set_num_threads(args.threads)
        work(args.work, args.precision, args.steps)
        return
    about = machine(args.threads)
    args.threads = about["threads"]
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    draws = random.Random(seed)
    print_header(
        f"Kill and resume: resnet9 width 4, {args.steps} steps, a chunk every {CHUNK_STEPS}; seed {seed}", about,
        args.quick,
    )  # fmt: skip

    rows, kills, identical, twice = [], Counter(), 0, 0
    with tempfile.TemporaryDirectory() as base:
        seconds, reference = {}, {}
        for precision in PRECISIONS:
            folder = Path(base) / f"reference-{precision}"
            begin = time.perf_counter()
            run(folder, precision, args)
            seconds[precision] = time.perf_counter() - begin
            reference[precision] = dyn.load_run(folder)
        # the comparison must be able to fail: other arithmetic must show
        if not any(differences(reference["float32"], reference["bf16"])):
            raise SystemExit("the comparison sees no difference between float32 and bf16")
        for trial in range(args.trials):
            precision, folder = PRECISIONS[trial % 2], Path(base) / f"trial-{trial}"
            places, again = [], draws.random() < 0.5
            while not places:  # a process that finished before its moment was no trial
                shutil.rmtree(folder, ignore_errors=True)
                places += filter(None, [run(folder, precision, args, draws.uniform(0, seconds[precision]))])
            if again:
                places += filter(None, [run(folder, precision, args, draws.uniform(0, seconds[precision]))])
            run(folder, precision, args)
            differ = list(differences(reference[precision], dyn.load_run(folder)))
            identical += not differ
            kills.update(places)
            twice += len(places) == 2
            told = "identical" if not differ else f"{len(differ)} differ, first {differ[0]}"
            rows.append((trial, precision, "; then ".join(places), told))
            if sys.stderr.isatty():
                print(f"trial {trial + 1} of {args.trials}", end="\r", file=sys.stderr, flush=True)

    print_table(("trial", "precision", "killed", "result"), rows)
    print_table(("killed", "times"), kills.most_common())
    print(f"{identical} of {args.trials} runs ended bit-identical to the undisturbed run of their precision")
    if args.json:
        print_json(
            {
                "trials": args.trials,
                "identical": identical,
                "kills": sum(kills.values()),
                "killed_twice": twice,
                "killed_before_folder": kills["before the folder existed"],
                "killed_before_first_chunk": kills["before the folder existed"]
                + kills["before the first chunk after the start"],
                "killed_while_writing": kills["while a chunk was being written"],
                "seed": seed,
                "quick": args.quick,
            },
            about,
        )
    if identical != args.trials:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
