"""`dynamics sweep` and `dynamics compare`: many runs, and what two of them, or two sets of them, say of each other."""

from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DynamicsError

if TYPE_CHECKING:
    from ..stats import Comparison
    from ..sweeps import Sweep

FAILED, DIVERGED = 1, 3


def sweep(
    out: Annotated[Path, typer.Option(help="the sweep's folder; the same command goes on with one that stopped")],
    recipe: Annotated[list[str] | None, typer.Option(help="a recipe's name; may be given again")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="PATH=VALUE,VALUE: a field of the recipe, such as optimizer.lr=0.1,0.2")
    ] = None,
    seeds: Annotated[str, typer.Option(help="seeds: 0-4, or 0,1,7")] = "0-2",
    data: Annotated[str, typer.Option(help="shapes, cifar10, a folder or an .npz")] = "shapes",
    width: Annotated[int | None, typer.Option(help="channels of the first layer  [default: the recipe's]")] = None,
    epochs: Annotated[float | None, typer.Option(help="stretch the schedule to this many epochs")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images a batch  [default: the recipe's]")] = None,
    limit: Annotated[int | None, typer.Option(help="use only the first LIMIT training images")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bf16, fp16 (on a GPU) or float64")] = None,
    every: Annotated[int, typer.Option(help="record at every n-th step; 0: loss only")] = 0,
    workers: Annotated[int | None, typer.Option(help="local processes  [default: as many as cores]")] = None,
    threads: Annotated[
        int | None, typer.Option(help="torch's threads in each process  [default: cores / workers]")
    ] = None,
    dask: Annotated[str | None, typer.Option(help="address of a dask scheduler, instead of local processes")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="try failed runs again")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train recipes with several seeds each, every run in a folder of its own; ended runs are not repeated."""
    from .. import sweeps
    from ..data import load_data
    from ..probes import standard
    from ..recipes import named

    if every < 0:
        raise DynamicsError(f"--every is a number of steps of at least 1, or 0 to record the loss only, got {every}")
    names = recipe or ["baseline"]
    if len(set(names)) < len(names):
        raise DynamicsError("--recipe names one recipe twice: name it once")
    axes = dict(map(_axis, vary or []))
    if len(axes) < len(vary or []):
        raise DynamicsError("--vary names one field twice: list all its values in one")
    given = {"batch_size": batch_size, "precision": precision}
    chosen = {}
    for name in names:
        one = named(name)
        if width is not None:
            one = replace(one, net=one.net.replace(width=width))
        if epochs is not None:
            one = one.stretch(epochs)
        one = replace(one, **{k: v for k, v in given.items() if v is not None})
        points = sweeps.grid(one, axes) if axes else {name: one}
        chosen |= points if len(names) == 1 else {name if k == name else f"{name},{k}": r for k, r in points.items()}
    listed = _seeds(seeds)
    # by its name where it is whole, so that every process loads it by itself
    splits = (
        {"train": data} if limit is None else dict(zip(("train", "valid"), load_data(data, limit=limit), strict=True))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table below tells of failures
        done = sweeps.sweep(
            chosen,
            listed,
            out=out,
            **splits,
            probes=standard(every) if every else {},
            executor=sweeps.dask_executor(dask) if dask else None,
            workers=workers,
            threads=threads,
            retry=retry,
        )
    rows = _rows(done)
    if as_json:
        print(json.dumps({"folder": str(done.folder), "seeds": list(done.seeds), "recipes": rows}, allow_nan=False))
    else:
        _print(rows)
        print(f"\naccuracy: per cent of the test images right, and the 95 % interval of the mean; kept in {out}")
    failed = [(row["recipe"], seed, why) for row in rows for seed, why in row["failed"].items()]
    for name, seed, why in failed:
        print(f"failed: {name}, seed {seed}: {why}", file=sys.stderr)
    if failed:
        raise typer.Exit(FAILED)
    if all(len(row["diverged"]) == len(done.seeds) for row in rows):
        print("diverged: every run's loss was not finite at some step", file=sys.stderr)
        raise typer.Exit(DIVERGED)


def compare(
    a: Annotated[Path, typer.Argument(help="a run folder, or a recipe's folder in a sweep")],
    b: Annotated[Path, typer.Argument(help="another one")],
    measure: Annotated[str, typer.Option(help="accuracy, loss, average_accuracy or average_loss")] = "accuracy",
    margin: Annotated[
        float | None, typer.Option(help="the largest difference that does not matter: are they the same? (points, nat)")
    ] = None,
    across: Annotated[
        list[str] | None, typer.Option(help="what may differ, being what is compared: data, width or epochs")
    ] = None,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="do not pair the runs by their seeds")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Compare two runs, or two recipes over their seeds: which is better, by how much, and whether that can be told.

    Runs are paired by their seeds, which share initial weights, data order and augmentation. Runs on different data, or
    of different width or epochs, are refused, unless that is what is compared.
    """
    from ..stats import compare as judge
    from ..sweeps import load_arm, samples

    if a.resolve() == b.resolve():
        raise DynamicsError(f"{a} and {b} are one folder: name two")
    arms = load_arm(a), load_arm(b)
    found = samples(*arms, measure=measure, across=across or (), paired=not unpaired)
    points = measure.endswith("accuracy")
    values = [[100 * v for v in side] if points else side for side in (found.a, found.b)]
    units = "points" if points else "nat"
    verdict = judge(*values, paired=not unpaired, margin=margin, names=("A", "B"), units=units)
    better = "AB"[(verdict.difference > 0) != points] if verdict.difference else None
    n = len(found.seeds)
    runs = f"{len(found.a)} and {len(found.b)} runs" if unpaired else f"{n} pair{'s' if n > 1 else ''} of runs"
    words = verdict.sentence if margin is not None else _in_words(verdict, better, units, runs)
    if as_json:
        told = {
            "a": str(a), "b": str(b), "measure": measure, "units": units, "status": verdict.status,
            "difference": _finite(verdict.difference), "interval": [_finite(v) for v in verdict.interval],
            "p": _finite(verdict.p), "n": verdict.n, "more_runs": verdict.more_runs, "sentence": words,
            "better": better and better.lower(), "paired": not unpaired,
            "seeds": list(found.seeds), "images": found.images, "values": values,
            "left_out": [{str(seed): why for seed, why in arm.left_out.items()} for arm in arms],
        }  # fmt: skip
        print(json.dumps(told, allow_nan=False))
        return
    for letter, folder, arm, side in zip("AB", (a, b), arms, values, strict=True):
        told = ", ".join(f"{v:.2f}" if points else f"{v:.4f}" for v in side[:12]) + (", ..." if len(side) > 12 else "")
        print(f"{letter}: {folder}: {measure} {told} {units}")
        for seed, why in sorted(arm.left_out.items()):
            print(f"   left out: seed {seed} ({why})")
        if not unpaired and len(arm.runs) > len(found.seeds):
            alone = ", ".join(str(s) for s in sorted(arm.runs) if s not in found.seeds)
            print(f"   not paired: seed {alone}")
    print(words)


def _in_words(verdict: Comparison, better: str | None, units: str, runs: str) -> str:
    """Which is better, by how much, and whether that can be told; None is better where they are equal on average."""
    size = f"{abs(verdict.difference):.3g} {units}"
    measured = f"{better} is better by {size}" if better else "they are equal on average"
    if verdict.n == 1:
        return f"not told apart: {measured} in {runs}, and one run has no error bar: run more seeds of both"
    advice = verdict.sentence.partition("; ")[2]
    if not math.isfinite(verdict.interval[0]):
        return f"not told apart: {measured} in {runs}; {advice}"
    low, high = sorted(verdict.interval if verdict.difference > 0 else (-v for v in verdict.interval))
    p = f"p = {verdict.p:.2g}" if verdict.p >= 1e-4 else "p < 0.0001"
    measured += f" ({100 * verdict.level:g} %: {low:.3g} to {high:.3g}, {p}, {runs})"
    return f"not told apart: {measured}; {advice}" if verdict.status == "inconclusive" else f"told apart: {measured}"


def _axis(text: str) -> tuple[str, list[Any]]:
    path, equals, values = text.partition("=")
    if not (path and equals):
        raise DynamicsError(f"--vary {text!r} is not a field and its values: write optimizer.lr=0.1,0.2")
    return path, [_value(v) for v in values.split(",") if v]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise DynamicsError(f"--seeds {text!r} are not seeds: write 0-4, or 0,1,7") from None
    return found


def _rows(done: Sweep) -> list[dict[str, Any]]:
    from ..stats import mean_interval

    table, rows = done.table(), []
    for name in done.names:
        of = table.sel(recipe=name)
        statuses = [str(s) for s in of.status.values]
        accuracies = [100 * float(v) for v in of.accuracy.values if not math.isnan(v)]
        interval = mean_interval(accuracies) if accuracies else None
        rows.append(
            {
                "recipe": name,
                "n": len(accuracies),
                "accuracy": _finite(interval.mean) if interval else None,
                "low": _finite(interval.low) if interval else None,
                "high": _finite(interval.high) if interval else None,
                "diverged": [s for s, status in zip(done.seeds, statuses, strict=True) if status == "diverged"],
                "failed": {s: done.reason(name, s) for s, x in zip(done.seeds, statuses, strict=True) if x == "failed"},
            }
        )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    wide = max(6, *(len(row["recipe"]) for row in rows))
    print(f"{'recipe':{wide}} {'n':>3} {'accuracy':>9} {'interval':>16} {'diverged':>9} {'failed':>7}")
    for row in rows:
        mean = "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        between = "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        ends = f"{len(row['diverged']) or '':>9} {len(row['failed']) or '':>7}"
        print(f"{row['recipe']:{wide}} {row['n']:>3} {mean:>9} {between:>16} {ends}".rstrip())


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
