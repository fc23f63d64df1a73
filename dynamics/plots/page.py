"""One page for a run: what was measured, what theory said, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DynamicsError, unknown
from ..invariance import Invariance
from ..runs import Run
from ..runs.watch import Recorder
from .given import channels_of, one_run, pick_layers, predicted
from .schedule import plot_schedule
from .style import by_depth, depth_colors, draw_layers, draw_predictions, finish, ink, points, wrapped
from .weights import LAWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
AGREES = (0.9, 1.1)
"""The band of measured over predicted angle that is shaded."""
LINE_POINTS = 11.0
ROWS_OF_TEXT = 19
MOST_TOLD = 10
LAW_NAMES = {
    "angle": "Predicted angle: the equilibrium law.",
    "angle_general": "Predicted angle: the general law of equilibrium.",
    "angle_transient": "Predicted angle: under the schedule, from gradients.",
}


class Page(NamedTuple):
    """What the panels share: layers with their colours, theory where there is one, and why not where there is none."""

    colors: Mapping[str, Any]
    theory: Any = None
    law: str = ""
    ratio: Any = None
    why_not: str = ""


def plot_run(
    run: Run,
    *,
    layers: Sequence[str] | None = None,
    law: str = "angle_transient",
    invariance: Invariance | None = None,
) -> Figure:
    """One page on a run, to look at after it: loss, accuracy, lr, weight norms and step angles with their predictions,
    measured over predicted angles, batch-norm parameters, and layers by how far they are from theory; returns the
    Figure.

    run: a Run, or a live recorder from `watch`. Panels whose readings were not recorded are left out. layers: all by
    default. law: the variable of `predict` that angles are compared with; where it has no values here, "angle".
    invariance: the table that `predict` takes, for a run without a recipe. Ratios are geometric running means over a
    tenth of the readings; the table has their median over the last quarter.
    Raises DynamicsError where nothing was recorded, and for unknown layers and laws.
    """
    if law not in LAWS:
        raise unknown("law", law, LAWS)
    one_run(run, "plot_run", "draw a page for each")
    run = run.run() if isinstance(run, Recorder) else run  # a recorder makes its readings anew each time
    page = _page(run, layers, law, invariance)
    panels = _panels(run, page)
    if not panels:
        raise DynamicsError("nothing was recorded in this run: train it with probes=standard(10), then plot_run(run)")

    import matplotlib.pyplot as plt

    # the text takes what is left of the last row, so that there are no holes
    rows = len(panels) // COLUMNS + 1
    figure = plt.figure(figsize=(13, 0.5 + 3.2 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    for i, draw in enumerate(panels):
        draw(figure.add_subplot(grid[divmod(i, COLUMNS)]))
    last = _last_step(run)
    for ax in figure.axes:
        ax.set_xlim(-0.02 * last, 1.02 * last or 1)
    left = len(panels) % COLUMNS
    _text(figure.add_subplot(grid[-1, left:]), run, page, columns=COLUMNS - left)
    figure.suptitle(_headline(run))
    return figure


def _page(run: Run, layers: Sequence[str] | None, law: str, invariance: Invariance | None) -> Page:
    read = next((run[k] for k in ("norms", "angles", "gradients") if _has(run, k)), None)
    if read is None:
        if layers:
            raise DynamicsError("no weights were recorded, so layers= has nothing to choose from: leave it out")
        return Page({}, why_not="No predictions: weights were not recorded (probes norms, angles and gradients).")
    names = pick_layers(read.layer.values, layers)
    colors = by_depth(names)
    missing = [k for k in ("norms", "gradients") if not _has(run, k)]
    if missing:
        return Page(colors, why_not=f"No predictions: they need the probe {missing[0]}, which was not recorded.")
    try:
        theory = predicted(run, invariance)
    except DynamicsError as error:
        return Page(colors, why_not=f"No predictions: {error}")
    theory = theory.reindex(layer=names)  # weights whose lr was not recorded have no prediction
    law = law if np.isfinite(theory[law].values).any() else "angle"
    ratio = None
    if _has(run, "angles"):
        measured = run["angles"]["angle"]
        both = np.intersect1d(measured.step.values, theory.step.values)
        if len(both):
            ratio = measured.sel(step=both, layer=names).transpose("step", "layer")
            expected = theory[law].sel(step=both, layer=names).transpose("step", "layer").values
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where((ratio.values > 0) & (expected > 0), ratio.values / expected, np.nan)
            ratio = ratio.copy(data=values)
    return Page(colors, theory, law, ratio)


def _panels(run: Run, page: Page) -> list[Callable[[Axes], Any]]:
    """What there is to draw, in reading order."""
    names, panels = list(page.colors), []
    if _has(run, "train", "loss") or _has(run, "valid", "loss"):
        panels.append(lambda ax: _loss(ax, run))
    if _has(run, "valid", "accuracy"):
        panels.append(lambda ax: _accuracy(ax, run))
    if _has(run, "hyperparameters", "lr"):
        panels.append(lambda ax: _lr(ax, run))
    if _has(run, "norms", "norm"):
        panels.append(lambda ax: _norms(ax, run["norms"]["norm"], page))
    if _has(run, "angles", "angle"):
        panels.append(lambda ax: _angles(ax, run["angles"]["angle"], page))
    if page.ratio is not None and names:
        panels.append(lambda ax: _ratio(ax, page))
    if _has(run, "batchnorm") and run["batchnorm"].sizes.get("channel"):
        panels += [lambda ax, v=v: _batchnorm(ax, run["batchnorm"], v, page) for v in ("scale", "bias")]
    return panels


def _loss(ax: Axes, run: Run) -> None:
    if _has(run, "train", "loss"):
        loss = run["train"]["loss"]
        steps, values = loss.step.values, loss.values.astype(float)
        ax.plot(steps, values, color=ink(), lw=0.5, alpha=0.3, label="_", **points(steps))
        ax.plot(
            steps, running_mean(values, len(values) // 40), color=depth_colors(3)[1], lw=1.6, label="train, smoothed"
        )
    if _has(run, "valid", "loss"):
        valid = run["valid"]["loss"]
        ax.plot(valid.step, valid.values, "o", color=ink(), ms=3.5, label="validation")
    drawn = np.concatenate([line.get_ydata() for line in ax.get_lines()])
    seen = drawn[np.isfinite(drawn)]
    finish(ax, "loss", "Loss", log=bool(len(seen)) and bool((seen > 0).all()), legend=False)
    _plain_ticks(ax)
    ax.legend(fontsize="small", frameon=False)


def _accuracy(ax: Axes, run: Run) -> None:
    accuracy = run["valid"]["accuracy"]
    ax.plot(accuracy.step, accuracy.values, "o-", color=ink(), ms=3.5, lw=1)
    final = float(accuracy.values[-1])
    finish(ax, "validation accuracy", f"Accuracy: {100 * final:.1f} % at the end", legend=False)


def _lr(ax: Axes, run: Run) -> None:
    plot_schedule(run, ax)
    shown, labels = ax.get_legend_handles_labels()
    if ax.get_legend():
        ax.get_legend().remove()
    if 1 < len(labels) <= 6:
        ax.legend(shown, [_shortened(name, 24) for name in labels], fontsize="x-small", frameon=False)


def _norms(ax: Axes, norm: Any, page: Page) -> None:
    _against_theory(ax, norm, page, "norm")
    title = "Weight norms" + (" (dashed: predicted)" if _dashed(ax) else "")
    finish(ax, "weight norm ‖w‖", title, log=bool((norm.values > 0).any()), legend=False)
    _plain_ticks(ax)


def _angles(ax: Axes, angle: Any, page: Page) -> None:
    """Running means: single steps of many layers would hide each other and the prediction."""
    _against_theory(ax, _smooth(angle), page, page.law)
    title = "Step angles, smoothed" + (" (dashed: predicted)" if _dashed(ax) else "")
    finish(ax, "angle (rad)", title, log=bool((angle.values > 0).any()), legend=False)
    _plain_ticks(ax)


def _against_theory(ax: Axes, read: Any, page: Page, variable: str) -> None:
    names = list(page.colors)
    draw_layers(ax, [read], names)
    if page.theory is None or not np.isfinite(page.theory[variable].values).any():
        return
    expected = page.theory[variable]
    before = len(ax.get_lines())
    draw_predictions(ax, [expected if variable == "norm" else _smooth(expected)], names)
    for line in ax.get_lines()[before:]:
        line.set_linewidth(1.0)


def _dashed(ax: Axes) -> bool:
    return any(line.get_linestyle() == "--" for line in ax.get_lines())


def _ratio(ax: Axes, page: Page) -> None:
    smooth = _smooth(page.ratio)
    ax.axhspan(*AGREES, color=ink(), alpha=0.15, lw=0)
    ax.axhline(1.0, color=ink(), ls="--", lw=1.0)
    draw_layers(ax, [smooth], list(page.colors))
    finish(ax, "ratio", "Measured / predicted angle, smoothed", log=True, legend=False)
    seen = smooth.values[np.isfinite(smooth.values)]
    low, high = (seen.min(), seen.max()) if len(seen) else (1.0, 1.0)
    ax.set_ylim(max(min(0.5, low / 1.1), 0.05), min(max(2.0, high * 1.1), 20.0))
    _plain_ticks(ax)


def _batchnorm(ax: Axes, readings: Any, variable: str, page: Page) -> None:
    """Median and range over channels: every channel would be a page of its own."""
    names = pick_layers(readings.channel_layer.values, None)
    own = by_depth(names)
    parents: dict[str, list[str]] = {}
    for layer in page.colors:
        parents.setdefault(layer.rpartition(".")[0], []).append(layer)
    for name in names:
        # a norm has the colour of the convolution that it follows, where their paths tell which
        siblings = parents.get(name.rpartition(".")[0], [])
        color = page.colors[siblings[0]] if len(siblings) == 1 else own[name]
        values = readings[variable].values[:, channels_of(readings, name)]
        steps = readings.step.values
        ax.plot(steps, np.median(values, axis=1), color=color, lw=1.4, label=name, **points(steps))
        for end in (values.min(1), values.max(1)):  # bands of many layers would cover each other
            ax.plot(steps, end, color=color, lw=0.6, alpha=0.7, label="_")
    finish(ax, f"batch norm {variable}", f"Batch norm {variable} (median, range)", legend=False)


def _text(ax: Axes, run: Run, page: Page, *, columns: int) -> None:
    """What the run was, and its layers from the furthest from theory to the nearest."""
    ax.set_axis_off()

    def write(text: str, x: float, line: float, *, indent: float = 0, **looks: Any) -> None:
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "annotation_clip": False}
        looks = {"fontsize": 8, "color": ink(), **looks}
        ax.annotate(text, (x, 1), (indent, -line * LINE_POINTS), **place, **looks).set_in_layout(False)

    told = [*_description(run), *wrapped(page.why_not or LAW_NAMES[page.law], 58).splitlines()]
    if len(told) > MOST_TOLD:
        told = [*told[: MOST_TOLD - 1], "…"]
    for i, line in enumerate(told):
        write(line, 0, i)
    if not page.colors:
        return
    rows, heading = _table(page)
    x, top = (1 / columns, 0) if columns > 1 else (0, len(told) + 0.6)
    room = int(ROWS_OF_TEXT - top - 1)
    if len(rows) > room:
        rows = [*rows[: room - 1], ("", None, f"and {len(rows) - room + 1} more", "")]
    write(heading, x, top, fontweight="bold")
    for i, (value, color, name, note) in enumerate(rows, 1):
        if color is not None:
            write("■", x, top + i, color=color)
        if value:
            write(value, x, top + i, indent=12)
        write(name + note, x, top + i, indent=12 if page.ratio is None else 44)


def _table(page: Page) -> tuple[list[tuple[str, Any, str, str]], str]:
    """Rows of (ratio, colour, layer, note), and what they are."""
    if page.ratio is None:
        return [
            ("", color, _shortened(name, 46), "") for name, color in page.colors.items()
        ], "Layers, in order of depth"
    late = deviations(page.ratio)
    rows = []
    for name in sorted(page.colors, key=lambda n: -abs(np.log(late[n])) if np.isfinite(late[n]) else 1.0):
        value = late[name]
        if not np.isfinite(value):
            shown, note = "–", ""
        else:
            shown, note = f"×{value:.2f}", "" if AGREES[0] <= value <= AGREES[1] else "  ←"
        if "law" in page.theory and page.theory["law"].sel(layer=name) == "general":
            note += "  (not scale-invariant)"
        rows.append((shown, page.colors[name], _shortened(name, 34), note))
    return rows, "Measured / predicted, last quarter (← beyond 10 %)"


def deviations(ratio: Any) -> dict[str, float]:
    """Median of measured over predicted in the last quarter of the readings, by layer; nan where there is no law."""
    late = ratio.values[(3 * len(ratio.step)) // 4 :]
    seen = np.isfinite(late)
    return {
        str(name): float(np.median(column[ok])) if ok.any() else float("nan")
        for name, column, ok in zip(ratio.layer.values, late.T, seen.T, strict=True)
    }


def _smooth(read: Any) -> Any:
    """Geometric running mean [step, layer] over a tenth of the readings."""
    read = read.transpose("step", "layer")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(read.values.astype(float))
    return read.copy(data=np.exp(running_mean(logs, len(logs) // 10)))


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` finite readings along the first axis, fewer at the ends."""
    width = min(max(width, 1), len(values))
    finite = np.isfinite(values)

    def total(of: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(np.convolve, 0, of, np.ones(width), "same")

    count = np.round(total(finite.astype(float)))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total(np.where(finite, values, 0.0)) / count
    return np.where(finite, mean, np.nan)


def _description(run: Run) -> list[str]:
    recipe = getattr(run, "recipe", None)
    if recipe is None:
        told = getattr(run, "manifest", {})
        return [
            f"{told['model']} under {told['optimizer']}, watched" if "model" in told else "Readings without a recipe"
        ]
    lines = [*wrapped(repr(recipe.net), 58).splitlines(), *wrapped(repr(recipe.optimizer), 58).splitlines()[:5]]
    lines.append(f"batch {recipe.batch_size}, {recipe.epochs:g} epochs, seed {recipe.seed}, {recipe.precision}")
    return lines


def _headline(run: Run) -> str:
    net = getattr(getattr(run, "recipe", None), "net", None)
    status, ended = getattr(run, "status", None), getattr(run, "diverged_at", None)
    name = _shortened(repr(net), 70) if net is not None else getattr(run, "manifest", {}).get("model", "A run")
    state = f" {status}" + (f" at step {ended}" if ended is not None else "") + "," if status else ""
    steps = getattr(getattr(run, "state", None), "step", _last_step(run))
    return f"{name}:{state} {steps} steps"


def _last_step(run: Run) -> int:
    known = ("train", "valid", "hyperparameters", "norms", "angles", "gradients", "batchnorm")
    return max((int(run[k].step.values[-1]) for k in known if _has(run, k)), default=0)


def _has(run: Run, name: str, variable: str | None = None) -> bool:
    if name not in run:
        return False
    readings = run[name]
    return bool(readings.sizes.get("step")) and (variable is None or variable in readings.data_vars)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 12]}…{text[-11:]}"


def _plain_ticks(ax: Axes) -> None:
    """1, 2, 5 instead of powers of ten, where a logarithmic axis spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if ax.get_yscale() != "log":
        return
    low, high = ax.get_ylim()
    if high / low > 1e3:
        return
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if high / low < 10 else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(10, subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
