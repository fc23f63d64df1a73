"""Sweeps: processes of one thread each against one training after another with all threads, and sweeps that are killed.

Throughput: the same trainings (resnet9 of width 8, batch 128, a recipe by several seeds) once by sweep() in as many
processes as cores, with one thread each, and once one after another in this process with all threads, both from random
images into run folders. The two alternate, and which is first does as well; `throughput_ratio` is of the whole time,
with the start of the processes, which is also given alone (a sweep of one step).

Kills: a sweep of 60 runs in a process of its own, which is killed with SIGKILL five times, each time a random moment
after a random number of its runs has ended, and then goes on to its end. All files of its store, readings and weights
among them, are compared with those of an undisturbed sweep, byte by byte (but for the command line, in which the folder
is).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from _common import as_json, machine, parse, parser, print_header, print_json, print_table, random_split, span

import dynamics as dyn
from dynamics.stats import ratio_interval
from dynamics.sweeps import grid, sweep

ENDED = "*/seed-*/chunk-*-end.safetensors"


def throughput(args: argparse.Namespace, cores: int, base: Path) -> dict[str, object]:
    """Seconds of a sweep in processes, and of the same runs one after another, trial by trial."""
    data = random_split(args.images + 1000)
    train, valid = data[: args.images], data[args.images :]
    sgd = dyn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    recipe = dyn.Recipe(dyn.Net("resnet9", width=8), sgd, batch_size=128, epochs=args.epochs)
    seeds = range(args.runs)

    def in_processes(of: dyn.Recipe = recipe, seeds: range = seeds) -> float:
        begun = time.perf_counter()
        sweep(of, seeds, out=base / "sweep", train=train, valid=valid, workers=cores, threads=1, progress=False)
        taken = time.perf_counter() - begun
        shutil.rmtree(base / "sweep")
        return taken

    def one_by_one() -> float:
        torch.set_num_threads(cores)
        begun = time.perf_counter()
        for seed in seeds:
            dyn.train(recipe, train, valid, seed=seed, out=base / "runs" / str(seed), progress=False)
        taken = time.perf_counter() - begun
        shutil.rmtree(base / "runs")
        return taken

    start = in_processes(replace(recipe, epochs=128 / args.images), range(cores))
    found: dict[str, list[float]] = {"processes": [], "one by one": []}
    for trial in range(args.trials):
        measures = [("processes", in_processes), ("one by one", one_by_one)]
        for name, measure in measures if trial % 2 else measures[::-1]:
            found[name].append(measure())
    images = args.runs * recipe.steps_in(train) * recipe.batch_size
    ratio = ratio_interval(found["one by one"], found["processes"])
    rows = [(name, f"{sum(t) / len(t):.1f}", f"{images * len(t) / sum(t):,.0f}") for name, t in found.items()]
    print_table((f"{args.runs} runs of {images // args.runs:,} images", "seconds", "images/s"), rows)
    print(f"throughput of {cores} processes with one thread each over one by one with {cores} threads:")
    print(f"{ratio.mean:.3f} (95 %: {span(ratio)}, n = {ratio.n}); a sweep of one step takes {start:.1f} s\n")
    finite = as_json(ratio) if ratio.n > 1 else {"mean": ratio.mean, "low": None, "high": None, "n": ratio.n}
    return {"throughput_ratio": ratio.mean, "throughput_interval": finite, "start_seconds": start,
            "processes": cores, "runs": args.runs, "images_per_run": images // args.runs}  # fmt: skip


def killed_sweep(out: Path, count: int) -> None:
    """What the process that is killed does: `count` runs, of 300 steps and a chunk after 250."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (800, 8, 8, 3), generator=draws, dtype=torch.uint8)
    labels = torch.randint(4, (800,), generator=draws)
    data = dyn.Split.from_arrays(images, labels, classes=tuple("abcd"), name="random")
    sgd = dyn.SGD(0.05, momentum=0.9, weight_decay=5e-3)
    net = dyn.Net("staged", width=2, stages=(dyn.Stage(4),))
    recipe = dyn.Recipe(net, sgd, batch_size=8, epochs=12, augment=dyn.Augment(pad=1), precision="float32")
    recipes = grid(recipe, {"optimizer.lr": [0.02, 0.05], "optimizer.momentum": [0.5, 0.9]})
    sweep(recipes, range(count // 4), out=out, train=data[:200], valid=data[200:],
          probes={"norms": dyn.every(10, dyn.weight_norms)}, threads=1, progress=False)  # fmt: skip


def run(out: Path, count: int, kill_after: tuple[int, float] | None = None) -> tuple[bool, int, int]:
    """Sweep in a process of its own, killed so many seconds after so many runs have ended.

    Returns whether it was killed, and how many runs had then ended and were under way.
    """
    command = [sys.executable, __file__, "--work", str(out), "--count", str(count)]
    # of a process that is killed Python tells what it left behind
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL if kill_after else None)
    while kill_after and process.poll() is None:
        if len(list(out.glob(ENDED))) >= kill_after[0]:
            time.sleep(kill_after[1])
            process.kill()
            break
        time.sleep(0.01)
    code = process.wait()
    if code not in (0, -signal.SIGKILL) or (code and kill_after is None):
        raise SystemExit(f"the sweep in {out} ended with code {code}")
    ended = len(list(out.glob(ENDED)))
    return code != 0, ended, len(list(out.glob("*/seed-*/run.json"))) - ended


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store by its path; of run.json all but the command line."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in found:
        if name.endswith("run.json"):
            about = json.loads(found[name])
            del about["environment"]["command"]
            found[name] = json.dumps(about).encode()
    return found


