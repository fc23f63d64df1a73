"""Plots of a run: measurement as lines, prediction dashed over it. They take an Axes, return it, and compute nothing.

Colours run along depth (viridis, readable in print and by colour-blind readers); text and dashes take the theme's
colour, so that a dark theme works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DynamicsError, unknown
from .runs import Run, predict

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
    ax = _axes(ax)
    names = _layers(runs[0]["norms"].layer.values, layers)
    _draw(ax, [r["norms"]["norm"] for r in runs], names)
    if predicted and all("gradients" in r for r in runs):
        expected = [predict(r)["norm"] for r in runs]
        for name in names:
            mean = np.mean([e.sel(layer=name).values for e in expected], axis=0)
            ax.plot(expected[0].step, mean, ls="--", lw=1.2, color=_ink())
        _label_dashes(ax, "predicted")
    return _finish(ax, "weight norm ‖w‖", "Weight norms by layer", log=True)


def plot_angles(
    run: Run | Sequence[Run], ax: Axes | None = None, *, layers: Sequence[str] | None = None, law: str | None = "angle"
) -> Axes:
    """Single-step angles by layer over steps, with a law dashed over them.

    law: a variable of `predict`: "angle" (equilibrium), "angle_general", "angle_transient", or None. Other arguments
    as in `plot_norms`. Needs the probe `angles`, and for a law `norms` and `gradients`.
    """
    runs = _runs(run)
    ax = _axes(ax)
    names = _layers(runs[0]["angles"].layer.values, layers)
    _draw(ax, [r["angles"]["angle"] for r in runs], names)
    if law is not None:
        predictions = predict(runs[0])
        if law not in predictions:
            raise unknown("law", law, map(str, predictions.data_vars))
        curves = predictions[law].sel(layer=names).values.T
        distinct = curves[:1] if np.allclose(curves, curves[:1], equal_nan=True) else curves
        for curve in distinct:  # one law for all layers is one line
            ax.plot(predictions.step, curve, ls="--", lw=1.6, color=_ink())
        _label_dashes(ax, "predicted")
    return _finish(ax, "single-step angle (rad)", "Step angles by layer", log=True)


def plot_batchnorm(
    run: Run, ax: Axes | None = None, *, variable: str = "scale", layers: Sequence[str] | None = None
) -> Axes:
    """Trajectories of batch-norm parameters: a thin line for each channel, coloured by layer.

    variable: scale, bias, running_mean or running_var. Needs the probe `batchnorm`.
    """
    readings = run["batchnorm"]
    if variable not in readings:
        raise unknown("batch-norm variable", variable, map(str, readings.data_vars))
    if not readings.sizes["channel"]:
        raise DynamicsError(f"{run.recipe.net!r} has no batch norm to plot: train a net with norm='batch'")
    ax = _axes(ax)
    names = _layers(list(dict.fromkeys(readings.channel_layer.values.tolist())), layers)
    for name, color in zip(names, _colors(len(names)), strict=True):
        part = readings[variable].isel(channel=readings.channel_layer.values == name)
        lines = ax.plot(part.step, part.values, color=color, lw=0.7, alpha=0.5)
        lines[0].set_label(name)
    return _finish(ax, f"batch norm {variable.replace('_', ' ')}", f"Batch norm {variable} of every channel")


def _runs(run: Run | Sequence[Run]) -> list[Run]:
    runs = [run] if isinstance(run, Run) else list(run)
    if not runs or not all(isinstance(r, Run) for r in runs):
        raise DynamicsError(
            "a plot takes a Run, or a list of runs of one recipe: train(...) and load_run(...) make them"
        )
    return runs


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


def _draw(ax: Axes, readings: list[Any], names: list[str]) -> None:
    for name, color in zip(names, _colors(len(names)), strict=True):
        values = np.stack([r.sel(layer=name).values for r in readings])
        ax.plot(readings[0].step, values.mean(0), color=color, lw=1.2, label=name)
        if len(values) > 1:
            ax.fill_between(readings[0].step, values.min(0), values.max(0), color=color, alpha=0.25, lw=0)


def _label_dashes(ax: Axes, label: str) -> None:
    ax.plot([], [], ls="--", lw=1.4, color=_ink(), label=label)


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
