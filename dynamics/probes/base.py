"""When a probe is due, and what it may read."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ..errors import DynamicsError, unknown

Reading = Mapping[str, Any]
"""What a measurement returns: an xarray literal that holds tensors.

{"layer": names, "norm": (("layer",), tensor, {"units": "1"})}: tensors are recorded along `step` and stay on their
device; lists are coordinates, the same at every step; a bare 0-d tensor or number is a scalar.
"""

Measure = TypeVar("Measure", bound=Callable[..., Any])

PARTS = ("params", "buffers", "opt", "batch", "loss", "grads", "updates", "hyperparameters")


def reads(*parts: str) -> Callable[[Measure], Measure]:
    """Say which parts of a Snapshot a measurement needs; one that needs only params and buffers also gets the last one.

    Without it a measurement is taken to need everything, and is not due at the last snapshot, which has no update.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown("part of a Snapshot", part, PARTS)

    def mark(measure: Measure) -> Measure:
        measure.reads = frozenset(parts)  # type: ignore[attr-defined]
        return measure

    return mark


@dataclass(frozen=True)
class Every:
    """Due at steps first, first + n, first + 2n, ..."""

    n: int
    first: int = 0

    def __call__(self, step: int) -> bool:
        return step >= self.first and (step - self.first) % self.n == 0


@dataclass(frozen=True)
class At:
    """Due at the steps listed."""

    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps


@dataclass(frozen=True)
class Probe:
    """A measurement and the steps at which it is due.

    measure(snap) -> Reading, or measure(snap, carry) -> (Reading, carry) where it must remember; carry begins as None.
    """

    measure: Callable[..., Any]
    due: Callable[[int], bool]

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise DynamicsError(f"a probe measures with a function of a Snapshot, got {self.measure!r}")
        if not callable(self.due):
            raise DynamicsError(f"a probe's due is a function of a step, got {self.due!r}: write every(10, measure)")

    @property
    def reads(self) -> frozenset[str]:
        return getattr(self.measure, "reads", frozenset(PARTS))

    @cached_property
    def remembers(self) -> bool:
        """Whether the measurement takes and returns a carry."""
        positional = [
            p
            for p in inspect.signature(self.measure).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        return len(positional) == 2

    def to_json(self) -> dict[str, Any]:
        """A description from which `probe_from_json` makes the probe again, if its function can be imported."""
        name = getattr(self.measure, "__qualname__", repr(self.measure))
        path = f"{getattr(self.measure, '__module__', '?')}:{name}"
        if isinstance(self.due, Every):
            return {"measure": path, "every": self.due.n, "first": self.due.first}
        if isinstance(self.due, At):
            return {"measure": path, "at": sorted(self.due.steps)}
        return {"measure": path, "due": repr(self.due)}


def probe_from_json(name: str, value: Mapping[str, Any]) -> Probe:
    """The inverse of `Probe.to_json`, for measurements of this package; others are passed by hand."""
    module, _, function = str(value["measure"]).partition(":")
    # only our own modules: opening a run folder must not import whatever the folder names
    known = module.startswith("dynamics.") and importlib.util.find_spec(module) is not None
    measure = getattr(importlib.import_module(module), function, None) if known else None
    if measure is None or "due" in value:
        raise DynamicsError(
            f"the probe {name!r} of this run is not one of the package's ({value['measure']}): resume in Python with "
            f"resume(folder, probes={{{name!r}: ...}})"
        )
    return Probe(measure, Every(value["every"], value["first"]) if "every" in value else At(frozenset(value["at"])))


def every(n: int, measure: Callable[..., Any], *, first: int = 0) -> Probe:
    """Measure at every n-th step, from step `first` on."""
    if not isinstance(n, int) or n < 1:
        raise DynamicsError(f"every() takes a whole number of steps of at least 1, got {n!r}")
    return Probe(measure, Every(n, first))


def at(steps: Iterable[int], measure: Callable[..., Any]) -> Probe:
    """Measure at the steps listed."""
    wanted = frozenset(int(s) for s in steps) if isinstance(steps, Iterable) else frozenset()
    if not wanted or min(wanted) < 0:
        raise DynamicsError(f"at() takes a list of steps of at least 0, got {sorted(wanted)}")
    return Probe(measure, At(wanted))


def log_spaced(last: int, n: int = 20, *, first: int = 1) -> list[int]:
    """Step 0 and at most n steps from `first` to `last` in equal ratios: at(log_spaced(1000), measure).

    Where steps are too few for equal ratios, they round to the same whole numbers, which are listed once. Raises
    DynamicsError unless 1 <= first < last and n is at least 2.
    """
    if not all(isinstance(value, int) for value in (last, n, first)) or not 1 <= first < last or n < 2:
        raise DynamicsError(
            f"log_spaced() takes whole numbers 1 <= first < last and n of at least 2, got first={first!r}, "
            f"last={last!r}, n={n!r}"
        )
    ratio = last / first
    return sorted({0, last, *(round(first * ratio ** (i / (n - 1))) for i in range(n - 1))})
