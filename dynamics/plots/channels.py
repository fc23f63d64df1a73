"""Distributions of single channels against that of all of them together, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DynamicsError
from .style import ink, is_dark, on_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 60
MOST_CHANNELS = 100
"""More channels than these are thinned evenly, in their order by mean: narrower columns cannot be told apart."""


def plot_channels(
    nets: Mapping[str, Mapping[str, Any]], *, limit: float | None = None, title: str | None = None
) -> Figure:
    """Histograms of every channel with depth: a row of panels for each net, a panel for each layer; returns the Figure.

    In a panel each channel is a column, sorted by mean, dark where its values lie, each on its own scale. The outline
    beside a panel is the histogram of all its channels together. nets: {label: {layer: outputs [B, C, ...]}}, tensors
    or arrays, such as `outputs` returns, with as many layers for every net. limit: values from -limit to limit are
    shown; by default all but one in a thousand of each panel's are.
    Raises DynamicsError for nothing to draw, rows that differ in length, values that are not finite and tensors
    without channels. Source: the histograms by channel of Page's post 7, who draws ten channels as curves.
    """
    rows = {name: {k: _by_channel(v, f"{name}, {k}") for k, v in row.items()} for name, row in nets.items()}
    sizes = {len(row) for row in rows.values()}
    if not rows or sizes == {0}:
        raise DynamicsError("plot_channels was given no layers: pass {'a net': {'a layer': outputs}}")
    if len(sizes) > 1:
        raise DynamicsError("plot_channels needs as many layers for every net: draw the nets one after another")
    import matplotlib.pyplot as plt

    columns = sizes.pop()
    if limit is None:
        panels = [values for row in rows.values() for values in row.values()]
        limit = 1.05 * max(float(np.quantile(np.abs(values), 0.999)) for values in panels) or 1.0
    edges = np.linspace(-limit, limit, BINS + 1)
    figure = plt.figure(figsize=(0.8 + 1.5 * columns, 0.7 + 2.1 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), 2 * columns, width_ratios=[4, 1] * columns)
    for i, (name, row) in enumerate(rows.items()):
        for j, (layer, values) in enumerate(row.items()):
            panel, side = (figure.add_subplot(grid[i, 2 * j + k]) for k in (0, 1))
            _draw_columns(panel, values, edges)
            _draw_outline(side, values, edges)
            panel.set_title(on_lines(layer), fontsize="small")
            panel.tick_params(labelleft=j == 0)
            if i == len(rows) - 1:
                panel.set_xlabel(f"{len(values)} channels", fontsize="small")
        figure.axes[2 * i * columns].set_ylabel(name)
    figure.suptitle(title or "Channels one by one (columns) and all together (outline)")
    return figure


def _by_channel(values: Any, where: str) -> np.ndarray:
    """[B, C, ...] -> [C, values], sorted by mean."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or not array.size:
        raise DynamicsError(f"{where}: outputs have shape {list(array.shape)}: pass [batch, channels, ...]")
    if not np.all(np.isfinite(array)):
        raise DynamicsError(f"{where}: outputs have nan or infinite entries: draw layers before these")
    rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
    return rows[np.argsort(rows.mean(1), kind="stable")]


def _draw_columns(ax: Axes, rows: np.ndarray, edges: np.ndarray) -> None:
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    shown = rows[np.unique(np.linspace(0, len(rows) - 1, MOST_CHANNELS).round().astype(int))]
    counts = np.stack([np.histogram(row, edges)[0] for row in shown]).astype(float)
    height = counts / np.maximum(counts.max(1, keepdims=True), 1)
    # as in plot_histograms: away from the paper's colour with density
    span = np.linspace(0.12, 1.0, 256) if is_dark() else np.linspace(0.95, 0.0, 256)
    colors = ListedColormap(mpl.colormaps["viridis"](span))
    masked = np.ma.masked_less(height.T, 0.02)
    ax.pcolormesh(np.arange(len(shown) + 1), edges, masked, vmin=0, vmax=1, cmap=colors, rasterized=True)
    ax.set(xlim=(0, len(shown)), ylim=(edges[0], edges[-1]), xticks=[])


def _draw_outline(ax: Axes, rows: np.ndarray, edges: np.ndarray) -> None:
    counts = np.histogram(rows, edges)[0]
    ax.stairs(counts, edges, orientation="horizontal", color=ink(), lw=1.0)
    ax.stairs(counts, edges, orientation="horizontal", color=ink(), fill=True, alpha=0.15)
    ax.set(ylim=(edges[0], edges[-1]), xlim=(0, None))
    ax.axis("off")
