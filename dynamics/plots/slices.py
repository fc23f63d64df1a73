"""A two-dimensional slice through hyperparameters, with its ridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import DynamicsError, unknown
from .style import ink

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

LABELS = {"loss": "test loss (nat)", "error": "test error"}


class Ridge(Protocol):
    """What `dynamics.ridge` returns: log x over log y has `slope` from `low` to `high`; `best` [y, seed] is the x."""

    slope: float
    low: float
    high: float
    y: Any
    best: Any


def plot_slice(found: xr.Dataset, ridge: Ridge | None = None, ax: Axes | None = None, *, measure: str = "loss") -> Axes:
    """A slice as cells on logarithmic axes, the mean over seeds, with the theoretical flat direction dashed.

    found: what `slice2d` returns; momentum is drawn as 1 - momentum. ridge: its `dynamics.ridge`, drawn as a mark for
    each row (bars from the smallest to the largest seed) with the fitted slope and its interval in the legend. Cells in
    which a seed diverged are left empty. Raises DynamicsError for what is no slice, and for an unknown measure.
    """
    if "x" not in getattr(found, "attrs", {}) or not {"loss", "error"} <= set(getattr(found, "data_vars", ())):
        raise DynamicsError("plot_slice draws what slice2d(...) or slice_of(...) return: make one of these first")
    if measure not in LABELS:
        raise unknown("measure of a slice", measure, LABELS)
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    if ax is None:
        ax = plt.subplots(figsize=(6, 4.6), layout="constrained")[1]
    x, y = found.attrs["x"], found.attrs["y"]
    (x_label, xs), (y_label, ys) = (_coordinate(found, name) for name in (x, y))
    mean = found[measure].transpose(y, x, "seed").mean("seed", skipna=False).values
    finite = mean[np.isfinite(mean) & (mean > 0)]
    if not finite.size:
        raise DynamicsError(f"this slice has no cell with a {measure}: every one diverged or is missing, so lower x")
    # a few cells that were nearly lost would take all the colours
    norm = LogNorm(finite.min(), min(finite.max(), 4 * finite.min()))
    order = np.argsort(ys)
    mesh = ax.pcolormesh(_edges(xs), _edges(ys[order]), mean[order], norm=norm, cmap="viridis_r", edgecolors="face")
    mesh.set_linewidth(0.2)
    ax.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    for axis, values in ((ax.xaxis, xs), (ax.yaxis, ys)):
        axis.set_ticks(values, [f"{v:.3g}" for v in values])
        axis.set_ticks([], minor=True)
    ax.tick_params(axis="x", rotation=45)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label(LABELS[measure])
    ticks = np.geomspace(*mesh.get_clim(), 5)
    bar.set_ticks(ticks, labels=[f"{v:.2g}" for v in ticks])
    bar.ax.minorticks_off()
    _lines(ax, found, ridge, mean, xs, ys)
    return ax


def _lines(ax: Axes, found: xr.Dataset, ridge: Ridge | None, mean: Any, xs: Any, ys: Any) -> None:
    """The flat direction through the middle of the ridge (or the best cell), and the ridge itself."""
    limits = ax.get_xlim(), ax.get_ylim()
    flat, through = found.attrs["flat"], np.unravel_index(np.nanargmin(mean), mean.shape)
    middle = np.log(xs[through[1]]), np.log(ys[through[0]])
    if ridge is not None:
        best = np.log(np.asarray(ridge.best, dtype=float))
        rows = np.isfinite(best).any(axis=1)
        best, at = best[rows], np.asarray(ridge.y, dtype=float)[rows]
        center = np.nanmean(best, axis=1)
        middle = center.mean(), np.log(at).mean()
        x = np.exp(center)
        bars = np.abs(np.exp([np.nanmin(best, axis=1), np.nanmax(best, axis=1)]) - x)
        label = f"best {found.attrs['x']}: slope {ridge.slope:.2f} ({ridge.low:.2f} to {ridge.high:.2f})"
        ax.errorbar(x, at, xerr=bars, fmt="o", ms=6, color="C3", mec="white", capsize=3, lw=1.5, label=label)
    ends = np.log(np.array(limits[1]))
    line = middle[0] + flat * (ends - middle[1])
    # over pale cells and dark ones alike
    ax.plot(np.exp(line), np.exp(ends), ls="--", lw=2, color="black", label=f"flat direction: slope {flat:g}")
    ax.set(xlim=limits[0], ylim=limits[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize="small", frameon=False, labelcolor=ink())


def _coordinate(found: xr.Dataset, name: str) -> tuple[str, np.ndarray]:
    label = f"1 - {name}" if f"1 - {name}" in found.coords else name
    return label, found.coords[label].values.astype(float)


def _edges(values: np.ndarray) -> np.ndarray:
    """Borders of cells around positive values, half way between them in the logarithm."""
    logs = np.log(values)
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))
