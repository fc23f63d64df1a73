from __future__ import annotations

import numpy as np
import pytest
import torch

from dynamics.errors import DynamicsError
from dynamics.nets import ACTIVATIONS, FrozenNorm, capture_statistics
from dynamics.theory.depth import fixed_scale_map, product_stretch


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_P7_3_a_product_of_random_matrices_stretches_as_the_edge_of_the_law(layers):
    """Width 300, twins by SVD; the mean of the squares stays 1, so that the stretch is relative to it."""
    largest, squares = [], []
    for seed in range(2):
        draw = np.random.default_rng(seed)
        product = np.eye(300)
        for _ in range(layers):
            product = draw.standard_normal((300, 300)) / 300**0.5 @ product
        values = np.linalg.svd(product, compute_uv=False)
        largest.append(values[0])
        squares.append(np.mean(values**2))
    assert np.mean(largest) == pytest.approx(product_stretch(layers), rel=0.1)
    assert np.mean(squares) == pytest.approx(1, abs=0.05)


def test_P7_3_ten_times_at_layer_fifty_is_the_law():
    assert product_stretch([1, 2]) == pytest.approx([2, np.sqrt(27 / 4)])
    assert 11 < product_stretch(50) < 12
    assert product_stretch(10_000) == pytest.approx(np.sqrt(np.e * 10_000.5), rel=1e-4)


@pytest.mark.parametrize("square", [0.0, 0.3, 1.0, 1.2, 4.0, 100.0])
def test_the_scale_of_an_input_moves_as_an_integral_over_a_normal_says(square):
    """One neuron's pre-activation of variance 2 square, through the static shift and scale, by the trapezoid rule."""
    z = torch.linspace(-12, 12, 480_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5
    y = ACTIVATIONS["shifted_relu"]()(z * (2 * square) ** 0.5)
    assert fixed_scale_map(square) == pytest.approx(float(torch.trapezoid(y**2 * density, z)), abs=1e-7)


def test_the_scale_of_an_input_moves_alike_behind_frozen_statistics():
    """A wide layer whose norm captured inputs of scale 1 sees inputs of other scales."""
    torch.manual_seed(0)
    width = 512
    weight = torch.randn(width, width, dtype=torch.float64) * width**-0.5
    norm = torch.nn.Sequential(FrozenNorm(width, eps=0.0, scale=False, bias=False).double())
    capture_statistics(norm, torch.randn(4096, width, dtype=torch.float64).relu() @ weight.T)
    for square in (0.25, 1.0, 4.0, 25.0):
        x = torch.randn(256, width, dtype=torch.float64) * square**0.5
        assert float(norm(x.relu() @ weight.T).square().mean()) == pytest.approx(fixed_scale_map(square), rel=0.06)


def test_one_is_left_from_above_and_approached_from_below():
    low, high = np.array(0.2), np.array(1.05)
    for _ in range(400):
        low, high = fixed_scale_map(low), fixed_scale_map(high)
    assert 0.95 < low < 1 < 1e6 < high
    assert fixed_scale_map(1e12) / 1e12 == pytest.approx(np.pi / (np.pi - 1), rel=1e-5)
    assert (fixed_scale_map(1.0 + 1e-5) - fixed_scale_map(1.0)) / 1e-5 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: product_stretch([1, 0]), "layers must be positive"),
        (lambda: fixed_scale_map(-1), "must not be negative"),
    ],
)
def test_odd_arguments_are_refused(call, message):
    with pytest.raises(DynamicsError, match=message):
        call()
