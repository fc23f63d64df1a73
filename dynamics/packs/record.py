"""Recording a pack by a sweep, and training one of its rows again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import load_data
from ..errors import DynamicsError, unknown
from ..probes import Probe
from ..runs import Run, train
from ..runs.record import environment
from ..sweeps import sweep
from ..training import Recipe
from .pack import Pack, Row

THREADS = 1
"""Threads of each run, when recorded and when trained again: with another number a run agrees to rounding only."""


@dataclass(frozen=True)
class Recording:
    """What a pack is made of: recipes by name and seeds on the first `limit` training images of `data`.

    figures: a run that has ended, diverged perhaps, to the numbers that are kept of it, by name; the test split's loss
    and accuracy are in run["valid"]. chapter: the number of the one that draws it.
    """

    chapter: str
    recipes: Mapping[str, Recipe]
    seeds: tuple[int, ...]
    figures: Callable[[Run], Mapping[str, Any]]
    data: str = "shapes"
    limit: int | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)


def record(
    name: str, recording: Recording, *, runs: str | Path, workers: int | None = None, progress: bool = True
) -> Pack:
    """Sweep all recipes and seeds, keeping runs in the folder `runs`/name, and return the figures as a pack.

    One that was stopped goes on where it was. Raises DynamicsError as `sweep`, and where a run failed.
    """
    data = load_data(recording.data, limit=recording.limit)
    made = sweep(
        recording.recipes, recording.seeds, out=Path(runs) / name, train=data.train, valid=data.test,
        probes=recording.probes, workers=workers, threads=THREADS, progress=progress,
    )  # fmt: skip
    if failed := made.reasons:
        (recipe, seed), reason = next(iter(failed.items()))
        raise DynamicsError(
            f"{len(failed)} runs of the pack {name} failed, first {recipe}, seed {seed} "
            f"({reason.partition(chr(10))[0]}): mend that, remove {made.folder / recipe}, and record again"
        )
    rows = tuple(_row(recording, recipe, seed, made[recipe, seed]) for recipe, seed in made)
    machine = environment(next(iter(recording.recipes.values())), data.train.device)
    about = {
        "command": f"dynamics packs {name}",
        "date": date.today().isoformat(),
        "data": {"name": data.train.name, "n": len(data.train), "fingerprint": data.train.fingerprint(),
                 "test": len(data.test)},
        "environment": {k: v for k, v in machine.items() if k != "command"} | {"threads": THREADS},
    }  # fmt: skip
    return Pack(name, about, dict(recording.recipes), rows)


def again(pack: Pack, recording: Recording, recipe: str, seed: int, *, progress: bool = True) -> Row:
    """Train one row of a pack here and now, with the threads that it was recorded with.

    Raises DynamicsError where the recipe or the data are no longer those of the pack.
    """
    pack[recipe, seed]
    mend = f"record it again with dynamics packs {pack.name}"
    if recipe not in recording.recipes:
        raise unknown("recipe of this recording", recipe, recording.recipes)
    if replace(recording.recipes[recipe], seed=0) != replace(pack.recipes[recipe], seed=0):
        raise DynamicsError(f"the recipe {recipe!r} is not the one that the pack {pack.name} holds: {mend}")
    data = load_data(recording.data, limit=recording.limit)
    if data.train.fingerprint() != pack.about["data"]["fingerprint"]:
        raise DynamicsError(f"the images of {data.train.name} are not those of the pack {pack.name}: {mend}")
    before = torch.get_num_threads()
    torch.set_num_threads(pack.about["environment"]["threads"])
    try:
        run = train(
            recording.recipes[recipe], data.train, data.test, seed=seed, probes=recording.probes, progress=progress
        )
    finally:
        torch.set_num_threads(before)
    return _row(recording, recipe, seed, run)


def agreement(pack: Pack, row: Row) -> float:
    """How far a row that was trained again lies from the recorded one: 0 where they agree bit for bit.

    It is the largest difference of a figure, in standard deviations of that figure over seeds: of this recipe, or the
    median over recipes where that is larger, since few seeds often lie close together by chance. On the machine and the
    versions of the pack it is 0, on others about 1, since runs that differ by rounding end as different as runs of two
    seeds. inf where one diverged and the other did not. Raises DynamicsError for a recipe with fewer than two seeds.
    """
    then = pack[row.recipe, row.seed]
    if then.status != row.status:
        return np.inf
    spreads = _spreads(pack, row.status)
    if row.recipe not in spreads:
        raise DynamicsError(f"the pack {pack.name} has one seed of {row.recipe!r}: agreement needs the spread of two")
    worst = 0.0
    for key, value in then.figures.items():
        a, b = np.asarray(value, float), np.asarray(row.figures[key], float)
        if np.array_equal(a, b, equal_nan=True):
            continue
        usual = np.median([found[key] for found in spreads.values()], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.abs(a - b) / np.fmax(spreads[row.recipe][key], usual)
        worst = max(worst, float(np.nan_to_num(off, nan=np.inf).max()))
    return worst


def _spreads(pack: Pack, status: str) -> dict[str, dict[str, Any]]:
    """Standard deviation of every figure over the seeds of a recipe, of runs that ended so, by recipe."""
    found = {}
    for recipe in pack.recipes:
        rows = [r.figures for r in pack.rows if r.recipe == recipe and r.status == status]
        if len(rows) > 1:
            found[recipe] = {key: np.std([f[key] for f in rows], axis=0, ddof=1) for key in rows[0]}
    return found


def _row(recording: Recording, recipe: str, seed: int, run: Run) -> Row:
    figures = {k: _plain(v) for k, v in recording.figures(run).items()}
    return Row(recipe, seed, run.status, figures)


def _plain(value: Any) -> Any:
    array = np.asarray(value, dtype=float)
    return tuple(array.tolist()) if array.ndim else float(array)
