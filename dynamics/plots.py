"""Plots of a run: measurement as lines, prediction dashed over it. They take an Axes, return it, and compute nothing.

Colours run along depth (viridis, readable in print and by colour-blind readers); text and dashes take the theme's
colour, so that a dark theme works.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DynamicsError, unknown
from .runs import Run, predict

LAWS = ("angle", "angle_general", "angle_transient")

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_norms(
    run: Run | Sequence[Run], ax: Axes | None = None, *, layers: Sequence[str] | None = None, predicted: bool = True
) -> Axes:
    """Weight norms by layer over steps, with the norm that theory predicts under the run's schedule dashed over them.

    run: one, or several seeds of one recipe, drawn as their mean with the band from smallest to largest. Needs the
    probe `norms`, and for the prediction `gradients`. Raises DynamicsError for readings or layers that are not there.
    """
    runs = _runs(run)
    read = _together([r["norms"]["norm"] for r in runs])
    names = _layers(read[0].layer.values, layers)
    expected = [predict(r)["norm"] for r in runs] if predicted and all("gradients" in r for r in runs) else []
    ax = _draw(_axes(ax), read, names)
    _dashes(ax, _together(expected), names)
    return _finish(ax, "weight norm ‖w‖", "Weight norms by layer", log=True)


def plot_angles(
    run: Run | Sequence[Run], ax: Axes | None = None, *, layers: Sequence[str] | None = None, law: str | None = "angle"
) -> Axes:
    """Single-step angles by layer over steps, with a law dashed over them.

    law: a variable of `predict`: "angle" (equilibrium), "angle_general", "angle_transient", or None. Other arguments
    as in `plot_norms`. Needs the probe `angles`, and for a law `norms` and `gradients`.
    """
    if law is not None and law not in LAWS:
        raise unknown("law", law, LAWS)
    runs = _runs(run)
    read = _together([r["angles"]["angle"] for r in runs])
    names = _layers(read[0].layer.values, layers)
    expected = [predict(r)[law] for r in runs] if law else []
    ax = _draw(_axes(ax), read, names)
    _dashes(ax, _together(expected), names)
    return _finish(ax, "single-step angle (rad)", "Step angles by layer", log=True)


def plot_batchnorm(
    run: Run, ax: Axes | None = None, *, variable: str = "scale", layers: Sequence[str] | None = None
) -> Axes:
    """Trajectories of batch-norm parameters: a thin line for each channel, coloured by layer.

    variable: scale, bias, running_mean or running_var. Needs the probe `batchnorm`.
    """
    if not isinstance(run, Run):
        raise DynamicsError("plot_batchnorm takes one Run: its lines are channels, not seeds")
    readings = run["batchnorm"]
    if variable not in readings.data_vars:
        raise unknown("batch-norm variable", variable, map(str, readings.data_vars))
    if not readings.sizes["channel"]:
        raise DynamicsError(f"{run.recipe.net!r} has no batch norm to plot: train a net with norm='batch'")
    names = _layers(list(dict.fromkeys(readings.channel_layer.values.tolist())), layers)
    ax = _axes(ax)
    for name, color in zip(names, _colors(len(names)), strict=True):
        part = readings[variable].isel(channel=readings.channel_layer.values == name)
        lines = ax.plot(part.step, part.values, color=color, lw=0.7, alpha=0.5)
        lines[0].set_label(name)
    return _finish(ax, f"batch norm {variable.replace('_', ' ')}", f"Batch norm {variable} of every channel")


def _runs(run: Run | Sequence[Run]) -> list[Run]:
    runs = [run] if isinstance(run, Run) else list(run) if isinstance(run, Iterable) else []
    if not runs or not all(isinstance(r, Run) for r in runs):
        raise DynamicsError(
            "a plot takes a Run, or a list of runs of one recipe: train(...) and load_run(...) make them"
        )
    return runs


def _together(readings: list[Any]) -> list[Any]:
    """Readings that can be drawn as one band; raises DynamicsError where steps or layers differ."""
    for other in readings[1:]:
        for name in ("step", "layer"):
            if not np.array_equal(readings[0][name].values, other[name].values):
                raise DynamicsError(
                    f"these runs differ in their {name}s: plot runs of one recipe, read at the same steps"
                )
    return readings


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.2), layout="constrained")[1]


def _ink() -> Any:
    import matplotlib as mpl

    return mpl.rcParams["text.color"]


def _colors(n: int) -> Any:
    import matplotlib as mpl

    # the ends of the map are too pale and too dark for one theme or the other
    return mpl.colormaps["viridis"](np.linspace(0.12, 0.9, n))


def _layers(known: Any, wanted: Sequence[str] | None) -> list[str]:
    known = [str(k) for k in known]
    for name in wanted or ():
        if name not in known:
            raise unknown("layer", name, known)
    return list(wanted) if wanted else known


def _draw(ax: Axes, readings: list[Any], names: list[str]) -> Axes:
    for name, color in zip(names, _colors(len(names)), strict=True):
        values = np.stack([r.sel(layer=name).values for r in readings])
        ax.plot(readings[0].step, values.mean(0), color=color, lw=1.2, label=name)
        if len(values) > 1:
            ax.fill_between(readings[0].step, values.min(0), values.max(0), color=color, alpha=0.25, lw=0)
    return ax


def _dashes(ax: Axes, expected: list[Any], names: list[str]) -> None:
    """Predictions, the mean of the runs' own, dashed over the lines; one that all layers share is one line."""
    if not expected:
        return
    curves = np.mean([e.sel(layer=names).values.T for e in expected], axis=0)
    shared = np.allclose(curves, curves[:1], rtol=1e-9, atol=0, equal_nan=True)
    for i, curve in enumerate(curves[:1] if shared else curves):
        ax.plot(expected[0].step, curve, ls="--", lw=1.3, color=_ink(), label="_" if i else "predicted")


def _finish(ax: Axes, ylabel: str, title: str, *, log: bool = False) -> Axes:
    ax.set(xlabel="step", ylabel=ylabel)
    ax.set_title(title)
    if log:
        ax.set_yscale("log")
    if ax.get_legend_handles_labels()[0]:
        legend = ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
        for line in legend.get_lines():
            line.set(alpha=1.0, linewidth=1.8)
    return ax
