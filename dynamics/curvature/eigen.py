"""Extreme eigenpairs of a symmetric operator that is known by its products only, each with a certificate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DynamicsError, unknown
from .krylov import Krylov, Operator, dimension, finite, matmat, norms, random_vector

DENSE = 64  # an operator no larger than this is built whole: its products cost less than the bookkeeping
BASIS_BYTES = 2 << 30  # a basis that fits is never restarted, since a restart throws products away
_CHECK = 20  # products that the search for missed eigenvalues may take
_SURE = 3.0  # by how much a missed one must outgrow the rest there
_DRIFTED = 10.0  # goals from which on several start vectors are taken as one


class Eigenpairs(NamedTuple):
    """`values` [k], `residuals` [k] and `converged` [k] (float64, float64, bool; on the CPU), and `vectors` [n, k].

    `residuals` are ‖Hv − λv‖: some eigenvalue lies within one residual of λ, and where the next eigenvalue is `gap`
    away the error is about residual²/gap. `products` counts the products of the operator that were spent.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int


def top_eigenpairs(
    op: Operator,
    k: int = 1,
    *,
    which: str = "largest",
    tol: float | None = None,
    max_products: int | None = None,
    start: Tensor | None = None,
    basis: int | None = None,
    check: bool = True,
    seed: int = 0,
    solver: str = "lanczos",
    progress: bool = True,
) -> Eigenpairs:
    """The k leading eigenpairs of a symmetric operator, the most wanted first.

    `which` is "largest", "smallest" (the most negative first) or "magnitude". A pair has converged when its residual
    is at most `tol` times the largest |λ| returned (or a hundredth of the largest |λ| met on the way, if that is
    more). The default `tol` is 1e-5 in float64 and 1e-3 in float32, whose Hessian products are rarely better than 1e-4.
    What has not converged after `max_products` (default 20 k + 300), or cannot because the products are too coarse,
    is returned as it stands, with a warning and False in `converged`.

    `start` [n] or [n, j] holds earlier eigenvectors. `basis` bounds the vectors in memory (default: 2 GiB of them);
    the method restarts when it is full. `check` spends a few more products on a fresh random direction, the only
    way to see second copies of an eigenvalue, and wanted vectors that `start` happens to be orthogonal to.
    `solver="eigsh"` is scipy's ARPACK on the CPU, for comparison; it has no `basis` or `check`, and of `start` the sum.

    The residuals are of true products, not of the Lanczos recurrence: those that built the basis, kept whole with
    their rounding, and a last fresh one, of the sum of the vectors found, whose disagreement with them (rounding, or
    an operator that answers differently each time) is added in squares; with "eigsh" from k products more.
    `residual_norms` makes fresh ones for any pairs.
    Raises DynamicsError for k outside 1..n, a product that is not finite, and arguments that do not fit the operator.
    Source: thick-restart Lanczos (Wu and Simon 2000) written as a Krylov decomposition (Stewart 2001), where
    AV = VH + QCᵀ stays exact whatever joins the basis; the dense problem is solved whole for n <= 64 or k > n/2.
    """
    n = dimension(op)
    if not isinstance(k, int) or not 1 <= k <= n:
        raise DynamicsError(f"k must be a whole number from 1 to {n}, the dimension of the operator, got {k!r}")
    if which not in _KEYS:
        raise unknown("which", which, _KEYS)
    if solver not in ("lanczos", "eigsh"):
        raise unknown("solver", solver, ("lanczos", "eigsh"))
    if not op.dtype.is_floating_point:
        raise DynamicsError(f"an operator of {op.dtype} has no eigenpairs here: give it float32 or float64")
    if tol is None:
        tol = 1e-5 if op.dtype == torch.float64 else 1e-3
    if not 0 <= tol < 1:
        raise DynamicsError(f"tol is a residual relative to the largest eigenvalue, 0 <= tol < 1, got {tol}")
    if max_products is None:
        max_products = 20 * k + 300
    if max_products < k:
        raise DynamicsError(f"{k} eigenpairs need at least {k} products: raise max_products={max_products}")
    if start is not None:
        start = _columns(op, start)

    from tqdm.auto import tqdm

    unit = torch.finfo(op.dtype).bits // 8 * n
    with tqdm(desc=f"eigenpairs ({which})", unit="product", disable=not progress, leave=False) as bar:
        if (n <= max(DENSE, 2 * k - 1) and n <= max_products) or (k == n and solver == "eigsh"):
            pairs = _dense(op, k, which, bar)
        elif solver == "eigsh":
            pairs = _eigsh(op, k, which, tol, max_products, start, seed, bar)
        else:
            room = max(BASIS_BYTES // unit, 2 * k + 30) if basis is None else basis
            if room < min(k + 8, n):
                raise DynamicsError(f"{k} eigenpairs need a basis of at least {min(k + 8, n)} vectors, got {room}")
            pairs = _lanczos(op, k, which, tol, max_products, start, min(room, n), check, seed, bar)
    values, vectors, residuals, norm, ended, products = pairs
    goal = _goal(tol, values, norm)
    converged = residuals <= goal
    if len(values) < k or not converged.all():
        message = f"{int(converged.sum())} of {k} eigenpairs converged in {products} products"
        if len(residuals):
            message += f" (largest residual {residuals.max():.1e}, goal {goal:.1e})"
        mend = "raise max_products or tol, or pass start="
        if ended:
            mend = "the operator's products are no better than that: use float64 or a larger tol"
        warnings.warn(f"{message}; {mend}", stacklevel=2)
    as_tensor = torch.from_numpy
    return Eigenpairs(as_tensor(values), vectors, as_tensor(residuals), as_tensor(converged), products)


def residual_norms(op: Operator, values: Tensor, vectors: Tensor) -> Tensor:
    """‖Hv − λv‖ [k] of given pairs from fresh products (float64, on the CPU); raises as `top_eigenpairs`."""
    vectors = _columns(op, vectors)
    product = matmat(op, vectors).double()
    return (product - vectors.double() * values.to(vectors.device, torch.float64)).norm(dim=0).cpu()


# solvers: (values, vectors, residuals, norm, whether products were left over, products) of the wanted pairs

_Found = tuple[np.ndarray, Tensor, np.ndarray, float, bool, int]
_KEYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "largest": lambda values: -values,
    "smallest": lambda values: values,
    "magnitude": lambda values: -np.abs(values),
}


