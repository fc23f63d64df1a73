"""Activations of a run on a fixed batch: moments by channel, their drift, and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DynamicsError, unknown
from ..runs import Run
from ..runs.drift import REFERENCES, drift
from .given import as_runs, channels_of, is_run, one_run, pick_layers, read
from .style import (
    by_depth,
    draw_channels,
    finish,
    ink,
    is_dark,
    label_of,
    new_axes,
    on_lines,
    outside_legend,
    points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOMENTS = ("mean", "variance", "skew")
DRIFTS = ("mean", "log_sd", "skew")
DECADES = 4.0
"""How far below the highest density a histogram's colours reach."""
PANELS_A_ROW = 9


def plot_moments(
    run: Run, ax: Axes | None = None, *, name: str = "moments", variable: str = "mean",
    layers: Sequence[str] | None = None,
) -> Axes:  # fmt: skip
    """Moments of every channel's activations over steps: a thin line for each channel, coloured by layer.

    name: under which the readings of `moments` are kept. variable: mean, variance or skew. Raises DynamicsError for
    readings, variables or layers that are not there.
    """
    readings = _by_channel(one_run(run, "plot_moments", "its lines are channels, not seeds"), name)
    if variable not in readings.data_vars:
        raise unknown("moment", variable, map(str, readings.data_vars))
    names = pick_layers(readings.channel_layer.values, layers)
    ax = draw_channels(new_axes(ax), readings[variable], names)
    label = label_of(readings, variable, f"{variable} of a channel")
    return finish(ax, label, f"Activations: {variable} of every channel", log=variable == "variance")


def plot_drift(
    run: Run | Mapping[str, Run], ax: Axes | None = None, *, name: str = "moments", variable: str = "mean",
    since: str = "first", layers: Sequence[str] | None = None, log: bool = True, log_steps: bool = False,
) -> Axes | np.ndarray:  # fmt: skip
    """How far the activations' distributions have moved, by layer: the median over channels of |shift|, with the band
    between quartiles (Page's post 7 calls this internal covariate shift).

    run: one, or a dict label -> run, drawn side by side on one scale; then an array of Axes is returned, and `ax`, if
    given, is such an array. variable: mean, log_sd or skew, as `drift` defines them; since: "first" or "previous"
    reading. log: shifts on a logarithmic axis, without the first reading's zeros, since layers differ by orders of
    magnitude. log_steps: steps on one too (linear below 1). Raises DynamicsError for what is not there, and
    for a single reading.
    """
    if variable not in DRIFTS:
        raise unknown("drift", variable, DRIFTS)
    if since not in REFERENCES:
        raise unknown("reference", since, REFERENCES)
    several = isinstance(run, Mapping) and not is_run(run)
    if several and not run:
        raise DynamicsError("plot_drift was given no runs: pass a Run, or a dict label -> Run")
    runs = as_runs(run.values() if several else run)
    if not several and len(runs) > 1:
        raise DynamicsError("plot_drift takes several runs as a dict label -> Run, which it draws side by side")
    shifts = [drift(_by_channel(r, name), since=since)[variable] for r in runs]
    names = [pick_layers(s.channel_layer.values, layers) for s in shifts]
    # a layer has one colour in all panels, and one legend tells them all, also where nets differ in their layers
    longest = max(names, key=len)
    colors = by_depth([*longest, *dict.fromkeys(n for of_run in names for n in of_run if n not in longest)])
    panels = _side_by_side(ax, len(runs)) if several else [new_axes(ax)]
    for panel, shift, of_run in zip(panels, shifts, names, strict=True):
        _draw_shifts(panel, shift, {n: colors[n] for n in of_run}, log=log)
    _scale_shifts(panels, log=log, log_steps=log_steps)
    size = variable.replace("_", " ")
    label = f"|shift of {size}|{', in its sd' if variable == 'mean' else ''}: median, quartiles"
    if not several:
        return finish(panels[0], label, f"Drift of channels' {size} since the {since} reading")
    for i, (panel, title) in enumerate(zip(panels, run, strict=True)):
        finish(panel, "" if i else label, str(title), legend=False)
    for name in colors.keys() - set(names[-1]):
        panels[-1].plot([], [], color=colors[name], label=name)
    outside_legend(panels[-1], key=list(colors).index)
    return panels


