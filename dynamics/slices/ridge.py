"""The ridge of a slice: the best x at each y, and the slope of its logarithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DynamicsError, unknown
from ..stats.intervals import check_level
from .grid import DAMPING, logs

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]
MEASURES = ("loss", "error")


class Ridge(NamedTuple):
    """The slope of log x over log y, with its interval from `low` to `high`, and the theoretical one, `flat`.

    best [y, seed]: the x at the fitted minimum; value [y, seed]: the measure there; both nan in a row whose minimum the
    range does not enclose. slopes [seed]: each seed's own. y: the coordinate whose logarithm was taken, which for
    momentum is 1 - momentum.
    """

    slope: float
    low: float
    high: float
    flat: float
    y: Floats
    best: Floats
    value: Floats
    slopes: Floats
    level: float


def ridge(found: xr.Dataset, *, measure: str = "loss", reach: int = 1, level: float = 0.95) -> Ridge:
    """Fit the ridge of a slice: in each row the minimum of a parabola, then a line through the minima.

    The parabola is of the measure's logarithm in log x, by least squares over the columns within `reach` of the one
    with the smallest mean over seeds, for each seed by itself (1 keeps to the bottom of a valley with unequal sides, 2
    averages more noise away where they are equal); a row counts if that column is not the first or the last one. The
    line has an intercept for each seed and one slope. Its interval is Student's, from what is left of the minima of
    rows and seeds around it, with n - seeds - 1 degrees of freedom: it covers the noise of the runs and a line that is
    not quite straight, but no curve, so look at the plot. Columns in which a seed diverged are left out of the fit.
    Raises DynamicsError where fewer than two rows enclose their minimum, and for an unknown measure.
    """
    if measure not in MEASURES:
        raise unknown("measure of a slice", measure, MEASURES)
    check_level(level)
    x, y = found.attrs["x"], found.attrs["y"]
    values = found[measure].transpose(x, y, "seed").values
    lx, ly = logs(found, x), logs(found, y)
    best, value = np.full((2, *values.shape[1:]), np.nan)
    for row in range(len(ly)):
        best[row], value[row] = _minima(lx, values[:, row], reach)
    used = np.isfinite(best).any(axis=1)
    if used.sum() < 2:
        raise DynamicsError(
            f"{used.sum()} of {len(ly)} rows of this slice enclose their best {x}: widen its range of {x}"
        )
    slope, half = _line(ly, best, level)
    slopes = np.array([_line(ly, best[:, s : s + 1], level)[0] for s in range(best.shape[1])])
    raw = found.coords[DAMPING if y == "momentum" else y].values.astype(float)
    at = 1 - np.exp(best) if x == "momentum" else np.exp(best)
    return Ridge(slope, slope - half, slope + half, found.attrs["flat"], raw, at, value, slopes, level)


def flatness(found: xr.Dataset, fitted: Ridge, *, measure: str = "loss", factor: float = 4.0) -> Floats:
    """How far the ridge is from level, over how steep its sides are, by seed: 0 is flat.

    The standard deviation over rows of the logarithm of the smallest measure, over its mean rise where x is off by
    `factor` to either side, interpolated between columns; sides that lie outside the range are left out.
    """
    x, y = found.attrs["x"], found.attrs["y"]
    values = np.log(found[measure].transpose(x, y, "seed").values)
    lx = logs(found, x)
    best = np.log(1 - fitted.best if x == "momentum" else fitted.best)
    lowest = np.log(fitted.value)
    rises: list[list[float]] = [[] for _ in range(best.shape[1])]
    for row, seed in zip(*np.nonzero(np.isfinite(best)), strict=True):
        curve = values[:, row, seed]
        good = np.isfinite(curve)
        for at in best[row, seed] + np.log(factor) * np.array([-1.0, 1.0]):
            if lx[good].min() <= at <= lx[good].max():
                rises[seed].append(float(np.interp(at, lx[good], curve[good]) - lowest[row, seed]))
    with np.errstate(invalid="ignore"):
        return np.nanstd(lowest, axis=0) / np.array([np.mean(r) if r else np.nan for r in rises])


def _minima(lx: Floats, values: Floats, reach: int) -> tuple[Floats, Floats]:
    """log x and value at the minimum of each seed's parabola, [seed] each, from values [x, seed]."""
    nothing = np.full((2, values.shape[1]), np.nan)
    finite = np.isfinite(values).all(axis=1)
    mean = np.where(finite, np.log(np.where(finite[:, None], values, 1.0)).mean(axis=1), np.inf)
    middle = int(np.argmin(mean))
    near = finite & (np.abs(np.arange(len(lx)) - middle) <= reach)
    if not 0 < middle < len(lx) - 1 or near.sum() < 3:
        return nothing[0], nothing[1]
    origin = lx[middle]
    c, b, a = np.polyfit(lx[near] - origin, np.log(values[near]), 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -b / (2 * c)
    low, high = lx[near].min() - origin, lx[near].max() - origin
    good = (c > 0) & (at >= low) & (at <= high)
    return np.where(good, origin + at, np.nan), np.where(good, np.exp(a - b**2 / (4 * np.where(good, c, 1.0))), np.nan)


def _line(ly: Floats, best: Floats, level: float) -> tuple[float, float]:
    """The slope of best [y, seed] over ly, with an intercept a seed, and half of its interval."""
    from scipy.special import stdtrit

    good = np.isfinite(best)
    u = np.where(good, ly[:, None], np.nan)
    seeds = good.sum(axis=0) > 1
    if not seeds.any():
        return np.nan, np.inf
    u, v, good = u[:, seeds], best[:, seeds], good[:, seeds]
    u, v = u - np.nanmean(u, axis=0), v - np.nanmean(v, axis=0)
    lever = np.nansum(u**2)
    slope = float(np.nansum(u * v) / lever)
    left = int(good.sum()) - u.shape[1] - 1
    if left < 1:
        return slope, np.inf
    error = np.sqrt(np.nansum((v - slope * u) ** 2) / left / lever)
    return slope, float(stdtrit(left, (1 + level) / 2) * error)
