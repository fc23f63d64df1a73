"""Cyclic coordinate descent by doubling and halving, in raw coordinates and along the flat directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import DynamicsError
from .grid import EXPONENTS, _known

Point = Mapping[str, float]
Coordinates = Mapping[str, Mapping[str, float]]

RAW: Coordinates = MappingProxyType({name: {name: 1.0} for name in ("lr", "momentum", "weight_decay", "batch_size")})
"""One hyperparameter at a time: what a step multiplies, with its power (of 1 - momentum for momentum)."""

ALIGNED: Coordinates = MappingProxyType(
    {"lr": {"lr": 1.0}} | {n: {n: 1.0, "lr": -EXPONENTS[n]} for n in ("momentum", "weight_decay", "batch_size")}
)
"""Post 5's: a step in momentum, weight decay or batch size moves lr too, and lr wd / ((1 - momentum) N) stays."""


@dataclass(frozen=True)
class Descent:
    """Where a descent ended, its value there, and every run that it took, in order. converged: it stopped by itself."""

    point: Point
    value: float
    path: tuple[tuple[Point, float], ...]
    converged: bool

    @property
    def runs(self) -> int:
        return len(self.path)

    def runs_to_reach(self, value: float) -> float:
        """The number of runs up to the first that is at most `value`; inf if none was."""
        return next((i for i, (_, v) in enumerate(self.path, start=1) if v <= value), math.inf)


def coordinate_descent(
    objective: Callable[[Point], float | None],
    start: Point,
    coordinates: Coordinates,
    *,
    factor: float = 2.0,
    tolerance: float = 0.0,
    max_runs: int = 1000,
) -> Descent:
    """Minimise by multiplying or dividing one coordinate after the other by `factor`, until a cycle gains nothing.

    objective: a point {"lr": ..., "momentum": ...} to what is to be small, or None where the point cannot be tried,
    which costs no run; nan counts as inf. coordinates: `RAW`, `ALIGNED`, or a part of one, in the order of the cycle.
    In each the descent goes on as long as a step gains more than `tolerance`, first up, then down. A point is tried
    once only. Raises DynamicsError for a start that lacks a hyperparameter or cannot be tried, and for a factor that is
    not above 1. Source: Page, post 5 (22 runs from lr 0.001, momentum 0.5, weight decay 0.01).
    """
    if not factor > 1:
        raise DynamicsError(f"factor must be above 1, got {factor!r}: 2 doubles and halves")
    for name in {name for powers in coordinates.values() for name in powers}:
        if _known(name) not in start:
            raise DynamicsError(f"the start has no {name}, which these coordinates move: add it")
    seen: dict[tuple[float, ...], float | None] = {}
    path: list[tuple[Point, float]] = []

    def look(point: Point) -> float | None:
        key = tuple(float(f"{v:.9g}") for v in point.values())
        if key not in seen:
            found = objective(point)
            seen[key] = found if found is None else math.inf if math.isnan(found) else float(found)
            if found is not None:
                path.append((dict(point), seen[key]))
        return seen[key]

    here, value = dict(start), look(start)
    if value is None:
        raise DynamicsError(f"the start {dict(start)} cannot be tried: begin inside the range")
    gained = True
    while gained:
        gained = False
        for powers in coordinates.values():
            for step in (factor, 1 / factor):
                went = False
                while len(path) < max_runs and (there := moved(here, powers, step)) is not None:
                    found = look(there)
                    if found is None or not found < value - tolerance:
                        break
                    here, value, went = there, found, True
                if went:  # the other way leads back
                    gained = True
                    break
    return Descent(here, value, tuple(path), len(path) < max_runs)


def moved(point: Point, powers: Mapping[str, float], factor: float) -> dict[str, float] | None:
    """The point with each hyperparameter in `powers` times factor^power, 1 - momentum for momentum; None where momentum
    would be negative or the batch size below 1."""
    there = dict(point)
    for name, power in powers.items():
        if name == "momentum":
            damping = (1 - point[name]) * factor**power
            if damping > 1 + 1e-9:
                return None
            there[name] = max(1 - damping, 0.0)
        elif name == "batch_size":
            there[name] = round(point[name] * factor**power)
            if there[name] < 1:
                return None
        else:
            there[name] = point[name] * factor**power
    return there