def plot_histograms(
    run: Run, *, name: str = "histograms", step: int | None = None, layers: Sequence[str] | None = None,
    channels: int | Sequence[int] | None = None, sort: bool = True,
) -> Figure:  # fmt: skip
    """Histograms of every channel's activations at one step: a panel for each layer in order of depth, channels along
    it, values up, density as colour; returns the Figure.

    The scale of values is shared, and density is per unit of value and logarithmic, so that both a channel that has
    collapsed to a spike and a thin tail are seen (Page's post 7). Triangles mark channels with values beyond the
    histogram's range. name: under which the readings of `histograms` are kept. step: one that was read, the last by
    default. channels: how many of each layer's, or which; all by default. sort: channels by their median, or by index.
    Raises DynamicsError for what is not there.
    """
    readings = _by_channel(
        one_run(run, "plot_histograms", "draw several one after another"), name, "count", "below", "above"
    )
    known = readings.step.values.tolist()
    step = known[-1] if step is None else step
    if step not in known:
        nearest = min(known, key=lambda s: abs(s - step)) if isinstance(step, int | float) else known[-1]
        raise DynamicsError(f"no histograms were read at step {step!r}: the nearest is step={nearest}")
    here = readings.sel(step=step)
    names = pick_layers(here.channel_layer.values, layers)
    parts = [here.isel(channel=_chosen(channels_of(here, layer), channels, layer)) for layer in names]
    return _histogram_page(parts, names, here.edge.values.astype(float), step, sort)


def _by_channel(run: Any, name: str, *variables: str) -> Any:
    readings = read(run, name, *variables)
    if "channel_layer" not in readings.coords:
        raise DynamicsError(f"the readings {name!r} are not by channel: name= is that of a probe of activations")
    if not readings.sizes["channel"]:
        raise DynamicsError(f"the readings {name!r} have no channels: name layers of this net in the probe")
    return readings


def _side_by_side(axes: Any, n: int) -> np.ndarray:
    if axes is None:
        import matplotlib.pyplot as plt

        size = (2.6 + 2.8 * n, 4.2)
        return plt.subplots(1, n, figsize=size, layout="constrained", sharey=True, squeeze=False)[1][0]
    axes = np.ravel(np.asarray(axes, dtype=object))
    if len(axes) != n:
        raise DynamicsError(
            f"plot_drift was given {len(axes)} axes for {n} runs: pass plt.subplots(1, {n})[1], or none"
        )
    return axes


def _draw_shifts(ax: Axes, shift: Any, colors: Mapping[str, Any], *, log: bool) -> None:
    steps = shift.step.values
    for layer, color in colors.items():
        values = np.abs(shift.values[:, channels_of(shift, layer)])
        # a channel that never varies has no scale to measure its shift in
        seen = np.isfinite(values).any(1)
        low, middle, high = np.nanquantile(values[seen], (0.25, 0.5, 0.75), axis=1) if seen.any() else np.empty((3, 0))
        if log:
            low, middle, high = (np.where(middle > 0, v, np.nan) for v in (low, middle, high))
        ax.plot(steps[seen], middle, color=color, lw=1.4, label=layer, **points(steps[seen]))
        ax.fill_between(steps[seen], low, high, color=color, alpha=0.2, lw=0)


def _scale_shifts(axes: Sequence[Axes], *, log: bool, log_steps: bool) -> None:
    """One scale for all panels."""
    drawn = np.concatenate([line.get_ydata() for ax in axes for line in ax.get_lines()])
    drawn = drawn[drawn > 0]
    low, high = (drawn.min(), drawn.max()) if len(drawn) else (0.1, 1.0)
    tops = [ax.get_ylim()[1] for ax in axes]
    for ax in axes:
        if log:
            ax.set_yscale("log")
        # quartiles may be zero, and would take a logarithmic axis down without end
        ax.set_ylim(*((max(low / 1.5, high / 1e4), high * 3) if log else (0, max(tops))))
    if log_steps and len(drawn):
        shown = [line.get_xdata()[np.asarray(line.get_ydata()) >= 0] for ax in axes for line in ax.get_lines()]
        first, last = np.concatenate(shown).min(), np.concatenate(shown).max()
        for ax in axes:
            ax.set_xscale("log") if first > 0 else ax.set_xscale("symlog", linthresh=1.0, linscale=0.3)
            ax.set_xlim(first, last * 1.05 if last > first else None)


def _chosen(of_layer: np.ndarray, channels: int | Sequence[int] | None, layer: str) -> np.ndarray:
    if channels is None:
        return of_layer
    wanted = range(channels) if isinstance(channels, int) else channels
    wanted = [c for c in wanted if not isinstance(channels, int) or c < len(of_layer)]
    if not wanted or any(not isinstance(c, int | np.integer) or not 0 <= c < len(of_layer) for c in wanted):
        known = f"{layer} has channels 0 to {len(of_layer) - 1}"
        raise DynamicsError(f"{known}, not {channels!r}: pass how many, or a list of their indices")
    return of_layer[wanted]


