"""Eigenpairs, subspaces and the oracle against dense float64 linear algebra."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from dynamics.curvature.eigen import residual_norms, top_eigenpairs
from dynamics.curvature.krylov import Krylov
from dynamics.curvature.oracle import pyhessian_eigenvalues, pyhessian_trace
from dynamics.curvature.subspaces import orthonormal, project_out, shares, subspace_overlap
from dynamics.errors import DynamicsError


class Dense:
    """A dense symmetric matrix as an operator that counts its products."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, tuple(matrix.shape), matrix.dtype, matrix.device
        self.products = 0

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        assert v.shape == (self.shape[0],)
        self.products += 1
        return self.matrix @ v

    def matmat(self, v: torch.Tensor) -> torch.Tensor:
        self.products += v.shape[1]
        return self.matrix @ v


class Coarse(Dense):
    """Products rounded to three digits, as bad arithmetic would."""

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return super().matvec(v).to(torch.bfloat16).to(self.dtype)


def with_spectrum(values: Sequence[float], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = torch.tensor(values, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw, dtype=torch.float64))[0]
    return ((q * values) @ q.T).to(dtype)


def outliers(n: int = 300) -> list[float]:
    """Ten outliers, a decaying bulk with a negative part, as a network's Hessian has."""
    bulk = 3 * (12 / np.arange(12, n + 2)) ** 1.0
    bulk[::3] *= -0.4
    return [22.5, 20.8, 18.1, 15.9, 15.0, 12.3, 10.5, 9.8, 8.9, 4.4, *bulk[: n - 10]]


SPECTRA = {
    "outliers": outliers(),
    "negative_dominant": [-x for x in outliers()],
    "repeated": sorted(outliers(149) * 2),
    "three_copies": [7.0, 7.0, 7.0, 5.0, 5.0, *np.linspace(-1, 1, 145)],
    "clustered": [1 + 1e-4 * i for i in range(8)] + list(np.linspace(-0.5, 0.5, 142)),
    "rank_deficient": [9.0, 4.0, -3.0] + [0.0] * 147,
}


def wanted(matrix: torch.Tensor, k: int, which: str) -> np.ndarray:
    values = np.linalg.eigvalsh(matrix.double().numpy())
    order = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    return values[np.argsort(order, kind="stable")[:k]]


def right(pairs, matrix: torch.Tensor, k: int, which: str, *, tol: float = 1e-8) -> None:
    expected = wanted(matrix, k, which)
    key = np.abs if which == "magnitude" else np.asarray  # ±λ may come in either order
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert pairs.vectors.shape == (len(matrix), k)
    assert np.abs(key(pairs.values.numpy()) - key(expected)).max() <= tol * max(norm, 1e-300)
    gram = pairs.vectors.T @ pairs.vectors
    assert (gram - torch.eye(k, dtype=gram.dtype)).abs().max() < 1e-10
    true = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert (pairs.residuals - true).abs().max() <= 1e-12 * norm, "the certificate is the true residual"
    assert pairs.converged.all()


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_equal_dense_ones(name: str, which: str) -> None:
    matrix = with_spectrum(SPECTRA[name])
    op = Dense(matrix)
    pairs = top_eigenpairs(op, 5, which=which, progress=False)
    right(pairs, matrix, 5, which)
    assert pairs.products == op.products


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_eigsh_gives_the_same_pairs(which: str) -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    op = Dense(matrix)
    pairs = top_eigenpairs(op, 5, which=which, solver="eigsh", progress=False)
    right(pairs, matrix, 5, which)
    assert pairs.products == op.products


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (7, 6), (80, 79), (80, 80), (90, 50), (90, 45)])
def test_k_near_the_dimension_is_solved(n: int, k: int, solver: str) -> None:
    matrix = with_spectrum(np.linspace(-1, 2, n))
    right(top_eigenpairs(Dense(matrix), k, solver=solver, progress=False), matrix, k, "largest")


