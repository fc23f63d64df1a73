"""Weight norms, step angles and batch-norm parameters of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DynamicsError, unknown
from ..runs import Run
from .given import as_runs, one_run, pick_layers, read, together
from .given import predicted as prediction
from .style import draw_channels, draw_layers, draw_predictions, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAWS = ("angle", "angle_general", "angle_transient")


def plot_norms(
    run: Run | Sequence[Run], ax: Axes | None = None, *, layers: Sequence[str] | None = None, predicted: bool = True
) -> Axes:
    """Weight norms by layer over steps, with the norm that theory predicts under the run's schedule dashed over them.

    run: one, or several seeds of one recipe, drawn as their mean with the band from smallest to largest. Needs the
    probe `norms`, and for the prediction `gradients`. Raises DynamicsError for readings or layers that are not there.
    """
    runs = as_runs(run)
    norms = together([read(r, "norms", "norm")["norm"] for r in runs])
    names = pick_layers(norms[0].layer.values, layers)
    expected = [prediction(r)["norm"] for r in runs] if predicted and all("gradients" in r for r in runs) else []
    ax = draw_layers(new_axes(ax), norms, names)
    draw_predictions(ax, together(expected), names)
    return finish(ax, "weight norm ‖w‖", "Weight norms by layer", log=True)


def plot_angles(
    run: Run | Sequence[Run], ax: Axes | None = None, *, layers: Sequence[str] | None = None, law: str | None = "angle"
) -> Axes:
    """Single-step angles by layer over steps, with a law dashed over them.

    law: a variable of `predict`: "angle" (equilibrium), "angle_general", "angle_transient", or None. Other arguments
    as in `plot_norms`. Needs the probe `angles`, and for a law `norms` and `gradients`.
    """
    if law is not None and law not in LAWS:
        raise unknown("law", law, LAWS)
    runs = as_runs(run)
    angles = together([read(r, "angles", "angle")["angle"] for r in runs])
    names = pick_layers(angles[0].layer.values, layers)
    expected = [prediction(r)[law] for r in runs] if law else []
    ax = draw_layers(new_axes(ax), angles, names)
    draw_predictions(ax, together(expected), names)
    return finish(ax, "single-step angle (rad)", "Step angles by layer", log=True)


def plot_batchnorm(
    run: Run, ax: Axes | None = None, *, variable: str = "scale", layers: Sequence[str] | None = None
) -> Axes:
    """Trajectories of batch-norm parameters: a thin line for each channel, coloured by layer.

    variable: scale, bias, running_mean or running_var. Needs the probe `batchnorm`.
    """
    readings = read(one_run(run, "plot_batchnorm", "its lines are channels, not seeds"), "batchnorm")
    if variable not in readings.data_vars:
        raise unknown("batch-norm variable", variable, map(str, readings.data_vars))
    if not readings.sizes["channel"]:
        net = getattr(getattr(run, "recipe", None), "net", "this model")
        raise DynamicsError(f"{net!r} has no batch norm to plot: train a net with norm='batch'")
    names = pick_layers(readings.channel_layer.values, layers)
    ax = draw_channels(new_axes(ax), readings[variable], names)
    return finish(ax, f"batch norm {variable.replace('_', ' ')}", f"Batch norm {variable} of every channel")
