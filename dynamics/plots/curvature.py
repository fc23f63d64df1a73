"""Curvature: leading eigenvalues, their density, sharpness along a run, and histograms of a net's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..curvature.moments import largest_gap
from ..errors import DynamicsError
from ..runs import Run
from ..runs.edge import edge_of_stability
from .given import as_runs, read
from .schedule import STROKES
from .style import depth_colors, finish, ink, label_of, new_axes, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 6.0
"""How far below its peak a density is drawn."""
MARKERS = "os^Dvp"


class _Values(NamedTuple):
    values: np.ndarray
    residuals: np.ndarray


def plot_spectrum(eigenpairs: Any, ax: Axes | None = None, *, outliers: bool = True) -> Axes:
    """Eigenvalues in the order given on a logarithmic axis, negative ones by their size as hollow markers.

    eigenpairs: an Eigenpairs, or bare values; or a dict label -> one of these. The bars are residuals, the
    certificate: some eigenvalue lies within each. outliers: mark the largest gap between positive values by a dashed
    line, and say in the legend how many stand above it and how wide it is. Raises DynamicsError for anything else.
    """
    series = {k: _values(v) for k, v in _labelled(eigenpairs, "plot_spectrum", "Eigenpairs or values").items()}
    ax = new_axes(ax)
    for i, ((label, s), color) in enumerate(zip(series.items(), depth_colors(len(series)), strict=True)):
        at, size = np.arange(1, len(s.values) + 1), np.abs(s.values)
        gap = largest_gap(s.values.tolist())
        told = f"{gap.count} above a gap of ×{gap.ratio:.2g}" if outliers and gap.count else ""
        name = ": ".join(part for part in (label, told) if part) or "_"
        # on a logarithmic axis no bar reaches zero
        below = np.minimum(s.residuals, size * (1 - 1e-3))
        ax.plot(at, np.where(s.values > 0, size, np.nan), color=color, lw=0.8, alpha=0.6)
        marker = MARKERS[i % len(MARKERS)]
        for of, face in ((s.values > 0, color), (s.values < 0, "none")):
            ax.errorbar(at[of], size[of], yerr=[below[of], s.residuals[of]], fmt=marker, ms=5, color=color, mfc=face,
                        elinewidth=1.2, capsize=2)  # fmt: skip
        ax.plot([], [], marker=marker, ms=5, lw=0.8, color=color, label=name)
        if told:
            beside = np.argsort(-s.values)[gap.count - 1 : gap.count + 1]
            ends = at[beside].min() - 0.4, at[beside].max() + 0.4
            ax.plot(ends, [np.sqrt(size[beside].prod())] * 2, color=ink(), ls="--", lw=1.3)
    ax.set_xlim(0.5, max(len(s.values) for s in series.values()) + 0.5)
    ax.xaxis.get_major_locator().set_params(integer=True)
    negative = any((s.values < 0).any() for s in series.values())
    label = "|eigenvalue|, hollow: negative" if negative else "eigenvalue"
    return finish(ax, label, "Leading eigenvalues, with residuals as bars", xlabel="index", log=True)


def plot_density(density: Any, ax: Axes | None = None) -> Axes:
    """The density of eigenvalues on a logarithmic axis, with the band of one standard error over probes.

    density: a Density, or a dict label -> Density. Raises DynamicsError for anything else.
    """
    given = _labelled(density, "plot_density", "a Density of spectral_density(...)")
    for v in given.values():
        if not all(hasattr(v, k) for k in ("grid", "density", "spread", "weights")):
            raise DynamicsError(f"plot_density takes a Density, got {type(v).__name__}: spectral_density(op) makes one")
    ax = new_axes(ax)
    peak = max(float(d.density.max()) for d in given.values())
    for (label, d), color in zip(given.items(), depth_colors(len(given)), strict=True):
        grid, mean = d.grid.numpy(), d.density.numpy()
        error = np.nan_to_num(d.spread.numpy() / len(d.weights) ** 0.5)
        low = peak * 10.0**-DECADES
        ax.plot(grid, np.maximum(mean, low / 10), color=color, lw=1.4, label=label or "_")
        ax.fill_between(grid, np.maximum(mean - error, low / 10), np.maximum(mean + error, low / 10), color=color,
                        alpha=0.25, lw=0)  # fmt: skip
    ax.axvline(0, color=ink(), lw=0.8, ls=":")
    finish(ax, "density", "Density of eigenvalues", xlabel="eigenvalue", log=True)
    ax.set_ylim(peak * 10.0**-DECADES, peak * 3)
    return ax


def plot_sharpness(run: Run | Sequence[Run], ax: Axes | None = None, *, name: str = "sharpness") -> Axes:
    """Sharpness over steps, with the band of two standard errors over batches, and dashed the sharpness at which the
    lr in force is at the stability bound of the run's optimizer.

    run: one, or several seeds of one recipe, drawn as their mean with the band from smallest to largest. name: under
    which the readings of the probe `sharpness` are kept. An optimizer without such a bound has no dashed line.
    Raises DynamicsError for readings that are not there.
    """
    runs = as_runs(run)
    readings = [read(r, name, "sharpness", "standard_error") for r in runs]
    steps = readings[0].step.values
    if not all(np.array_equal(steps, r.step.values) for r in readings):
        raise DynamicsError("these runs were read at other steps: plot runs of one recipe, read at the same steps")
    values = np.stack([r["sharpness"].values.astype(float) for r in readings])
    ax, color = new_axes(ax), depth_colors(3)[1]
    ax.plot(steps, values.mean(0), color=color, lw=1.6, label="sharpness λ₁", **points(steps))
    if len(runs) > 1:
        low, high = values.min(0), values.max(0)
    else:
        error = 2 * readings[0]["standard_error"].values.astype(float)
        low, high = values[0] - error, values[0] + error
    ax.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
    bounds = _bounds(runs, name)
    if bounds:
        critical = np.mean([b["critical"].values for b in bounds], axis=0)
        ax.plot(bounds[0].step, np.where(np.isfinite(critical), critical, np.nan), ls="--", lw=1.3, color=ink(),
                label="at the stability bound", **points(bounds[0].step))  # fmt: skip
    title = "Sharpness and the edge of stability" if bounds else "Sharpness"
    return finish(ax, label_of(readings[0], "sharpness", "sharpness"), title, log=not (low <= 0).any())


def plot_outputs(outputs: Any, ax: Axes | None = None, *, bins: int = 80) -> Axes:
    """Histograms of a net's outputs on one axis, a line for each channel (class), as densities.

    outputs: [N, C] of `perturbed_outputs`; or a dict label -> [N, C], whose first entry is drawn solid, the second
    dashed, and so on. Raises DynamicsError for anything else, and for values that are not finite.
    """
    given = {k: _array(v) for k, v in _labelled(outputs, "plot_outputs", "outputs [N, C]").items()}
    for v in given.values():
        if v.ndim != 2 or not v.size or not np.isfinite(v).all():
            raise DynamicsError(f"plot_outputs takes finite outputs [N, C], got shape {list(v.shape)}")
    ax = new_axes(ax)
    low, high = min(v.min() for v in given.values()), max(v.max() for v in given.values())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for (label, v), stroke in zip(given.items(), cycle(STROKES), strict=False):
        for c, color in enumerate(depth_colors(v.shape[1])):
            heights, _ = np.histogram(v[:, c], edges, density=True)
            ax.stairs(heights, edges, color=color, lw=1.1, ls=stroke, label=f"{label} {c}".strip())
    return finish(ax, "density", "Outputs by class", xlabel="output")


def _labelled(given: Any, plot: str, what: str) -> dict[str, Any]:
    if isinstance(given, Mapping) and given:
        return {str(k): v for k, v in given.items()}
    if given is None or isinstance(given, Mapping | str):
        raise DynamicsError(f"{plot} was given {type(given).__name__}: pass {what}, or a dict label -> one of them")
    return {"": given}


def _values(given: Any) -> _Values:
    """Eigenvalues with their residuals, which bare values do not have."""
    bare = not hasattr(given, "residuals")
    values = _array(given if bare else given.values)
    residuals = np.zeros(len(values)) if bare else _array(given.residuals)
    if values.ndim != 1 or not np.isfinite(values).all() or not values.any():
        raise DynamicsError(
            f"plot_spectrum takes finite eigenvalues [k] that are not all zero, got shape {list(values.shape)}: "
            "top_eigenpairs(op, k) makes them"
        )
    return _Values(values, residuals)


def _array(given: Any) -> np.ndarray:
    try:
        return np.atleast_1d(np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, dtype=float))
    except (TypeError, ValueError):
        raise DynamicsError(f"a plot of curvature takes numbers, got {type(given).__name__}") from None


def _bounds(runs: Sequence[Any], name: str) -> list[Any]:
    """The runs' own bounds, where their optimizer has one."""
    try:
        return [edge_of_stability(r, name=name) for r in runs if hasattr(r, "optimizer")]
    except DynamicsError:
        return []