def test_lanczos_may_use_up_the_whole_space() -> None:
    matrix = with_spectrum(np.linspace(-1, 2, 90))
    pairs = top_eigenpairs(Dense(matrix), 45, tol=1e-13, progress=False)
    right(pairs, matrix, 45, "largest")
    assert pairs.products <= 91


@pytest.mark.parametrize("n", [1, 5, 100])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_the_zero_operator_has_zero_eigenvalues(n: int, which: str) -> None:
    matrix = torch.zeros(n, n, dtype=torch.float64)
    right(top_eigenpairs(Dense(matrix), min(n, 3), which=which, progress=False), matrix, min(n, 3), which)


def test_a_diagonal_operator_of_two_identical_blocks_shows_both_copies_at_any_seed() -> None:
    block = torch.diag(torch.tensor(outliers(200), dtype=torch.float64))
    matrix = torch.block_diag(block, block)
    for seed in range(5):
        pairs = top_eigenpairs(Dense(matrix), 6, seed=seed, progress=False)
        np.testing.assert_allclose(pairs.values, [22.5, 22.5, 20.8, 20.8, 18.1, 18.1], rtol=1e-8)


def test_without_the_check_second_copies_are_missed() -> None:
    matrix = with_spectrum(SPECTRA["repeated"])
    pairs = top_eigenpairs(Dense(matrix), 4, tol=1e-3, check=False, progress=False)
    assert pairs.values.tolist() == pytest.approx([22.5, 20.8, 18.1, 15.9]), "if one Krylov space sees all, drop it"
    pairs = top_eigenpairs(Dense(matrix), 4, tol=1e-3, progress=False)
    assert pairs.values.tolist() == pytest.approx([22.5, 22.5, 20.8, 20.8])


def test_the_tolerance_is_relative_to_the_largest_eigenvalue() -> None:
    matrix = with_spectrum([1e6, 1.0, 0.9, *np.linspace(-0.5, 0.5, 147)])
    pairs = top_eigenpairs(Dense(matrix), 3, tol=1e-8, progress=False)
    np.testing.assert_allclose(pairs.values, [1e6, 1.0, 0.9], atol=1e-2)
    assert (pairs.residuals <= 1e-2).all() and pairs.converged.all()
    # but not to one that was not asked for, and a hundred times as large
    matrix = with_spectrum([-1000.0, 1.0, 0.9, *np.linspace(-0.5, 0.5, 147)])
    pairs = top_eigenpairs(Dense(matrix), 1, progress=False)
    assert pairs.converged.all() and float(pairs.residuals) <= 1e-5 * 1000 / 100
    assert float(pairs.values) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_restarts_of_a_small_basis_change_nothing_but_the_count(which: str) -> None:
    matrix = with_spectrum(SPECTRA["clustered"])
    free = top_eigenpairs(Dense(matrix), 6, which=which, tol=1e-7, progress=False)
    small = top_eigenpairs(Dense(matrix), 6, which=which, tol=1e-7, basis=16, max_products=2000, progress=False)
    right(small, matrix, 6, which)
    assert small.products > free.products


def test_the_krylov_decomposition_holds_whatever_joins_it() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    draw = torch.Generator().manual_seed(3)
    krylov = Krylov.empty(Dense(matrix))
    for _ in range(3):
        assert krylov.inject(torch.randn(300, generator=draw, dtype=torch.float64))
    for step in range(30):
        p = len(krylov.Q)
        g = np.random.RandomState(step).randn(p)
        krylov.expand(g / np.linalg.norm(g) if step % 2 else -1)
        if step == 10:
            krylov.inject(torch.randn(300, generator=draw, dtype=torch.float64))
        if step == 20:
            krylov.restart(krylov.ritz()[1][:, -8:])
        V, C = krylov.V[: krylov.m], torch.from_numpy(krylov.C)
        difference = matrix @ V.T - V.T @ torch.from_numpy(krylov.H) - krylov.Q.T @ C.T
        assert difference.abs().max() < 1e-12
        whole = torch.cat([V, krylov.Q])
        assert (whole @ whole.T - torch.eye(len(whole), dtype=torch.float64)).abs().max() < 1e-12


