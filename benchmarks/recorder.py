"""What recording costs: the time inside probes and chunk writing, over the time of everything else in the run.

Inside are the probes of standard(n), the check that they wrote to nothing, stacking the readings, copying the state
and writing the chunk to disk (fsync included). A run is 250 steps, the shortest chunk that train() chooses by itself,
so each run pays for exactly one. Making the folder and opening the finished run do not grow with the run and are left
out; so is validation, which is not asked for here.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from _common import machine, parse, parser, print_header, print_json, print_table, random_split

import dynamics as dyn
from dynamics.runs import record

BATCH = 128
PARTS = ("measure", "loss", "close", "write")
PROBES = tuple(dyn.standard(1))


@dataclass
class Clock:
    """Seconds and calls by part of a run."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same function, its time added to `part`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._add(part, time.perf_counter() - begin)

        return timed

    def iterate(self, function: Callable[..., Iterator[Any]], part: str) -> Callable[..., Iterator[Any]]:
        """The same generator function, the time inside it added to `part`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            values, done = function(*args, **kwargs), object()
            while True:
                begin = time.perf_counter()
                value = next(values, done)
                self._add(part, time.perf_counter() - begin)
                if value is done:
                    return
                yield value

        return timed

    def _add(self, part: str, seconds: float) -> None:
        self.seconds[part] += seconds
        self.calls[part] += 1


def timed_run(recipe: dyn.Recipe, split: dyn.Split, n: int, folder: Path) -> Clock:
    """Train and record with the parts of `dynamics.runs.record` timed: loop, run, measure, loss, close, write."""
    clock, steps = Clock(), recipe.steps_in(split)
    with ExitStack() as patches:
        for owner, name, timed, part in (
            (record, "steps", clock.iterate, "loop"),
            (record, "_chunks", clock.iterate, "run"),
            (record, "measure", clock.wrap, "measure"),
            (record, "_add_step", clock.wrap, "loss"),
            (record, "_close", clock.wrap, "close"),
            (record, "write_chunk", clock.wrap, "write"),
        ):
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), part)))
        probes = {k: replace(p, measure=clock.wrap(p.measure, k)) for k, p in dyn.standard(n).items()}
        dyn.train(recipe, split, probes=probes, out=folder, chunk_steps=steps, progress=False)
    return clock


def cost(clock: Clock) -> float:
    """Time inside probes and chunk writing over the time of the rest of the run."""
    inside = sum(clock.seconds[k] for k in PARTS)
    return inside / step_time(clock)


def step_time(clock: Clock) -> float:
    """The seconds of a run less those inside its parts; chunks are written outside `_chunks`, all else is within."""
    return clock.seconds["run"] - sum(clock.seconds[k] for k in PARTS if k != "write")


def recipe_of(width: int, split: dyn.Split, steps: int) -> dyn.Recipe:
    sgd = dyn.SGD(0.01, momentum=0.9, nesterov=True)
    recipe = dyn.Recipe(dyn.Net("resnet9", width=width), sgd, batch_size=BATCH, epochs=steps / (len(split) // BATCH))
    assert recipe.steps_in(split) == steps
    return recipe


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=5, help="runs at width 16; the others have one each")
    arguments.add_argument("--steps", type=int, default=record.MIN_CHUNK_STEPS, help="updates of a run: one chunk")
    arguments.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64])
    arguments.add_argument("--images", type=int, default=10_000)
    args = parse(arguments, repeats=2, steps=40, widths=[8, 16])
    about = machine(args.threads)
    title = f"What recording costs: resnet9, batch {BATCH}, runs of {args.steps} steps written as one chunk"
    print_header(title, about, args.quick)
    split = random_split(args.images)

    with tempfile.TemporaryDirectory() as base:
        folders = (Path(base) / str(i) for i in range(1000))

        def run(width: int, n: int) -> Clock:
            return timed_run(recipe_of(width, split, args.steps), split, n, next(folders))

        timed_run(recipe_of(8, split, 3), split, 1, next(folders))  # the first steps of a process are slow
        runs = {(16, 1): [], (16, 10): []} | {(width, 1): [] for width in args.widths if width != 16}
        for repeat in range(args.repeats):
            for (width, n), clocks in runs.items():
                if width == 16 or repeat == 0:
                    clocks.append(run(width, n))

    costs = {key: [cost(c) for c in clocks] for key, clocks in runs.items()}
    middle = {key: median(values) for key, values in costs.items()}
    print_table(
        ("width", "measured at", "step (ms)", "cost (%)", "lowest", "highest", "runs"),
        [
            (
                width,
                "every step" if n == 1 else f"every {n}th",
                f"{1e3 * median(map(step_time, runs[width, n])) / args.steps:.1f}",
                *(f"{100 * f(costs[width, n]):.2f}" for f in (median, min, max)),
                len(costs[width, n]),
            )
            for width, n in sorted(runs)
        ],
    )
    print("width 16, medians over runs:")
    print_table(("part", "ms a call", "% at every step", "% at every 10th"), parts(runs[16, 1], runs[16, 10]))
    told = f"{100 * middle[16, 1]:.2f} % of the step time at every step, {100 * middle[16, 10]:.2f} % at every 10th"
    print(f"width 16: {told}")
    if args.json:
        print_json(
            {
                "every_1": middle[16, 1],
                "every_10": middle[16, 10],
                "by_width": {str(width): middle[width, n] for width, n in sorted(runs) if n == 1},
                "runs": args.repeats,
                "steps": args.steps,
                "quick": args.quick,
            },
            about,
        )


def parts(every_1: list[Clock], every_10: list[Clock]) -> list[tuple[str, ...]]:
    """What each part costs: milliseconds a call, and its share of the step time at every step and every 10th."""
    rows = []
    for k in (*PROBES, *PARTS):  # "measure" is the probes, copying what they return, and the check that they only read
        shares = (median(c.seconds[k] / step_time(c) for c in clocks) for clocks in (every_1, every_10))
        call = median(c.seconds[k] / c.calls[k] for c in every_1)
        rows.append((k, f"{1e3 * call:.3f}", *(f"{100 * s:.3f}" for s in shares)))
    # not counted: keeping losses, asking what is due, and freeing the step's tensors, which a bare loop does as well
    rest = [median((step_time(c) - c.seconds["loop"]) / step_time(c) for c in clocks) for clocks in (every_1, every_10)]
    return [*rows, ("(rest of train)", "", *(f"{100 * r:.3f}" for r in rest))]


if __name__ == "__main__":
    main()
