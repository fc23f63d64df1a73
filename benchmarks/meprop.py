"""Accuracy of a fully connected net on the embedded data where backward keeps k gradients of each hidden layer's
outputs (meProp), against k; the last row is ordinary training.

Weights, order of images and augmentation are shared between the values of k, seed by seed.
"""

from __future__ import annotations

import argparse
import time
from collections import deque

from _common import machine, parse, parser, print_header, print_json, print_table

import dynamics as dyn

DEPTH, BATCH = 2, 128


def recipe(width: int, k: int, epochs: float, seed: int) -> dyn.Recipe:
    return dyn.Recipe(
        dyn.Net("mlp", depth=DEPTH, width=width, norm="batch", top_k=k),
        dyn.Adam(dyn.PiecewiseLinear((0, epochs), (2e-3, 0))),
        batch_size=BATCH,
        epochs=epochs,
        precision="float32",
        seed=seed,
    )


def sweep(args: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Accuracies on test and training images, and seconds of training, by k."""
    data = dyn.load_data("shapes")
    train, test = data.train[: args.images], data.test
    found = {}
    for k in [k for k in args.ks if k < args.width] + [args.width]:
        rows = []
        for seed in range(args.seeds):
            began = time.perf_counter()
            snap = deque(dyn.steps(recipe(args.width, k, args.epochs, seed), train), maxlen=1).pop()
            seconds = time.perf_counter() - began
            rows.append((dyn.evaluate(snap, test).accuracy, dyn.evaluate(snap, train).accuracy, seconds))
        found[k] = dict(zip(("test", "train", "seconds"), map(list, zip(*rows, strict=True)), strict=True))
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ks", type=int, nargs="+", default=[1, 2, 5, 10, 25, 50])
    arguments.add_argument("--width", type=int, default=256)
    arguments.add_argument("--epochs", type=float, default=10)
    arguments.add_argument("--images", type=int, default=10_000)
    arguments.add_argument("--seeds", type=int, default=3)
    args = parse(arguments, ks=[2, 25], epochs=1, images=2000, seeds=1)
    about = machine(args.threads)
    title = (
        f"meProp: {DEPTH} hidden layers of {args.width}, batch {BATCH}, {args.epochs:g} epochs of {args.images} images"
    )
    print_header(title, about, args.quick)
    found = sweep(args)
    print_table(
        ("k", "share", "test accuracy", "by seed", "training images", "seconds"),
        [
            (k, f"{k / args.width:.1%}", f"{mean(r['test']):.3f}", " ".join(f"{a:.3f}" for a in r["test"]),
             f"{mean(r['train']):.3f}", f"{mean(r['seconds']):.1f}")
            for k, r in found.items()
        ],
    )  # fmt: skip
    if args.json:
        result = {"accuracy": {str(k): mean(r["test"]) for k, r in found.items()}, "by_k": found, "quick": args.quick}
        print_json(result, about)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
