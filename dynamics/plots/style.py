"""How plots look: ink and colours of the theme, axes, lines along depth, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .given import channels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 20
"""More layers than these do not fit beside an axes: then every second, third ... is named."""


def new_axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.2), layout="constrained")[1]


def ink() -> Any:
    """The theme's colour of text."""
    import matplotlib as mpl

    return mpl.rcParams["text.color"]


def is_dark() -> bool:
    """Whether the theme draws on dark paper."""
    import matplotlib as mpl
    from matplotlib.colors import to_rgb

    # a transparent face, as some notebook themes have, says nothing: then pale text means dark paper
    paper = mpl.rcParams["axes.facecolor"]
    if paper == "none":
        return bool(np.dot(to_rgb(ink()), (0.3, 0.59, 0.11)) > 0.5)
    return bool(np.dot(to_rgb(paper), (0.3, 0.59, 0.11)) < 0.5)


def by_depth(names: Sequence[str]) -> dict[str, Any]:
    """The colour of each layer."""
    return dict(zip(names, depth_colors(len(names)), strict=True))


def depth_colors(n: int) -> Any:
    import matplotlib as mpl

    # the ends of the map are too pale for one theme and too dark for the other
    return mpl.colormaps["viridis"](np.linspace(*((0.25, 1.0) if is_dark() else (0.05, 0.88)), n))


def points(steps: Any) -> dict[str, Any]:
    """A line through one reading alone would not be seen."""
    return {"marker": "o", "ms": 4} if len(steps) == 1 else {}


def draw_layers(ax: Axes, readings: list[Any], names: Sequence[str]) -> Axes:
    """A line for each layer [step, layer]: the mean of several readings, with the band of all."""
    for name, color in by_depth(names).items():
        values = np.stack([r.sel(layer=name).values for r in readings])
        ax.plot(readings[0].step, values.mean(0), color=color, lw=1.2, label=name, **points(readings[0].step))
        if len(values) > 1:
            ax.fill_between(readings[0].step, values.min(0), values.max(0), color=color, alpha=0.25, lw=0)
    return ax


def draw_channels(ax: Axes, values: Any, names: Sequence[str]) -> Axes:
    """A thin line for each channel [step, channel], coloured by its layer."""
    for name, color in by_depth(names).items():
        part = values.isel(channel=channels_of(values, name))
        lines = ax.plot(part.step, part.values, color=color, lw=0.7, alpha=0.5, **points(part.step))
        lines[0].set_label(name)
    return ax


def draw_predictions(ax: Axes, expected: list[Any], names: Sequence[str]) -> None:
    """Predictions, the mean of the runs' own, dashed over the lines; one that all layers share is one line."""
    # weights whose lr was not recorded have no prediction
    names = [n for n in names if expected and n in expected[0].layer.values]
    if not names:
        return
    curves = np.mean([e.sel(layer=names).values.T for e in expected], axis=0)
    shared = np.allclose(curves, curves[:1], rtol=1e-9, atol=0, equal_nan=True)
    for i, curve in enumerate(curves[:1] if shared else curves):
        ax.plot(expected[0].step, curve, ls="--", lw=1.3, color=ink(), label="_" if i else "predicted")


def finish(ax: Axes, ylabel: str, title: str, *, xlabel: str = "step", log: bool = False, legend: bool = True) -> Axes:
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title)
    if log:
        ax.set_yscale("log")
    return outside_legend(ax) if legend else ax


def outside_legend(ax: Axes, *, key: Callable[[str], Any] | None = None) -> Axes:
    """A legend right of the axes, its lines thick enough to tell their colours; sorted by key(label) where given."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return ax
    if key:
        labels, handles = zip(*sorted(zip(labels, handles, strict=True), key=lambda pair: key(pair[0])), strict=True)
    if len(labels) > MOST_NAMED:
        every = -(-len(labels) // MOST_NAMED)
        keep = sorted({*range(0, len(labels), every), len(labels) - 1})
        handles, labels = [handles[i] for i in keep], [labels[i] for i in keep]
    legend = ax.legend(
        handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False
    )  # fmt: skip
    for line in legend.get_lines():
        line.set(alpha=1.0, linewidth=1.8)
    return ax


def on_lines(name: str, width: int = 12) -> str:
    """A module path broken at its dots, to stand above a narrow panel."""
    lines = [""]
    for part in name.replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False))


def label_of(readings: Any, variable: str, otherwise: str) -> str:
    """What the readings call a variable, with its unit."""
    attrs: Mapping[str, Any] = readings[variable].attrs
    units = attrs.get("units", "1")
    return f"{attrs.get('long_name', otherwise)}{'' if units in ('1', '') else f' ({units})'}"
