"""What recording costs, and thinning it to a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import DynamicsError
from ..probes import Every, Probe


@dataclass
class Cost:
    """One probe: how often it was due, how often it was taken, and the seconds that took."""

    due: int = 0
    taken: int = 0
    seconds: float = 0.0

    @property
    def each(self) -> float:
        return self.seconds / max(self.taken, 1)


@dataclass
class Ledger:
    """Seconds spent recording, by probe, beside the seconds of the training itself; it thins readings to a budget.

    budget: a share of training time, such as 0.05, or None to take every reading that is due. Probes are thinned one
    by one: a probe that needs less than an even part of the budget is not touched, and what it leaves goes to the
    others. at() is an order and is not thinned, but what it costs is paid from the same budget, by the probes that need
    more than their even part; a first reading is taken too, since nobody knows yet what it costs. Seconds are the
    host's: on an accelerator, work still under way is not in them.
    """

    budget: float | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    other: float = 0.0
    training: float = 0.0
    steps: int = 0
    _mark: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not (isinstance(self.budget, float) and 0 < self.budget < math.inf):
            raise DynamicsError(f"budget is a share of training time, such as 0.05, got {self.budget!r}")
        self.costs = {name: Cost() for name in self.probes}

    def stepping(self) -> None:
        """A training step begins or goes on: time runs on its account until `recording`."""
        self._mark = perf_counter()

    def recording(self) -> None:
        """Recording begins: the time since `stepping` was training."""
        if self._mark is not None:
            spent = perf_counter() - self._mark
            # a pause, such as validation or a reader who thinks, is not a step that recording may be charged to
            self.training += min(spent, 10 * self.training / self.steps) if self.steps >= 10 else spent
            self.steps += 1
            self._mark = None

    def due(self, name: str) -> bool:
        """Whether a reading that is due should be taken; counts it as due."""
        cost = self.costs[name]
        cost.due += 1
        if self.budget is None or not cost.taken or not isinstance(self.probes[name].due, Every):
            return True
        if cost.each * cost.due * len(self.costs) <= self.budget * self.training - self.other:
            return True  # it has its even part, even while an order is still being paid for
        # half a reading early or late, so that the mean comes out at the budget and not below it
        return cost.seconds + cost.each / 2 <= self._level()

    def charge(self, name: str, seconds: float) -> None:
        self.costs[name].taken += 1
        self.costs[name].seconds += seconds

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Recording that is no probe's: hooks, logs and chunks."""
        begun = perf_counter()
        yield
        self.other += perf_counter() - begun

    def _level(self) -> float:
        """The seconds that each probe may have spent by now: an even part of what is left by those that need less."""
        thinned = {k: c for k, c in self.costs.items() if isinstance(self.probes[k].due, Every) and c.taken}
        orders = sum(c.seconds for k, c in self.costs.items() if k not in thinned)
        left = self.budget * self.training - self.other - orders
        demands = sorted(c.each * c.due for c in thinned.values())
        for i, demand in enumerate(demands):
            level = left / (len(demands) - i)
            if demand > level:
                return level
            left -= demand
        return math.inf

    @property
    def share(self) -> float:
        """Time spent recording over the time of the training itself."""
        total = self.other + sum(c.seconds for c in self.costs.values())
        return total / self.training if self.training else math.nan

    def reading(self) -> dict[str, Any]:
        """Totals so far, by probe, as a Reading."""
        columns = {
            k: np.array([float(getattr(c, k)) for c in self.costs.values()]) for k in ("due", "taken", "seconds")
        }
        return {
            "probe": list(self.costs),
            **{k: (("probe",), v, {"units": "s" if k == "seconds" else "1"}) for k, v in columns.items()},
            "other_seconds": ((), self.other, {"units": "s"}),
            "training_seconds": ((), self.training, {"units": "s"}),
            "share": ((), self.share, {"units": "1"}),
        }

    def __str__(self) -> str:
        width = max([5, *map(len, self.costs)])
        lines = [f"{'probe':{width}} {'due':>7} {'taken':>7} {'thinned':>8} {'ms each':>9} {'share':>7}"]
        for name, cost in self.costs.items():
            share = cost.seconds / self.training if self.training else math.nan
            counts = f"{cost.due:7d} {cost.taken:7d} {cost.due - cost.taken:8d}"
            lines.append(f"{name:{width}} {counts} {1e3 * cost.each:9.3f} {share:7.2%}")
        told = "no budget" if self.budget is None else f"budget {self.budget:.1%}"
        rest = f"{self.other / self.training:.2%}" if self.training else "nan"
        lines.append(
            f"hooks, logs and chunks {rest}; in all {self.share:.2%} of {self.training:.1f} s of training; {told}"
        )
        return "\n".join(lines)