def kills(args: argparse.Namespace, base: Path) -> dict[str, object]:
    """Kill a sweep so many times at random moments, let it end, and compare its store with an undisturbed one."""
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    draws = random.Random(seed)
    moments = sorted(draws.sample(range(args.count - 4), args.kills))
    run(base / "undisturbed", args.count)
    rows = []
    for after in moments:
        killed, ended, begun = run(base / "killed", args.count, (after, draws.uniform(0, 0.5)))
        if killed:
            rows.append((len(rows) + 1, f"{ended} of {args.count}", begun))
    run(base / "killed", args.count)
    a, b = files(base / "undisturbed"), files(base / "killed")
    differ = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    print_table(("kill", "runs ended", "under way"), rows)
    told = "the same, byte for byte" if not differ else f"{len(differ)} differ, first {differ[0]}"
    print(f"{args.count} runs, {len(a)} files, killed {len(rows)} times (seed {seed}): {told}")
    return {"kills": len(rows), "runs_killed_sweep": args.count, "files": len(a), "files_that_differ": len(differ),
            "identical": not differ, "seed": seed}  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=5, help="pairs of sweeps for the throughput")
    arguments.add_argument("--runs", type=int, default=8, help="trainings in each of them")
    arguments.add_argument("--images", type=int, default=12_800, help="training images, which an epoch sees once")
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--kills", type=int, default=5)
    arguments.add_argument("--count", type=int, default=60, help="runs of the sweep that is killed, a multiple of 4")
    arguments.add_argument("--seed", type=int, default=None, help="of the moments (default: drawn, and printed)")
    arguments.add_argument("--only", choices=("throughput", "kills"), help="one half of it")
    arguments.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parse(arguments, trials=1, runs=2, images=1280, epochs=1, kills=2, count=8)
    if args.work:
        killed_sweep(args.work, args.count)
        return
    about = machine(args.threads)
    cores = about["threads"]
    print_header("Sweeps: processes against threads, and kills", about, args.quick)
    result: dict[str, object] = {"quick": args.quick}
    with tempfile.TemporaryDirectory() as base:
        if args.only != "kills":
            result |= throughput(args, cores, Path(base))
        if args.only != "throughput":
            result |= kills(args, Path(base))
    if args.json:
        print_json(result, about)
    if result.get("identical") is False:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
