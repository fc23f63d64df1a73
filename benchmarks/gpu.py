"""What this package does on a GPU: the last recipe's accuracy and seconds, and whether its promises hold there too.

    python benchmarks/gpu.py --data cifar10 --json        # minutes on a recent GPU
    python benchmarks/gpu.py --device cpu --quick         # a trial of the script without one

final      the last recipe of post 8 (10 epochs, 94.1 % published with flips averaged) at full width over --seeds seeds:
           seconds of training, the first seed apart since it warms up, and accuracy; in bf16, fp16 and, with --compile,
           compiled
resume     a run that is stopped halfway and resumed ends bit-identical to one that was not, float32, bf16 and fp16
recorder   the standard probes at every step and at every tenth: time of a run that keeps them over that of a bare one
overflow   fp16 from a loss scale that is far too large: steps are skipped, the scale comes down, training goes on
           and reaches what bf16 reaches

Exits with 1 where resume or overflow fails. The ratio to the published record script is left to the reader.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import as_json, machine, parse, parser, print_header, print_json, print_table, span

import dynamics as dyn
from dynamics.recipes import FINAL, scaled
from dynamics.stats import mean_interval


def seconds_of(recipe: dyn.Recipe, data: Any, **recorded: Any) -> tuple[Any, float]:
    """A run, and the seconds that it took; recorded: probes and out, by default none."""
    synchronize(data.train.device)
    begin = time.perf_counter()
    run = dyn.train(recipe, data.train, progress=False, **recorded)
    synchronize(data.train.device)
    return run, time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def final(args: argparse.Namespace, recipe: dyn.Recipe, data: Any) -> dict[str, Any]:
    settings = {"bf16": replace(recipe, precision="bf16")}
    if data.train.device.type == "cuda":
        settings["fp16"] = replace(recipe, precision="fp16")
    if args.compile:
        settings |= {f"{name}, compiled": replace(r, compile=True) for name, r in settings.items()}
    rows, found = [], {}
    for name, chosen in settings.items():
        times, flips, plain = [], [], []
        for seed in range(args.seeds):
            run, took = seconds_of(replace(chosen, seed=seed), data)
            state = dyn.averaged(run)
            times.append(took)
            flips.append(100 * dyn.evaluate(run, data.test, state=state, tta="flip").accuracy)
            plain.append(100 * dyn.evaluate(run, data.test, state=state).accuracy)
        warm = mean_interval(times[1:])
        with_flips, without = mean_interval(flips), mean_interval(plain)
        found[name] = {
            "first_seconds": times[0], "seconds": times[1:], "flips": as_json(with_flips), "plain": as_json(without)
        }  # fmt: skip
        rows.append(
            (name, f"{times[0]:.2f}", f"{warm.mean:.2f}", f"{with_flips.mean:.2f} ({span(with_flips, 2)})",
             f"{without.mean:.2f} ({span(without, 2)})")
        )  # fmt: skip
    print(f"the last recipe, {args.seeds} seeds: training seconds, and accuracy in per cent of {len(data.test)} images")
    print_table(("", "first s", "then s", "with flips", "without"), rows)
    return {"final": found}


def resume(args: argparse.Namespace, recipe: dyn.Recipe, data: Any) -> dict[str, Any]:
    """Two chunks in one go, and the same stopped after the first."""
    part = data.train[: 8 * recipe.batch_size]
    short = scaled(recipe, epochs=2)
    found = {}
    names = ("float32", "bf16", "fp16") if data.train.device.type == "cuda" else ("float32", "bf16")
    for precision in names:
        chosen = replace(short, precision=precision)
        whole = dyn.train(chosen, part, probes=dyn.standard(1), progress=False, chunk_steps=8)
        half = whole.state_at(8)
        again = dyn.train(chosen, part, probes={}, progress=False, start=half)
        same = all(torch.equal(t, again.state.params[k].to(t.device)) for k, t in whole.state.params.items()) and all(
            torch.equal(t, again.state.buffers[k].to(t.device)) for k, t in whole.state.buffers.items()
        )
        found[precision] = bool(same)
    print(
        "a run that goes on from its middle ends bit-identical:", ", ".join(f"{k} {v}" for k, v in found.items()), "\n"
    )
    return {"resume_identical": found}


def recorder(args: argparse.Namespace, recipe: dyn.Recipe, data: Any) -> dict[str, Any]:
    """Time of runs with probes over those of bare runs, in turn."""
    short = scaled(recipe, epochs=args.recorder_epochs)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(short, data)
        for n in (1, 10):
            ratios = []
            for pair in range(args.pairs):
                _, bare = seconds_of(short, data)
                _, full = seconds_of(short, data, probes=dyn.standard(n), out=Path(folder) / f"{n}-{pair}")
                ratios.append(full / bare)
            ratio = mean_interval(ratios)
            found[f"every_{n}"] = as_json(ratio)
            print(f"standard probes at every {n}: run time over that of a bare run {span(ratio)}")
    print()
    return {"recorder": found}


def overflow(args: argparse.Namespace, recipe: dyn.Recipe, data: Any) -> dict[str, Any]:
    if data.train.device.type != "cuda":
        print("fp16 needs a GPU: left out\n")
        return {"overflow": None}
    chosen = replace(recipe, precision="fp16")
    first = next(iter(dyn.steps(chosen, data.train))).state.clone()
    scale = {**first.loss_scale, "scale": torch.full_like(first.loss_scale["scale"], 2.0**40)}
    run = dyn.train(chosen, data.train, probes={}, progress=False, start=replace(first, loss_scale=scale))
    accuracy = dyn.evaluate(run, data.test, state=dyn.averaged(run), tta="flip").accuracy
    left = float(run.state.loss_scale["scale"])
    good = run.status == "finished" and left < 2.0**40
    print(f"fp16 from a loss scale of 2^40: {run.status}, scale {left:g} at the end, accuracy {accuracy:.2%}\n")
    return {"overflow": {"good": good, "scale": left, "accuracy": accuracy}}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", default="cifar10", help="shapes, cifar10, a folder or an .npz")
    made.add_argument("--limit", type=int, default=None, help="training images (default: all)")
    made.add_argument("--device", default="cuda")
    made.add_argument("--width", type=int, default=64)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--pairs", type=int, default=3, help="pairs of runs for the recorder's cost")
    made.add_argument("--recorder-epochs", type=float, default=4)
    made.add_argument("--compile", action="store_true", help="the last recipe compiled as well")
    args = parse(made, data="shapes", limit=1024, width=4, seeds=2, pairs=2, recorder_epochs=1)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here, so nothing is measured; to try the script: --device cpu --quick")
        return
    if args.seeds < 2 or args.pairs < 2:
        raise SystemExit("--seeds and --pairs must be at least 2: one measurement has no interval")
    about = machine(args.threads) | {"device": args.device}
    if args.device.startswith("cuda"):
        about["device"] = f"{torch.cuda.get_device_name(args.device)}, CUDA {torch.version.cuda}"
    data = dyn.load_data(args.data, limit=args.limit, device=args.device)
    print_header(
        f"On {about['device']}: {len(data.train)} images of {data.train.name}, width {args.width}", about, args.quick
    )
    recipe = scaled(FINAL, width=args.width, epochs=1 if args.quick else None, batch_size=128 if args.quick else None)
    result: dict[str, Any] = {}
    for part in (final, resume, recorder, overflow):
        result |= part(args, recipe, data)
    if args.json:
        print_json(result | {"width": args.width, "images": len(data.train), "quick": args.quick}, about)
    broken = not all(result["resume_identical"].values()) or (result["overflow"] or {"good": True})["good"] is False
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