def _histogram_page(parts: list[Any], names: list[str], edges: np.ndarray, step: int, sort: bool) -> Figure:
    import matplotlib.pyplot as plt
    from matplotlib.cm import ScalarMappable

    columns = min(len(parts), PANELS_A_ROW)
    rows = -(-len(parts) // columns)
    columns = -(-len(parts) // rows)
    densities = [_density(part, edges) for part in parts]
    low, high = _value_range(parts, edges)
    norm, colors = _density_scale(densities)
    # the colour bar has a column of its own: beside axes of which the last row lacks some, it would not fit
    figure = plt.figure(figsize=(1.9 + 1.05 * max(columns, 5), 0.6 + 3.1 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1.0] * columns + [0.03 * max(columns, 5)])
    axes: list[Axes] = []
    for i in range(len(parts)):
        axes.append(figure.add_subplot(grid[divmod(i, columns)], sharey=axes[0] if axes else None))
    marked = False
    for ax, part, density, name in zip(axes, parts, densities, names, strict=True):
        order = _by_median(density * np.diff(edges)) if sort else np.arange(len(density))
        shown = np.ma.masked_less_equal(density[order].T, 0)
        ax.pcolormesh(np.arange(len(density) + 1), edges, shown, norm=norm, cmap=colors, rasterized=True)
        for counts, place, marker in ((part.above, high, "^"), (part.below, low, "v")):
            beyond = np.flatnonzero(counts.values[order] > 0)
            if len(beyond):
                marked, size = True, 3.5 if len(density) <= 32 else 2.0
                at = np.full(len(beyond), place)
                ax.plot(beyond + 0.5, at, marker, color=ink(), ms=size, clip_on=False, zorder=3)
        ax.set_title(on_lines(name), fontsize="small")
        ax.set(xlim=(0, len(density)), ylim=(low, high), xticks=[])
        ax.set_xlabel(f"{len(density)} channels", fontsize="small")
    value = "standardised activation" if parts[0]["count"].attrs.get("standardised") else "activation"
    for i, ax in enumerate(axes):
        ax.tick_params(labelleft=i % columns == 0)
        ax.set_ylabel(value if i % columns == 0 else "")
    bar = figure.add_subplot(grid[:, -1])
    figure.colorbar(ScalarMappable(norm, colors), cax=bar, label=f"density per unit of {value}")
    note = "; ▲▼ values beyond the range" if marked else ""
    figure.suptitle(f"Activations of every channel at step {step}{note}")
    return figure


def _density(part: Any, edges: np.ndarray) -> np.ndarray:
    """[channel, bin] per unit of value; what was clipped counts in the total."""
    count = part["count"].transpose("channel", "bin").values.astype(float)
    total = count.sum(1) + part["below"].values + part["above"].values
    return count / np.maximum(total, 1)[:, None] / np.diff(edges)


def _value_range(parts: list[Any], edges: np.ndarray) -> tuple[float, float]:
    """The range of bins in which anything was seen; up to the end where something lies beyond it."""
    seen = np.flatnonzero(np.sum([p["count"].transpose("channel", "bin").values.sum(0) for p in parts], axis=0))
    first, last = (seen[0], seen[-1] + 1) if len(seen) else (0, len(edges) - 1)
    first = 0 if any((p["below"].values > 0).any() for p in parts) else first
    last = len(edges) - 1 if any((p["above"].values > 0).any() for p in parts) else last
    return float(edges[first]), float(edges[last])


def _density_scale(densities: list[np.ndarray]) -> tuple[Any, Any]:
    """Colours away from the paper's with density: dark on light paper and light on dark, in print and on a screen."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap, LogNorm

    seen = np.concatenate([d[d > 0] for d in densities])
    top, bottom = (seen.max(), seen.min()) if len(seen) else (1.0, 0.1)
    bottom = min(max(bottom, top / 10**DECADES), top / 10)
    viridis = mpl.colormaps["viridis"]
    span = np.linspace(0.12, 1.0, 256) if is_dark() else np.linspace(0.95, 0.0, 256)
    return LogNorm(bottom, top), ListedColormap(viridis(span))


def _by_median(mass: np.ndarray) -> np.ndarray:
    """Channels by the bin that half of what was seen lies below; [channel, bin] -> order."""
    total = np.cumsum(mass, axis=1)
    half = np.argmax(total >= 0.5 * total[:, -1:], axis=1)
    centre = (mass * np.arange(mass.shape[1])).sum(1) / np.maximum(total[:, -1], 1e-300)
    return np.lexsort((centre, half))