def test_the_count_of_products_is_no_more_than_arpacks_at_the_same_residual() -> None:
    spectrum = outliers(2000)

    class Diagonal(Dense):
        def __init__(self) -> None:
            self.values = torch.tensor(spectrum, dtype=torch.float64)
            self.shape, self.dtype, self.device, self.products = (2000, 2000), torch.float64, self.values.device, 0

        def matvec(self, v: torch.Tensor) -> torch.Tensor:
            return self.values * v

        def matmat(self, v: torch.Tensor) -> torch.Tensor:
            return self.values[:, None] * v

    ours = top_eigenpairs(Diagonal(), 10, tol=1e-3, progress=False)
    arpack = top_eigenpairs(Diagonal(), 10, tol=1e-3, solver="eigsh", progress=False)
    assert ours.converged.all()
    assert ours.products <= arpack.products <= 60
    unchecked = top_eigenpairs(Diagonal(), 10, tol=1e-3, check=False, progress=False)
    assert unchecked.products < ours.products


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
def test_a_warm_start_saves_products_and_gives_the_same(solver: str) -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    moved = with_spectrum(SPECTRA["outliers"], seed=1)
    moved = matrix + 1e-6 * moved
    earlier = top_eigenpairs(Dense(matrix), 6, progress=False).vectors
    warm = top_eigenpairs(Dense(moved), 6, start=earlier, solver=solver, progress=False)
    cold = top_eigenpairs(Dense(moved), 6, solver=solver, progress=False)
    right(warm, moved, 6, "largest")
    assert warm.products < cold.products or solver == "eigsh"
    one = top_eigenpairs(Dense(moved), 1, start=earlier[:, 0], progress=False)
    assert one.products < top_eigenpairs(Dense(moved), 1, progress=False).products


def test_a_start_far_from_the_answer_costs_little() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(300, 6, generator=draw, dtype=torch.float64)
    bad = top_eigenpairs(Dense(matrix), 6, start=start, progress=False)
    cold = top_eigenpairs(Dense(matrix), 6, progress=False)
    right(bad, matrix, 6, "largest")
    assert bad.products <= cold.products + 4


def test_a_start_that_is_exact_but_lacks_a_wanted_vector_is_completed() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    exact = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    for missing in range(4):
        start = exact[:, [i for i in range(5) if i != missing]]
        right(top_eigenpairs(Dense(matrix), 4, start=start, progress=False), matrix, 4, "largest")


def test_start_vectors_may_be_dependent_zero_or_more_than_k() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    exact = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    for start in (exact[:, [0, 0, 1]], torch.zeros(300, 2, dtype=torch.float64), exact[:, :12]):
        right(top_eigenpairs(Dense(matrix), 4, start=start, progress=False), matrix, 4, "largest")


def test_what_has_not_converged_is_returned_with_a_warning() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    with pytest.warns(UserWarning, match=r"of 6 eigenpairs converged in 17 products .*; raise max_products") as caught:
        pairs = top_eigenpairs(Dense(matrix), 6, max_products=17, progress=False)
    assert caught[0].filename == __file__
    assert pairs.products == 17 and 0 < int(pairs.converged.sum()) < 6
    true = residual_norms(Dense(matrix), pairs.values, pairs.vectors)
    assert (true - pairs.residuals).abs().max() < 1e-12
    error = np.abs(pairs.values.numpy() - wanted(matrix, 6, "largest"))
    assert (error[pairs.converged.numpy()] < 1e-8 * 22.5).all() and error.max() > 1e-4
    with pytest.warns(UserWarning, match="eigenpairs converged"):
        stopped = top_eigenpairs(Dense(matrix), 6, max_products=6, progress=False)
    assert stopped.values.shape == (6,) and stopped.products == 6
    again = top_eigenpairs(Dense(matrix), 6, start=pairs.vectors, progress=False)
    right(again, matrix, 6, "largest")


