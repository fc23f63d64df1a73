"""Which source judges which claim, and the runner that asks it and writes the verdict down."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from ..claims import Verdict
from ..claims.combine import combine
from ..claims.entry import Entry
from ..claims.ledger import LEDGER, claim
from ..claims.records import Record, read_verdicts, record, stale, write_verdict
from ..claims.sources import ROOT
from ..errors import DynamicsError, unknown
from ..training import Recipe
from . import found
from .measurement import Measurement, measure

SOURCES = ("tests", "chapters", "measurements")


@dataclass(frozen=True)
class Task:
    """How a claim is judged: by which source, what of the code that rests on, and what has been found already.

    `measurements` are still to be made; `verdicts`, of a chapter, lie in its outputs; a task by tests has neither.
    """

    entry: Entry
    source: str
    rests_on: tuple[str, ...]
    data: str
    measurements: tuple[Measurement, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return tuple(dict.fromkeys(recipe for m in self.measurements for recipe in m.recipes))

    def stands(self, known: Record | None) -> bool:
        """Whether a recorded verdict came from this source, and nothing it rests on has changed."""
        if known is None or stale(known, self.entry):
            return False
        recipes = all(r.to_json() in [dict(k) for k in known.recipes] for r in self.recipes)
        return recipes and set(known.functions) == {*self.rests_on, *self.entry.formulas}


def tasks(root: Path | None = None) -> dict[str, Task]:
    """How each claim that can be judged here is judged, by id, in the ledger's order; one source a claim.

    Exact claims (class E) by the tests that their entries name; others by measurements, if there are any, which
    have more seeds than a chapter has time for; else by the chapter that prints a verdict on them, the last of several;
    else, but for laws of the dynamics, by tests, where the entry has no reason why those do not decide it.
    """
    root = root or ROOT
    by_chapter: dict[str, Task] = {}
    for notebook in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        for id, verdicts in found.judged_by_chapter(notebook).items():
            if id in LEDGER:
                name = f"notebooks/{notebook.name}"
                by_chapter[id] = Task(LEDGER[id], "chapters", (name,), "shapes", verdicts=tuple(verdicts))
    by_measurement: dict[str, Task] = {}
    for one in _all_measurements():
        entry, module = claim(one.claim.id), one.sample.__module__
        task = by_measurement.get(entry.id) or Task(entry, "measurements", (), one.data)
        rests_on = tuple(dict.fromkeys((*task.rests_on, module)))
        data = task.data if one.data in task.data else f"{task.data}, {one.data}"
        by_measurement[entry.id] = replace(task, rests_on=rests_on, data=data, measurements=(*task.measurements, one))
    chosen = {}
    for id, entry in LEDGER.items():
        tests = found.tests_of(entry)
        by_tests = Task(entry, "tests", tests, "toy nets") if tests else None
        decide = by_tests is not None and not entry.untested and entry.kind != "D"
        choices = (by_tests if entry.kind == "E" else None, by_measurement.get(id), by_chapter.get(id))
        task = next((t for t in choices if t is not None), by_tests if decide else None)
        if task is not None:
            chosen[id] = task
    return chosen


def judge(
    ids: Iterable[str] = (),
    *,
    source: str | None = None,
    again: bool = False,
    path: Path | None = None,
    root: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Judge claims, all of them where no ids are given, and write each verdict when it is found.

    What is judged already and has not gone stale is left out, unless `again`: so a run that was stopped goes on where
    it was. source: only those that tests, chapters or measurements judge. path: of the verdicts, the package's by
    default. A failing measurement is told to `say` and the others are made. Returns what failed, in words.
    Raises DynamicsError for unknown ids or sources, and for a claim asked for that nothing here judges.
    """
    if source is not None and source not in SOURCES:
        raise unknown("source of verdicts", source, SOURCES)
    if not ((root or ROOT) / "tests").is_dir():
        raise DynamicsError("verdicts are recorded in a checkout of the project, with its tests and chapters: clone it")
    wanted = {claim(id).id for id in ids}
    planned = tasks(root)
    for id in sorted(wanted - set(planned)):
        raise DynamicsError(f"nothing here judges {id}: see why with dynamics claims --id {id}")
    mine = [t for id, t in planned.items() if (not wanted or id in wanted) and source in (None, t.source)]
    known = read_verdicts(path)
    due = [t for t in mine if again or not t.stands(known.get(t.entry.id))]
    say(f"{len(mine)} claims are judged here, {len(mine) - len(due)} of them already: {len(due)} to do")
    due.sort(key=lambda task: SOURCES.index(task.source))
    tests = [name for task in due if task.source == "tests" for name in task.rests_on]
    outcomes = found.run_tests(tests, root=root, say=say) if tests else {}
    failed = []
    for number, task in enumerate(due, start=1):
        say(f"[{number}/{len(due)}] {task.entry.id}, by {task.source} ...")
        began = time.perf_counter()
        try:
            one = _record(task, outcomes, say)
        except DynamicsError as error:
            failed.append(f"{task.entry.id}: {error}")
            say(f"  not judged: {error}")
            continue
        write_verdict(one, path)
        say(f"  {one.status}, n = {one.n}, {time.perf_counter() - began:.0f} s")
    return failed


def _record(task: Task, outcomes: found.Outcomes, say: Callable[[str], None]) -> Record:
    if task.source == "tests":
        verdicts = [found.judged_by_tests(task.entry, outcomes)]
    else:
        verdicts = list(task.verdicts)
        for one in task.measurements:
            say(f"  {one.claim.text}, {one.seeds} seeds")
            verdicts.append(measure(one))
    verdict, numbers = combine(task.entry, verdicts)
    return record(
        task.entry,
        verdict,
        scale="fast",  # that of the committed chapters and of every measurement here
        data=task.data,
        versions=_versions(),
        date=date.today().isoformat(),
        recipes=task.recipes,
        functions=task.rests_on,
        numbers=numbers,
    )


def _versions() -> Mapping[str, str]:
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def _all_measurements() -> tuple[Measurement, ...]:
    from . import averages, quadratics, scales, sparse, spectra, valley

    modules = (spectra, scales, valley, averages, quadratics, sparse)
    return tuple(one for module in modules for one in module.MEASUREMENTS)
