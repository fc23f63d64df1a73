"""What may be compared: runs, or all seeds of a recipe, on the same data and at the same scale."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DynamicsError, unknown
from ..runs import Run, load_run
from .store import load_sweep

SCALE = ("data", "width", "epochs")
"""What two arms must share, unless it is what is compared."""

MEASURES = ("accuracy", "loss", "average_accuracy", "average_loss")


@dataclass(frozen=True)
class Arm:
    """Runs of one recipe by seed; label: how to call it. left_out: seeds whose runs diverged, or have not ended."""

    label: str
    runs: Mapping[int, Run]
    left_out: Mapping[int, str]


class Samples(NamedTuple):
    """Final measurements of two arms: pairs in the order of `seeds` where paired, otherwise each arm's own."""

    a: list[float]
    b: list[float]
    seeds: tuple[int, ...]
    measure: str
    images: int


def load_arm(folder: str | Path) -> Arm:
    """A run folder, a recipe's folder in a sweep (its runs by seed), or a sweep of one recipe.

    Raises DynamicsError for anything else, and where no run has finished.
    """
    folder = Path(folder)
    label = str(folder)
    if (folder / "run.json").exists():
        found = {folder: load_run(folder)}
    else:
        if (folder / "sweep.json").exists():
            names = load_sweep(folder).names
            if len(names) > 1:
                raise DynamicsError(f"{folder} is a sweep of several recipes: name one, such as {folder / names[0]}")
            folder = folder / names[0]
        found = {p.parent: load_run(p.parent) for p in sorted(folder.glob("seed-*/run.json"))}
    if not found:
        raise DynamicsError(
            f"{folder} is neither a run nor a recipe of a sweep: name a folder with run.json, or with seed-*/run.json"
        )
    runs, left_out = {}, {}
    for path, run in found.items():
        if run.recipe is None:
            raise DynamicsError(f"{path} was recorded by watch, and has no recipe: compare runs that train made")
        if run.status == "finished":
            runs[run.recipe.seed] = run
        else:
            left_out[run.recipe.seed] = run.status if run.status == "diverged" else "unfinished"
    if not runs:
        raise DynamicsError(
            f"{label} has no finished run ({', '.join(sorted(set(left_out.values())))}): train it first"
        )
    return Arm(label, runs, left_out)


def samples(a: Arm, b: Arm, *, measure: str = "accuracy", across: Collection[str] = (), paired: bool = True) -> Samples:
    """The final measurements of two arms, on whose validation images both were measured.

    paired: by seed, over the seeds that both have. across: which of `SCALE` may differ, being what is compared. Raises
    DynamicsError, with the difference named, for arms that differ in data, width or epochs otherwise, for arms without
    a seed in common, and for runs without validation.
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    for name in across:
        if name not in SCALE:
            raise unknown("scale", name, SCALE)
    here, there = (_scale(arm) for arm in (a, b))
    if here["valid"] != there["valid"]:
        raise DynamicsError(
            f"{a.label} and {b.label} were measured on different validation images ({_told(here['valid'])}; "
            f"{_told(there['valid'])}): their accuracies cannot be compared, so train both with one split"
        )
    if here["valid"] is None:
        raise DynamicsError(f"{a.label} has no validation: pass a split, train(recipe, train, valid)")
    for name in SCALE:
        if here[name] != there[name] and name not in across:
            raise DynamicsError(
                f"{a.label} and {b.label} differ in {name} ({_told(here[name])}; {_told(there[name])}): compare runs "
                f"that share it, or pass across={name} if that is what you compare"
            )
    first, second = _finals(a, measure), _finals(b, measure)
    if not paired:
        return Samples([*first.values()], [*second.values()], (), measure, here["valid"]["n"])
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        told = [", ".join(map(str, sorted(x))) for x in (first, second)]
        raise DynamicsError(
            f"{a.label} (seed {told[0]}) and {b.label} (seed {told[1]}) share no seed, so they cannot be paired: train "
            "both with the same seeds, or compare them unpaired"
        )
    return Samples([first[s] for s in seeds], [second[s] for s in seeds], seeds, measure, here["valid"]["n"])


def _scale(arm: Arm) -> dict[str, Any]:
    """Data, width and epochs of an arm, whose runs must agree on them."""
    found: dict[str, Any] = {}
    for run in arm.runs.values():
        one = {
            "data": run.manifest["data"]["train"],
            "valid": run.manifest["data"]["valid"],
            "width": dict(run.recipe.net.arguments).get("width"),
            "epochs": run.recipe.epochs,
        }
        for name, value in one.items():
            if found.setdefault(name, value) != value:
                raise DynamicsError(
                    f"the runs of {arm.label} differ among themselves in {name}: compare runs of one recipe"
                )
    return found


def _finals(arm: Arm, measure: str) -> dict[int, float]:
    found = {}
    for seed, run in arm.runs.items():
        if measure not in run["valid"]:
            raise DynamicsError(
                f"{arm.label} has no {measure}: choose one of {', '.join(k for k in MEASURES if k in run['valid'])}"
            )
        found[seed] = float(run["valid"][measure].values[-1])
    return found


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['n']} images of {value['name']}, {value['fingerprint'][:8]}"
    return "the net's own" if value is None else f"{value:g}" if isinstance(value, float | int) else str(value)