def test_arpack_that_runs_out_returns_what_it_has() -> None:
    matrix = with_spectrum(SPECTRA["clustered"])
    with pytest.warns(UserWarning, match="of 6 eigenpairs converged"):
        pairs = top_eigenpairs(Dense(matrix), 6, solver="eigsh", max_products=30, tol=1e-12, progress=False)
    assert len(pairs.values) == pairs.vectors.shape[1] == len(pairs.converged) < 6


def test_products_too_coarse_for_the_tolerance_end_honestly() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    with pytest.warns(UserWarning, match="products are no better than that"):
        pairs = top_eigenpairs(Coarse(matrix), 3, tol=1e-6, max_products=200, progress=False)
    assert pairs.products < 100, "more products cannot help"
    assert not pairs.converged.any()
    true = (Coarse(matrix).matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert (true < 3 * pairs.residuals).all() and (pairs.residuals < 3e-2 * 22.5).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert top_eigenpairs(Coarse(matrix), 3, tol=2e-2, progress=False).converged.all()


def test_an_operator_that_answers_differently_each_time_is_not_certified() -> None:
    class Noisy(Dense):
        def matvec(self, v: torch.Tensor) -> torch.Tensor:
            draw = torch.Generator().manual_seed(self.products)
            return super().matvec(v) + 0.5 * torch.randn(300, generator=draw, dtype=torch.float64) / 300**0.5

    matrix = with_spectrum(SPECTRA["outliers"])
    with pytest.warns(UserWarning, match="0 of 3 eigenpairs converged"):
        pairs = top_eigenpairs(Noisy(matrix), 3, tol=1e-3, max_products=60, progress=False)
    assert (pairs.residuals > 0.4).all()


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_float32_operators_converge_to_what_float32_allows(which: str) -> None:
    matrix = with_spectrum(SPECTRA["outliers"], dtype=torch.float32)
    default = top_eigenpairs(Dense(matrix), 5, which=which, progress=False)
    assert default.converged.all() and default.vectors.dtype == torch.float32
    fine = top_eigenpairs(Dense(matrix), 5, which=which, tol=1e-5, progress=False)
    assert fine.converged.all()
    assert np.abs(fine.values.numpy() - wanted(matrix, 5, which)).max() < 1e-6 * 22.5
    true = (matrix.double() @ fine.vectors.double() - fine.vectors.double() * fine.values).norm(dim=0)
    assert (true - fine.residuals).abs().max() < 1e-5 * 22.5
    small = top_eigenpairs(Dense(matrix), 5, which=which, tol=1e-4, basis=16, progress=False)
    assert small.converged.all()


@pytest.mark.filterwarnings("error")
def test_the_same_seed_gives_the_same_bits_and_the_global_generator_stays() -> None:
    matrix = with_spectrum(SPECTRA["outliers"])
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    a, b = (top_eigenpairs(Dense(matrix), 4, seed=7, progress=False) for _ in range(2))
    other = top_eigenpairs(Dense(matrix), 4, seed=8, progress=False)
    assert torch.equal(a.values, b.values) and torch.equal(a.vectors, b.vectors)
    assert not torch.equal(a.vectors, other.vectors)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_the_progress_bar_shows_the_residual(capsys: pytest.CaptureFixture[str]) -> None:
    top_eigenpairs(Dense(with_spectrum(SPECTRA["outliers"])), 4)
    assert "product" in capsys.readouterr().err


def test_bad_arguments_are_refused_in_one_line() -> None:
    op = Dense(with_spectrum(np.arange(100.0)))
    for arguments, message in [
        (dict(k=101), "k must be a whole number from 1 to 100"),
        (dict(k=0), "k must be"),
        (dict(k=1.5), "k must be"),
        (dict(k=2, which="larges"), "did you mean 'largest'"),
        (dict(k=2, solver="lanczo"), "did you mean 'lanczos'"),
        (dict(k=2, tol=-1.0), "tol is a residual"),
        (dict(k=5, max_products=4), "at least 5 products"),
        (dict(k=5, basis=6), "basis of at least 13"),
        (dict(k=5, start=torch.zeros(99, dtype=torch.float64)), "100 rows"),
        (dict(k=5, start=torch.full((100,), float("nan"))), "not finite"),
    ]:
        with pytest.raises(DynamicsError, match=message) as error:
            top_eigenpairs(op, arguments.pop("k"), **arguments, progress=False)
        assert "\n" not in str(error.value)
    with pytest.raises(DynamicsError, match="square"):
        top_eigenpairs(Dense(torch.zeros(3, 2)), 1, progress=False)


@pytest.mark.parametrize("solver", ["lanczos", "eigsh"])
@pytest.mark.parametrize("n", [10, 100])
def test_a_product_that_is_not_finite_is_named(n: int, solver: str) -> None:
    matrix = with_spectrum(np.arange(float(n)))
    matrix[n // 2, 1] = float("nan")
    with pytest.raises(DynamicsError, match="not finite"):
        top_eigenpairs(Dense(matrix), 2, solver=solver, progress=False)


# subspaces


def random(n: int, k: int, seed: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_overlap_equals_the_principal_angles_of_scipy() -> None:
    from scipy.linalg import subspace_angles

    a, b = random(30, 4, 0), random(30, 7, 1)
    b[:, :2] = a[:, :2] + 0.1 * b[:, :2]
    expected = np.mean(np.cos(subspace_angles(a.numpy(), b.numpy())) ** 2)
    assert subspace_overlap(a, b) == pytest.approx(expected, abs=1e-12)
    assert subspace_overlap(b, a) == pytest.approx(expected, abs=1e-12)
    assert subspace_overlap(a[:, :2] @ random(2, 2, 2), a) == pytest.approx(1.0)
    assert subspace_overlap(torch.eye(6)[:, :2], torch.eye(6)[:, 2:5]) == 0.0


def test_shares_are_squared_lengths_of_projections() -> None:
    vectors, subspace = random(30, 5, 0), random(30, 3, 1)
    projector = subspace @ torch.linalg.pinv(subspace)
    expected = (projector @ vectors).norm(dim=0) ** 2 / vectors.norm(dim=0) ** 2
    torch.testing.assert_close(shares(vectors, subspace), expected)
    torch.testing.assert_close(shares(vectors[:, 0], subspace), expected[:1])
    assert shares(1e-30 * subspace[:, :1] @ torch.ones(1, 2, dtype=torch.float64), subspace) == pytest.approx([1, 1])


def test_orthonormal_blocks_are_qr_in_the_given_order() -> None:
    groups = [random(40, k, k) for k in (3, 4, 2)]
    blocks = orthonormal(*groups)
    q, r = torch.linalg.qr(torch.cat(groups, 1))
    torch.testing.assert_close(torch.cat(blocks, 1), q * r.diagonal().sign())
    assert [block.shape[1] for block in blocks] == [3, 4, 2]


def test_orthonormal_drops_what_earlier_vectors_span() -> None:
    a, b = random(40, 3, 0), random(40, 2, 1)
    first, second = orthonormal(torch.cat([a, a.sum(1, keepdim=True)], 1), torch.cat([a @ random(3, 2, 2), b], 1))
    assert (first.shape[1], second.shape[1]) == (3, 2)
    assert (first.T @ second).abs().max() < 1e-14
    # nearly dependent, yet orthogonal to the last digit
    close = torch.cat([a[:, :1], a[:, :1] + 1e-6 * b], 1)
    (basis,) = orthonormal(close)
    assert (basis.T @ basis - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-14


def test_projecting_out_is_php_and_symmetric() -> None:
    matrix, subspace = with_spectrum(SPECTRA["outliers"]), random(300, 3, 0)
    op = project_out(Dense(matrix), subspace)
    p = torch.eye(300, dtype=torch.float64) - subspace @ torch.linalg.pinv(subspace)
    dense = p @ matrix @ p
    eye = torch.eye(300, dtype=torch.float64)
    torch.testing.assert_close(op.matmat(eye), dense)
    torch.testing.assert_close(op.matvec(eye[3]), dense[3])
    assert (op.matmat(eye) - op.matmat(eye).T).abs().max() < 1e-12
    assert op.matmat(subspace).abs().max() < 1e-12
    right(top_eigenpairs(op, 5, progress=False), (dense + dense.T) / 2, 5, "largest")
    vectors = top_eigenpairs(Dense(matrix), 5, progress=False).vectors
    rest = top_eigenpairs(project_out(Dense(matrix), vectors), 1, progress=False)
    assert float(rest.values[0]) == pytest.approx(12.3)


def test_subspaces_refuse_what_does_not_fit() -> None:
    with pytest.raises(DynamicsError, match="rows"):
        subspace_overlap(random(4, 2, 0), random(5, 2, 0))
    with pytest.raises(DynamicsError, match="not finite"):
        orthonormal(torch.full((3, 1), float("inf")))
    with pytest.raises(DynamicsError, match="empty span"):
        subspace_overlap(torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(DynamicsError, match="rows"):
        project_out(Dense(torch.eye(4)), torch.ones(3, 1))
    with pytest.raises(DynamicsError, match="at least one group"):
        orthonormal()


# the oracle


def toy() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A float64 net with dropout and batch norm in training mode, a batch, and its dense Hessian in eval mode."""
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Softplus(beta=10), nn.Dropout(0.5), nn.Linear(4, 3)
    ).double()  # fmt: skip
    with torch.no_grad():
        for tensor in (*net.parameters(), net[1].running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
    batch = torch.randn(20, 3, generator=draw, dtype=torch.float64), torch.arange(20) % 3
    names, params = zip(*net.named_parameters(), strict=True)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in params]), params, strict=True)]
        outputs = torch.func.functional_call(net, dict(zip(names, parts, strict=True)), (batch[0],))
        return nn.functional.cross_entropy(outputs, batch[1])

    net.eval()
    dense = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in params]))
    net.train()
    net[3].eval()  # a mode of its own, which must come back
    return net, batch, dense


def test_pyhessian_finds_the_dense_eigenvalues_and_leaves_the_net_alone() -> None:
    net, batch, dense = toy()
    modes = [m.training for m in net.modules()]
    first = next(net.parameters())
    first.grad = torch.ones_like(first)
    grad, buffers = first.grad, [b.clone() for b in net.buffers()]
    before = torch.random.get_rng_state()
    loss = nn.functional.cross_entropy
    values = pyhessian_eigenvalues(net, loss, batch, 3, tol=1e-9, max_products=2000)
    np.testing.assert_allclose(values, wanted(dense, 3, "magnitude"), rtol=1e-4)
    ours = top_eigenpairs(Dense(dense), 3, which="magnitude", progress=False)
    np.testing.assert_allclose(values, ours.values, rtol=1e-4)
    estimate = pyhessian_trace(net, loss, batch, products=200)
    assert abs(estimate.value - float(dense.trace())) < 4 * estimate.error
    assert [m.training for m in net.modules()] == modes
    assert first.grad is grad and (grad == 1).all()
    assert all(p.grad is None for p in list(net.parameters())[1:])
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_default_dtype() == torch.float32


def test_the_oracle_restores_the_net_after_an_error_too() -> None:
    net, batch, _ = toy()

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        pyhessian_eigenvalues(net, broken, batch, 1)
    assert net.training and torch.get_default_dtype() == torch.float32
    net[0].unused = nn.Linear(2, 2).double()
    with pytest.raises(DynamicsError, match=r"0\.unused\.weight"):
        pyhessian_eigenvalues(net, nn.functional.cross_entropy, batch, 1)
    assert net.training and all(p.grad is None for p in net.parameters())


def test_pyhessian_goes_on_where_the_trace_is_negative() -> None:
    net, batch, dense = toy()
    estimate = pyhessian_trace(net, lambda y, t: -nn.functional.cross_entropy(y, t), batch, products=50)
    assert estimate.products == 50
    assert abs(estimate.value + float(dense.trace())) < 4 * estimate.error
