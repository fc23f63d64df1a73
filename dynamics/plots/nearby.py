"""Nearby bad nets: what is predicted after a push, and where in a net the gradient of an output's mean sits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DynamicsError
from .style import ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 60
COLORS = ("0.5", "C2", "C0", "C1", "C3", "C4")


def plot_pushed(
    nets: Mapping[str, Mapping[str, Sequence[Any]]], *, limit: float = 2.0, title: str | None = None
) -> Figure:
    """What nets say after pushes towards each class: a column for each net, margins above, the loss below; a Figure.

    nets: {net: {push: [Pushed, one a seed]}}, as `curvature.nearby.push` makes them, the same pushes for every net and
    the first of them none at all. Above: densities of logit k less the largest of the others, over images, classes k
    and seeds, between ±limit. Below: the rise of the loss over the first push, the mean as a bar and a dot for each
    seed. Raises DynamicsError for nets without pushes, or with different ones.
    """
    kinds = {tuple(pushes) for pushes in nets.values()}
    if len(kinds) != 1 or not 0 < len(min(kinds)) <= len(COLORS):
        raise DynamicsError(f"plot_pushed needs the same pushes for every net, 1 to {len(COLORS)} of them")
    import matplotlib.pyplot as plt

    (names,) = kinds
    figure, axes = plt.subplots(
        2, len(nets), figsize=(0.9 + 3.2 * len(nets), 5.8), layout="constrained", height_ratios=(3, 2), squeeze=False
    )
    edges = np.linspace(-limit, limit, BINS + 1)
    for j, (net, pushes) in enumerate(nets.items()):
        above, below = axes[:, j]
        start = np.array([float(p.loss.mean()) for p in pushes[names[0]]])
        for i, (name, found) in enumerate(pushes.items()):
            margins = np.concatenate([np.asarray(p.margin, dtype=float).ravel() for p in found])
            density = np.histogram(margins, edges)[0] / len(margins) / (edges[1] - edges[0])
            line = {"ls": ":", "lw": 2.0, "zorder": 3} if i == 0 else {"lw": 1.4}
            above.stairs(density, edges, color=COLORS[i], label=name, **line)
            rise = np.array([float(p.loss.mean()) for p in found]) - start
            below.bar(i, rise.mean(), color=COLORS[i])
            below.plot([i] * len(rise), rise, ".", color=ink())
        above.axvline(0, lw=0.8, color=ink())
        above.set(xlabel="logit k less the largest other", yticks=[], title=net)
        below.set(xticks=[])
    highest = max(ax.get_ylim()[1] for ax in axes[1])
    lowest = min(ax.get_ylim()[0] for ax in axes[1])
    for ax in axes[1]:
        ax.set_ylim(lowest, highest)
        ax.tick_params(labelleft=ax is axes[1, 0])
    axes[0, 0].set_ylabel("share of images (density)")
    axes[1, 0].set_ylabel("rise of the loss")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize="small"
    )
    figure.suptitle(title or "What is predicted after a push towards each class")
    return figure


def plot_layer_squares(
    nets: Mapping[str, Any], layers: Sequence[str], *, published: Mapping[str, Sequence[float]] | None = None,
    title: str | None = None,
) -> Figure:  # fmt: skip
    """Squared gradients layer by layer: a panel for each net, the mean of seeds as bars, a dot for each; a Figure.

    nets: {net: values [seed, layer]}. published: values by layer of some of the nets, drawn as circles. Raises
    DynamicsError for values of another number of layers.
    """
    values = {net: np.atleast_2d(np.asarray(of, dtype=float)) for net, of in nets.items()}
    given = [np.shape(of)[-1] for of in [*values.values(), *(published or {}).values()]]
    if not values or set(given) != {len(layers)}:
        raise DynamicsError(f"plot_layer_squares needs values of the {len(layers)} layers it names, got {given}")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(values), figsize=(0.8 + 2.6 * len(values), 3.9), layout="constrained", sharey=True, squeeze=False
    )
    places = np.arange(len(layers))
    for ax, (net, of) in zip(axes[0], values.items(), strict=True):
        ax.bar(places, of.mean(0), color="C0", alpha=0.8, label="here, mean of seeds")
        ax.plot(np.tile(places, (len(of), 1)).T, of.T, ".", color=ink(), ms=4)
        if published and net in published:
            ax.plot(places, published[net], "o--", lw=1, color="C1", mfc="none", label="published, width 64")
        ax.set_title(f"{net}: {of.sum(1).mean():.2g} in all", fontsize="medium")
        ax.set_xticks(places, layers, rotation=90)
    axes[0, 0].set(yscale="log", ylabel="squared gradient of a mean")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.suptitle(title or "Where the gradient of an output's mean sits")
    return figure
