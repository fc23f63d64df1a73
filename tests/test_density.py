"""Densities and traces against dense spectra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import stdtrit

from dynamics.curvature.density import spectral_density
from dynamics.curvature.trace import trace
from dynamics.errors import DynamicsError


class Dense:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, tuple(matrix.shape), matrix.dtype, matrix.device
        self.products = 0

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.matrix @ v

    def matmat(self, v: torch.Tensor) -> torch.Tensor:
        self.products += v.shape[1]
        return self.matrix @ v


def rotated(values: np.ndarray, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw, dtype=torch.float64))[0]
    return ((q * torch.from_numpy(values)) @ q.T).to(dtype)


BULK = np.concatenate([np.linspace(-1, 1, 290), [4, 5, 6, 7, 8, 9, 9.5, 10, 11, 12.0]])


def test_the_density_integrates_to_one_and_has_the_moments_of_its_nodes() -> None:
    op = Dense(rotated(BULK))
    d = spectral_density(op, probes=6, steps=60, progress=False)
    assert d.products == op.products == 360
    grid, density = d.grid.numpy(), d.density.numpy()
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    mean = float((d.weights * d.nodes).sum() / 6)
    square = float((d.weights * d.nodes**2).sum() / 6)
    assert np.trapezoid(density * grid, grid) == pytest.approx(mean, abs=1e-5)
    assert np.trapezoid(density * grid**2, grid) == pytest.approx(square + d.width**2, abs=1e-4)
    assert d.width == pytest.approx((12 + 1) / 100, rel=1e-3), "1 % of the range"


def test_a_quadrature_has_the_moments_of_its_probe_up_to_twice_the_steps() -> None:
    matrix = rotated(BULK)
    d = spectral_density(Dense(matrix), probes=1, steps=5, seed=4, progress=False)
    from dynamics.curvature.krylov import random_vector

    v = random_vector(Dense(matrix), 4, "density", 0)
    v = v / v.norm()
    for power in range(10):
        exact = float(v @ torch.linalg.matrix_power(matrix, power) @ v)
        assert float((d.weights * d.nodes**power).sum()) == pytest.approx(exact, rel=1e-10)


def test_the_mean_over_probes_has_the_moments_of_the_spectrum_within_its_spread() -> None:
    d = spectral_density(Dense(rotated(BULK)), probes=30, steps=40, progress=False)
    for power in (1, 2, 3):
        each = (d.weights * d.nodes**power).sum(1)
        error = float(each.std() / 30**0.5)
        assert abs(float(each.mean()) - np.mean(BULK**power)) < 3 * error
        assert error < 0.2 * abs(np.mean(BULK**power))


def test_the_density_equals_the_smoothed_spectrum_within_its_spread() -> None:
    d = spectral_density(Dense(rotated(BULK)), probes=30, steps=120, width=0.3, progress=False)
    grid = d.grid.numpy()
    exact = np.mean(np.exp(-0.5 * ((grid[:, None] - BULK) / 0.3) ** 2), 1) / (0.3 * np.sqrt(2 * np.pi))
    z = (d.density.numpy() - exact) / (d.spread.numpy() / 30**0.5 + 1e-6)
    assert np.mean(np.abs(z) < 2) > 0.8 and np.abs(z).max() < 5
    assert d.spread.max() > 1e-3
    assert d.width == 0.3


def test_exhausted_spaces_and_tiny_operators_have_exact_densities() -> None:
    few = np.array([3.0] + [0.0] * 99)
    d = spectral_density(Dense(rotated(few)), probes=2, steps=50, progress=False)
    assert d.products == 4 and d.weights.sum(1).tolist() == pytest.approx([1, 1])
    for matrix in (torch.eye(1), torch.zeros(5, 5), 2 * torch.eye(7, dtype=torch.float64)):
        d = spectral_density(Dense(matrix), probes=3, progress=False)
        assert np.trapezoid(d.density, d.grid) == pytest.approx(1, abs=1e-6)
        assert float(d.grid[d.density.argmax()]) == pytest.approx(float(matrix[0, 0]), abs=1e-6)


def test_density_and_trace_repeat_and_leave_the_global_generator() -> None:
    matrix = rotated(BULK)
    before = torch.random.get_rng_state()
    a, b = (spectral_density(Dense(matrix), probes=2, steps=10, seed=3, progress=False) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))
    other = spectral_density(Dense(matrix), probes=2, steps=10, seed=4, progress=False)
    assert not torch.equal(a.nodes, other.nodes)
    c, e = (trace(Dense(matrix), seed=3, progress=False) for _ in range(2))
    assert c.value == e.value and torch.equal(c.samples, e.samples)
    assert c.value != trace(Dense(matrix), seed=4, progress=False).value
    assert torch.equal(before, torch.random.get_rng_state())


def test_float32_operators_have_densities_and_traces() -> None:
    matrix = rotated(BULK, dtype=torch.float32)
    d = spectral_density(Dense(matrix), probes=3, steps=30, progress=False)
    e = spectral_density(Dense(matrix.double()), probes=3, steps=30, progress=False)
    assert (d.density - e.density).abs().max() < 1e-3 * e.density.max()
    value = trace(Dense(matrix), progress=False)
    assert value.value == pytest.approx(trace(Dense(matrix.double()), progress=False).value, abs=1e-3)


@pytest.mark.parametrize("kind", ["indefinite", "positive"])
def test_the_interval_of_the_trace_covers_in_nine_of_ten_trials(kind: str) -> None:
    values = BULK if kind == "indefinite" else np.abs(BULK)
    matrix = rotated(values)
    covered, errors, misses = 0, [], []
    for seed in range(200):
        t = trace(Dense(matrix), products=45, seed=seed, progress=False)
        miss = abs(t.value - values.sum())
        covered += miss <= stdtrit(len(t.samples) - 1, 0.975) * t.error
        errors.append(t.error)
        misses.append(miss)
    assert 180 <= covered <= 199, "an interval that always covers says too little"
    assert np.sqrt(np.mean(np.square(misses))) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.15)


def test_the_trace_beats_plain_sampling_where_few_eigenvalues_dominate() -> None:
    values = np.concatenate([[100, 80, -60, 50], np.linspace(-0.1, 0.1, 296)])
    matrix = rotated(values)
    t = trace(Dense(matrix), products=60, progress=False)
    assert t.products == 60 and abs(t.value - values.sum()) < 4 * t.error
    off = matrix - torch.diag(matrix.diagonal())
    plain = float((2 * off.square().sum() / 60) ** 0.5)  # the standard error of 60 probes of random signs
    assert t.error < plain / 10


def test_the_trace_of_low_rank_is_exact() -> None:
    values = np.array([5.0, -3.0, 2.0, 1.0] + [0.0] * 196)
    op = Dense(rotated(values))
    t = trace(op, products=18, progress=False)
    assert t.value == pytest.approx(5.0, abs=1e-11) and t.error < 1e-11
    assert t.products == op.products == 18


def test_the_trace_of_a_small_operator_is_summed() -> None:
    values = np.arange(20.0)
    t = trace(Dense(rotated(values)), products=20, progress=False)
    assert t.value == pytest.approx(190) and t.error == 0.0 and len(t.samples) == 0 and t.products == 20
    assert trace(Dense(torch.full((1, 1), -2.0)), progress=False).value == -2.0


def test_bad_arguments_are_refused_in_one_line() -> None:
    op = Dense(rotated(BULK))
    for call, message in [
        (lambda: spectral_density(op, probes=0), "probes must be"),
        (lambda: spectral_density(op, steps=-1), "steps must be"),
        (lambda: spectral_density(op, width=0.0), "width must be positive"),
        (lambda: trace(op, products=5), "at least 6 products"),
    ]:
        with pytest.raises(DynamicsError, match=message):
            call()
    nan = Dense(torch.full((100, 100), float("nan")))
    with pytest.raises(DynamicsError, match="not finite"):
        spectral_density(nan, progress=False)
    with pytest.raises(DynamicsError, match="not finite"):
        trace(nan, progress=False)
