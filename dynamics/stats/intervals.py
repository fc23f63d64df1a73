"""Intervals of measured samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DynamicsError


class Interval(NamedTuple):
    """A mean, its confidence interval, the number of samples, and their standard deviation (n-1; nan for one)."""

    mean: float
    low: float
    high: float
    n: int
    sd: float


def mean_interval(samples: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent samples, [n], in the samples' units.

    One sample has an infinite interval; identical samples have one of width zero.
    Raises DynamicsError for no samples, nan or infinite samples, more than one axis, or a level outside (0, 1).
    Source: Student, "The probable error of a mean", Biometrika 6 (1908); mean ± t(n-1) sd/sqrt(n).
    """
    values = as_samples("samples", samples)
    check_level(level)
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), -math.inf, math.inf, 1, math.nan)
    if np.all(values == values[0]):  # a rounded mean would move the interval off a bound that the samples sit on
        return Interval(float(values[0]), float(values[0]), float(values[0]), n, 0.0)
    from scipy.special import stdtrit

    mean, sd = math.fsum(values) / n, float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, sd)


def ratio_interval(pairs_a: ArrayLike, pairs_b: ArrayLike, *, level: float = 0.95) -> Interval:
    """The geometric mean of the paired ratios a/b and its interval, [n] each; from t on ln(a/b), whose sd is `sd`.

    One pair has the interval (0, inf).
    Raises DynamicsError where the two differ in length or are not all positive, and as `mean_interval`.
    """
    a, b = as_samples("pairs_a", pairs_a), as_samples("pairs_b", pairs_b)
    if len(a) != len(b):
        raise DynamicsError(f"pairs differ in length, {len(a)} and {len(b)}: pass one b for each a, in the same order")
    if np.any(a <= 0) or np.any(b <= 0):
        raise DynamicsError("a ratio interval needs positive measurements: take mean_interval(a - b) instead")
    logs = mean_interval(np.log(a / b), level=level)
    with np.errstate(over="ignore"):
        mean, low, high = (float(value) for value in np.exp(logs[:3]))
    return Interval(mean, low, high, logs.n, logs.sd)


def rms(values: ArrayLike, *, axis: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """The root of the mean square over `axis`, by default over all of them.

    Raises DynamicsError for nan or for nothing to average.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise DynamicsError("rms of no values: check the selection")
    if np.any(np.isnan(values)):
        raise DynamicsError("rms of values that hold nan: select the finite ones first")
    return np.sqrt(np.mean(values**2, axis=axis))


def check_level(level: float) -> None:
    """Raises DynamicsError for a confidence level outside (0, 1)."""
    if not 0 < level < 1:
        raise DynamicsError(f"level must lie between 0 and 1, got {level}: pass 0.95 for a 95 % interval")


def check_alpha(alpha: float) -> None:
    """Raises DynamicsError for a rate of false alarms outside (0, 0.5)."""
    if not 0 < alpha < 0.5:
        raise DynamicsError(f"alpha must lie between 0 and 0.5, got {alpha}: pass 0.05 for one false alarm in twenty")


def as_samples(name: str, samples: ArrayLike) -> NDArray[np.float64]:
    """Finite numbers, [n] with n >= 1, or DynamicsError."""
    values = np.atleast_1d(np.asarray(samples, dtype=np.float64))
    if values.ndim != 1:
        raise DynamicsError(f"{name} have shape {values.shape}: pass one number for each independent run")
    if len(values) == 0:
        raise DynamicsError(f"{name} are empty: pass at least one number")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DynamicsError(f"{name}[{bad[0]}] is {values[bad[0]]}: leave out runs that diverged, and say how many did")
    return values
