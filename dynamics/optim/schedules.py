"""Learning-rate schedules in epochs: values that map an epoch to an lr, and that can be stretched to another length.

The training loop reads a schedule at epoch (t + 1) / n in step t (from 0) of n an epoch. torch's schedulers count
their own steps: what they give after t of them is `schedule(t)` when they step once an epoch, `schedule(t / n)` when
they step n times. A schedule with an end has `knots`, the epochs at which its parts meet; one that goes on for ever may
have `turns(until)`, the epochs up to `until` at which it turns or jumps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import DynamicsError, unknown
from .checks import above_zero, in_range

Schedule = Callable[[float], float]
ANNEALS = ("cos", "linear")
ROUNDING = 1e-12
"""Epochs are quotients of steps: one that misses a jump by this fraction of itself is at the jump."""


def lr_at(lr: float | Schedule, epoch: float) -> float:
    return lr(epoch) if callable(lr) else lr


@dataclass(frozen=True)
class PiecewiseLinear:
    """lr(epoch) by linear interpolation between knots (epochs), constant beyond the last (Page's posts)."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots", tuple(float(k) for k in self.knots))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if len(self.knots) != len(self.values) or not self.knots:
            raise DynamicsError(
                f"PiecewiseLinear needs one value a knot, got {len(self.knots)} knots and {len(self.values)} values"
            )
        if not all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise DynamicsError(f"PiecewiseLinear's knots must increase, got {self.knots}")
        for value in self.values:
            in_range("lr", value, 0.0, math.inf)

    def __call__(self, epoch: float) -> float:
        knots, values = self.knots, self.values
        if epoch <= knots[0]:
            return values[0]
        for a, b, left, right in zip(knots, knots[1:], values, values[1:], strict=False):
            if epoch < b:
                return left + (right - left) * ((epoch - a) / (b - a))
        return values[-1]

    def stretch(self, factor: float) -> PiecewiseLinear:
        """The same shape over `factor` times as many epochs."""
        return PiecewiseLinear(tuple(k * factor for k in self.knots), self.values)


@dataclass(frozen=True)
class Constant:
    """The same lr at every epoch."""

    value: float

    def __post_init__(self) -> None:
        in_range("lr", self.value, 0.0, math.inf)

    def __call__(self, epoch: float) -> float:
        return self.value

    def stretch(self, factor: float) -> Constant:
        return self


@dataclass(frozen=True)
class Step:
    """lr times gamma after every `every` epochs: lr gamma^floor(epoch / every), torch's StepLR."""

    lr: float
    gamma: float
    every: float

    def __post_init__(self) -> None:
        in_range("lr", self.lr, 0.0, math.inf)
        above_zero("gamma", self.gamma)
        above_zero("every", self.every)

    def __call__(self, epoch: float) -> float:
        return self.lr * self.gamma ** _completed(epoch, self.every)

    def stretch(self, factor: float) -> Step:
        return replace(self, every=self.every * factor)

    def turns(self, until: float) -> tuple[float, ...]:
        return tuple(n * self.every for n in range(1, _completed(until, self.every) + 1))


@dataclass(frozen=True)
class Exponential:
    """lr gamma^epoch, torch's ExponentialLR; with gamma above 1 it grows, as in a search for the largest stable lr."""

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        in_range("lr", self.lr, 0.0, math.inf)
        above_zero("gamma", self.gamma)

    def __call__(self, epoch: float) -> float:
        return self.lr * self.gamma**epoch

    def stretch(self, factor: float) -> Exponential:
        return replace(self, gamma=self.gamma ** (1 / factor))


@dataclass(frozen=True)
class Cyclic:
    """A triangular wave: from low up to high in `half_period` epochs, down again in as many, and so on.

    low + (high - low) max(0, 1 - x), x = |epoch/s - 2 cycle + 1|, cycle = floor(1 + epoch/(2 s)), s = half_period:
    torch's CyclicLR in its mode "triangular". Source: Smith 2017, arXiv 1506.01186, section 3.2.
    """

    low: float
    high: float
    half_period: float

    def __post_init__(self) -> None:
        _check_span(self.low, self.high)
        above_zero("half_period", self.half_period)

    def __call__(self, epoch: float) -> float:
        cycle = math.floor(1 + epoch / (2 * self.half_period))
        x = abs(epoch / self.half_period - 2 * cycle + 1)
        return self.low + (self.high - self.low) * max(0.0, 1 - x)

    def stretch(self, factor: float) -> Cyclic:
        return replace(self, half_period=self.half_period * factor)

    def turns(self, until: float) -> tuple[float, ...]:
        return tuple(n * self.half_period for n in range(_completed(until, self.half_period) + 1))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from high down to low in `period` epochs: low + (high - low) (1 + cos(π t / period)) / 2.

    restarts: 0 for none, when the wave goes on after the period and rises again, as torch's CosineAnnealingLR does; or
    else the factor, at least 1, by which each period is longer than the one before. The lr jumps back to high between
    them, t is counted from there, and the schedule is torch's CosineAnnealingWarmRestarts.
    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5.
    """

    high: float
    low: float
    period: float
    restarts: float = 0.0

    def __post_init__(self) -> None:
        _check_span(self.low, self.high)
        above_zero("period", self.period)
        if not isinstance(self.restarts, int | float) or not (self.restarts == 0 or 1 <= self.restarts < math.inf):
            raise DynamicsError(
                f"restarts must be 0 (none) or the factor, at least 1, between periods, got {self.restarts!r}"
            )

    def __call__(self, epoch: float) -> float:
        start, period = self._cycles(epoch)[-1]
        return self.low + (self.high - self.low) * (1 + math.cos(math.pi * (epoch - start) / period)) / 2

    def stretch(self, factor: float) -> Cosine:
        return replace(self, period=self.period * factor)

    @property
    def knots(self) -> tuple[float, ...]:
        return () if self.restarts else (0.0, self.period)

    def turns(self, until: float) -> tuple[float, ...]:
        return tuple(start for start, _ in self._cycles(until)[1:])

    def _cycles(self, epoch: float) -> list[tuple[float, float]]:
        """The starts and lengths of all cycles that have begun at an epoch."""
        cycles = [(0.0, self.period)]
        while self.restarts and epoch * (1 + ROUNDING) >= sum(cycles[-1]):
            start, period = cycles[-1]
            cycles.append((start + period, period * self.restarts))
        return cycles


@dataclass(frozen=True)
class OneCycle:
    """One rise and one longer fall: from high / div_factor up to high at epoch pct_start * epochs, and from there down
    to high / (div_factor * final_div_factor) at `epochs`, where it stays; along half a cosine, or linearly.

    The arguments are those of torch's OneCycleLR, whose total_steps T counts points where `epochs` is a length: stepped
    n times an epoch, it is this with epochs=(T - 1) / n and pct_start=(p T - 1) / (T - 1), p being its own.
    Raises DynamicsError for an anneal that is neither "cos" nor "linear", and for values out of range.
    Source: Smith and Topin 2017, arXiv 1708.07120, as fast.ai simplified it to two phases.
    """

    high: float
    epochs: float
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: str = "cos"

    def __post_init__(self) -> None:
        in_range("high", self.high, 0.0, math.inf)
        above_zero("epochs", self.epochs)
        above_zero("div_factor", self.div_factor)
        above_zero("final_div_factor", self.final_div_factor)
        if not isinstance(self.pct_start, int | float) or not 0 < self.pct_start < 1:
            raise DynamicsError(f"pct_start must be a fraction above 0 and below 1, got {self.pct_start!r}")
        if self.anneal not in ANNEALS:
            raise unknown("anneal", self.anneal, ANNEALS)

    def __call__(self, epoch: float) -> float:
        first = self.high / self.div_factor
        _, peak, end = self.knots
        if epoch < peak:
            return self._between(first, self.high, max(0.0, epoch / peak))
        return self._between(self.high, first / self.final_div_factor, min(1.0, (epoch - peak) / (end - peak)))

    def stretch(self, factor: float) -> OneCycle:
        return replace(self, epochs=self.epochs * factor)

    @property
    def knots(self) -> tuple[float, ...]:
        return (0.0, self.pct_start * self.epochs, float(self.epochs))

    def _between(self, start: float, end: float, part: float) -> float:
        left = (1 + math.cos(math.pi * part)) / 2 if self.anneal == "cos" else 1 - part
        return end + (start - end) * left


def _completed(epoch: float, period: float) -> int:
    """How many whole periods have passed at an epoch."""
    return math.floor(epoch / period * (1 + ROUNDING))


def _check_span(low: float, high: float) -> None:
    in_range("low", low, 0.0, math.inf)
    in_range("high", high, 0.0, math.inf)
    if high < low:
        raise DynamicsError(f"low must be at most high, got low={low!r} and high={high!r}: exchange them")
