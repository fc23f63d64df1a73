from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use("agg")

import matplotlib.pyplot as plt

from dynamics.errors import DynamicsError
from dynamics.plots.channels import BINS, MOST_CHANNELS, plot_channels


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def outputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def columns(figure, panel: int) -> np.ma.MaskedArray:
    """[bin, column] of the n-th panel."""
    return figure.axes[2 * panel].collections[0].get_array().reshape(BINS, -1)


def test_a_column_is_its_channels_histogram_over_its_own_peak_in_the_order_of_means():
    x = outputs(200, 5) * torch.tensor([1.0, 0.1, 2.0, 0.5, 1.0]) + torch.tensor([0.0, 3.0, -1.0, 1.0, -2.0])
    drawn = columns(plot_channels({"net": {"layer": x}}, limit=4), 0)
    edges = [-4 + 8 * i / BINS for i in range(BINS + 1)]
    order = sorted(range(5), key=lambda c: float(x[:, c].double().mean()))
    for place, channel in enumerate(order):
        count = [sum(low <= v < high for v in x[:, channel].tolist()) for low, high in pairwise(edges)]
        expected = np.array(count) / max(count)
        np.testing.assert_allclose(drawn[:, place].filled(0), np.where(expected < 0.02, 0, expected))


def test_the_outline_counts_all_channels_together():
    x = outputs(50, 3, 4, 4)
    figure = plot_channels({"net": {"layer": x}}, limit=2)
    counts = figure.axes[1].patches[0].get_data().values
    np.testing.assert_array_equal(counts, np.histogram(x.numpy().ravel(), np.linspace(-2, 2, BINS + 1))[0])


def test_channels_are_axis_1_and_positions_count_like_samples():
    x = outputs(20, 3, 4, 5)
    flat = x.permute(0, 2, 3, 1).reshape(-1, 3)
    one, other = (columns(plot_channels({"net": {"layer": v}}, limit=3), 0) for v in (x, flat.numpy()))
    np.testing.assert_array_equal(one.filled(0), other.filled(0))


def test_a_constant_channel_is_one_bin_and_many_channels_are_thinned():
    constant = torch.linspace(-1, 1, 1000).repeat(8, 1)
    drawn = columns(plot_channels({"net": {"layer": constant}}, limit=1.5), 0)
    assert drawn.shape == (BINS, MOST_CHANNELS)
    assert (np.ma.count(drawn, axis=0) == 1).all()
    assert (np.diff(drawn.filled(0).argmax(0)) >= 0).all()


def test_rows_are_nets_and_panels_layers_on_one_scale():
    row = {"layer 1": outputs(30, 4), "layer 2": 3 * outputs(30, 4, seed=1)}
    figure = plot_channels({"ReLU": row, "linear": row}, title="said")
    panels = figure.axes[::2]
    assert [ax.get_title() for ax in panels] == ["layer 1", "layer 2"] * 2
    assert [ax.get_ylabel() for ax in panels] == ["ReLU", "", "linear", ""]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert panels[0].get_ylim()[1] == pytest.approx(1.05 * np.quantile(np.abs(row["layer 2"].double().numpy()), 0.999))
    assert figure.get_suptitle() == "said"


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_it_draws_in_both_themes_and_constant_zeros_too(style):
    with plt.style.context(style):
        plot_channels({"net": {"layer": torch.zeros(4, 2)}}).canvas.draw()


@pytest.mark.parametrize(
    ("nets", "message"),
    [
        ({}, "given no layers"),
        ({"net": {}}, "given no layers"),
        ({"a": {"x": torch.zeros(2, 2)}, "b": {}}, "as many layers for every net"),
        ({"a": {"x": torch.zeros(5)}}, r"a, x: outputs have shape \[5\]"),
        ({"a": {"x": torch.zeros(0, 3)}}, r"shape \[0, 3\]"),
        ({"a": {"x": torch.full((2, 2), torch.nan)}}, "a, x: outputs have nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_no_figure(nets, message):
    with pytest.raises(DynamicsError, match=message):
        plot_channels(nets)
    assert not plt.get_fignums()