def _lanczos(
    op: Operator, k: int, which: str, tol: float, most: int, start: Tensor | None, room: int, check: bool, seed: int,
    bar: Any,
) -> _Found:  # fmt: skip
    budget = max(most - 1, k)  # the last product is kept for the certificate
    n, key = dimension(op), _KEYS[which]
    krylov, draws = Krylov.empty(op), 0

    def fresh() -> bool:
        nonlocal draws
        for _ in range(3):
            draws += 1
            if krylov.inject(random_vector(op, seed, "eigenpairs", draws)):
                return True
        return False

    def wanted() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        values, y = krylov.ritz()
        first = np.argsort(key(values), kind="stable")[:k]
        return values[first], y[:, first], *krylov.residuals(values[first], y[:, first])

    def shrink(free: int) -> None:
        """Make room for more vectors, where the basis is full; half of what is free keeps the best of the unwanted."""
        if krylov.m + free > room:
            values, y = krylov.ritz()
            keep = max(min((k + room) // 2, room - free), k)
            krylov.restart(y[:, np.argsort(key(values), kind="stable")[:keep]])

    waiting = sum(krylov.inject(column) for column in (() if start is None else start.T))
    checked: np.ndarray | None = None
    direction: np.ndarray | int = 0
    while True:
        if not len(krylov.Q) and not fresh():
            break  # the basis spans everything
        shrink(1)
        away = krylov.expand(0 if waiting else direction)
        bar.update()
        m, direction = krylov.m, -1
        if waiting > 1 and m == 1 and away > _DRIFTED * tol * krylov.norm:
            # Far from converged, j vectors are j residuals to be reduced one by one; their sum is only one.
            mixed = (start / start.norm(dim=0).clamp_min(1e-300)).sum(1)
            krylov, waiting = Krylov.empty(op, products=krylov.products), 1
            krylov.inject(mixed + 0.1 * _unit(random_vector(op, seed, "eigenpairs")))
            continue
        waiting = max(waiting - 1, 0)
        spent = krylov.products >= budget
        if m < k or (not spent and (waiting or m % (1 + m // 50))):
            continue
        values, y, mends, stays = wanted()
        goal = _goal(tol, values, krylov.norm)
        residuals = np.hypot(mends, stays)
        bar.set_postfix_str(f"residual of pair {k}: {residuals[-1]:.1e}, goal {goal:.1e}", refresh=False)
        floor = 10 * torch.finfo(op.dtype).eps * krylov.norm
        done = (residuals <= goal) | (mends <= np.where(stays > goal, np.maximum(stays, floor), floor))
        if spent or m == n:
            break
        if done.all():
            settled = checked is not None and np.abs(values - checked).max() <= goal
            if settled or not check or not fresh():
                break
            checked = values
            shrink(_CHECK)
            _probe(krylov, values, which, min(_CHECK, budget - krylov.products, room - krylov.m), bar)
            values, y, mends, stays = wanted()
            if np.abs(values - checked).max() <= goal and (np.hypot(mends, stays) <= goal).all():
                break
            done = np.hypot(mends, stays) <= goal
        # the first pair that lacks something chooses; with one way to go all of them agree
        ahead = krylov.C.T @ y[:, np.argmin(done) if not done.all() else np.argmax(mends)]
        length = np.linalg.norm(ahead)
        direction = ahead / length if length > 0 else len(krylov.Q) - 1
    values, y, mends, stays = wanted()
    vectors, noise, ended = krylov.combine(y), np.zeros(1), krylov.products < budget
    if krylov.products < most:
        noise = np.full(1, krylov.mismatch(y.sum(1) / math.sqrt(k)))
        bar.update()
    residuals = np.sqrt(mends**2 + stays**2 + noise**2)
    return values, vectors, residuals, krylov.norm, ended, krylov.products


def _probe(krylov: Krylov, values: np.ndarray, which: str, most: int, bar: Any) -> None:
    """Follow the newest direction until an eigenvalue beyond the k-th, had it been missed, would have shown.

    The Lanczos polynomial of degree q that is bounded by 1 on [a, b], the spectrum seen from the new direction, is
    at least T_q there; a random vector holds about 1/sqrt(n) of a missed one.
    """
    first, n = krylov.m, dimension(krylov.op)
    last = values[-1]
    for q in range(1, most + 1):
        away = krylov.expand(-1)
        bar.update()
        if not away:  # the space of this direction is exhausted: all that it could show is in the basis
            return
        seen = np.linalg.eigvalsh((krylov.H + krylov.H.T)[first:, first:] / 2)
        a, b = seen[0], seen[-1]
        if which == "magnitude":
            beyond = abs(last) / max(-a, b, 1e-300)
        else:
            beyond = ((2 * last - a - b) if which == "largest" else (a + b - 2 * last)) / max(b - a, 1e-300)
        if q >= 3 and beyond > 1 and q * math.acosh(beyond) >= math.log(2 * _SURE * math.sqrt(n)):
            return


def _dense(op: Operator, k: int, which: str, bar: Any) -> _Found:
    n = dimension(op)
    matrix = matmat(op, torch.eye(n, dtype=op.dtype, device=op.device), bar=bar).double().cpu().numpy()
    values, y = np.linalg.eigh((matrix + matrix.T) / 2)
    first = np.argsort(_KEYS[which](values), kind="stable")[:k]
    norm = float(np.abs(values).max())
    values, y = values[first], y[:, first]
    residuals = norms(matrix @ y - y * values)
    vectors = torch.from_numpy(y).to(op.device, op.dtype)
    return values, vectors, residuals, norm, True, n


def _eigsh(
    op: Operator, k: int, which: str, tol: float, budget: int, start: Tensor | None, seed: int, bar: Any
) -> _Found:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n, products = dimension(op), 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        bar.update()
        return finite(op.matvec(torch.from_numpy(v).to(op.device, op.dtype).reshape(n))).cpu().numpy()

    dtype = np.dtype(str(op.dtype).removeprefix("torch."))
    v0 = random_vector(op, seed, "eigenpairs", 1) if start is None else start.sum(1)
    basis = min(n, max(2 * k + 1, 20))
    rounds = max((budget - basis) // max(basis - k, 1), 1)
    name = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}[which]
    try:
        values, y = eigsh(
            LinearOperator((n, n), matvec=matvec, dtype=dtype), k, which=name, tol=tol, v0=v0.cpu().numpy(), ncv=basis,
            maxiter=rounds,
        )  # fmt: skip
    except ArpackNoConvergence as stopped:
        values, y = stopped.eigenvalues, stopped.eigenvectors
    first = np.argsort(_KEYS[which](values), kind="stable")
    values = values[first].astype(np.float64)
    vectors = torch.from_numpy(y[:, first]).to(op.device, op.dtype)
    residuals = residual_norms(op, torch.from_numpy(values), vectors).numpy()
    norm = float(np.abs(values).max(initial=0))
    return values, vectors, residuals, norm, False, products + len(values)


# small things


def _goal(tol: float, values: np.ndarray, norm: float) -> float:
    return tol * max(float(np.abs(values).max(initial=0)), norm / 100)


def _columns(op: Operator, vectors: Tensor) -> Tensor:
    columns = vectors[:, None] if vectors.ndim == 1 else vectors
    n = dimension(op)
    if columns.ndim != 2 or len(columns) != n:
        raise DynamicsError(f"vectors of this operator have {n} rows, got shape {tuple(vectors.shape)}")
    if not torch.isfinite(columns).all():
        raise DynamicsError("the given vectors are not finite: leave start= away, or mend what made them")
    return columns.detach().to(op.device, op.dtype)


def _unit(v: Tensor) -> Tensor:
    return v / v.norm()
