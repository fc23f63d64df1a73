from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use("agg")

import matplotlib.pyplot as plt

from dynamics.curvature.nearby import Pushed
from dynamics.errors import DynamicsError
from dynamics.plots.nearby import BINS, plot_layer_squares, plot_pushed


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def pushed(loss: float, seed: int = 0) -> Pushed:
    margin = 2 * torch.randn(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Pushed((margin > 0).double().mean(1), torch.tensor([loss - 0.5, loss, loss + 0.5]), margin)


def test_a_push_is_drawn_as_the_density_of_its_margins_over_all_images():
    one, other = pushed(1.0), pushed(1.0, seed=1)
    axes = plot_pushed({"net": {"start": [one, other], "1 %": [one]}}, limit=1.5).axes
    margins = torch.cat([one.margin.flatten(), other.margin.flatten()]).tolist()
    width = 3 / BINS
    counts = np.zeros(BINS)
    for m in margins:
        if -1.5 <= m < 1.5:
            counts[int((m + 1.5) // width)] += 1
    assert counts.sum() < len(margins)
    np.testing.assert_allclose(axes[0].patches[0].get_data().values, counts / len(margins) / width)


def test_the_rise_of_the_loss_is_over_that_without_a_push_seed_by_seed():
    pushes = {"start": [pushed(1.0), pushed(2.0)], "1 %": [pushed(1.5), pushed(4.5)]}
    figure = plot_pushed({"a": pushes, "b": pushes}, title="message")
    assert figure.get_suptitle() == "message"
    assert [ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    below = figure.axes[2]
    np.testing.assert_allclose([bar.get_height() for bar in below.patches], [0.0, 1.5], atol=1e-6)
    np.testing.assert_allclose(below.lines[1].get_ydata(), [0.5, 2.5], atol=1e-6)
    assert below.get_ylim() == figure.axes[3].get_ylim()


def test_pushes_that_differ_between_nets_are_refused():
    for nets in ({}, {"a": {}}, {"a": {"start": [pushed(1.0)]}, "b": {"1 %": [pushed(1.0)]}}):
        with pytest.raises(DynamicsError, match="same pushes"):
            plot_pushed(nets)


def test_squares_are_drawn_as_means_dots_and_published_circles():
    values = np.array([[1.0, 4.0], [3.0, 8.0]])
    figure = plot_layer_squares({"a": values, "b": values[:1]}, ["one", "two"], published={"a": [5.0, 6.0]})
    left, right = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in left.patches], [2.0, 6.0])
    np.testing.assert_allclose([line.get_ydata() for line in left.lines[:2]], values)
    np.testing.assert_allclose(left.lines[2].get_ydata(), [5.0, 6.0])
    assert len(right.lines) == 1 and left.get_yscale() == "log"
    assert left.get_title() == "a: 8 in all"
    assert [t.get_text() for t in left.get_xticklabels()] == ["one", "two"]


def test_values_of_other_layers_are_refused():
    for nets, published in (({}, None), ({"a": [[1.0]]}, None), ({"a": [[1.0, 2.0]]}, {"a": [1.0]})):
        with pytest.raises(DynamicsError, match="layers it names"):
            plot_layer_squares(nets, ["one", "two"], published=published)
