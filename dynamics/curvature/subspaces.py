"""Spans of vectors in parameter space: their bases, how much of a vector lies inside, and operators outside of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DynamicsError
from .krylov import Operator


def orthonormal(*groups: Tensor, rtol: float | None = None) -> tuple[Tensor, ...]:
    """Orthonormal bases [n, j'] of what each group of vectors [n, j] adds to the span of the groups before it.

    The order matters: the share of a vector inside a later block is what the earlier ones leave. A vector that adds
    less than `rtol` of its own length (default: square root of the precision) is dropped, so that j' <= j.
    Raises DynamicsError for groups that differ in n, dtype or device, and for vectors that are not finite.
    Source: Gram-Schmidt, twice, which is QR with a positive diagonal.
    """
    if not groups:
        raise DynamicsError("orthonormal() needs at least one group of vectors [n, j]")
    groups = tuple(_matrix(group) for group in groups)
    first = groups[0]
    for group in groups[1:]:
        _alike(first, group)
    if rtol is None:
        rtol = torch.finfo(first.dtype).eps ** 0.5
    basis = first.new_empty(sum(group.shape[1] for group in groups), len(first))
    found, ends = 0, []
    for group in groups:
        for column in group.T:
            length = column.norm()
            if length == 0:
                continue
            v = column / length
            v = v - basis[:found].T @ (basis[:found] @ v)
            left = v.norm()
            if left <= rtol:
                continue
            v = v / left
            v = v - basis[:found].T @ (basis[:found] @ v)
            basis[found] = v / v.norm()
            found += 1
        ends.append(found)
    return tuple(basis[start:end].T for start, end in zip([0, *ends], ends, strict=False))


def shares(vectors: Tensor, subspace: Tensor) -> Tensor:
    """The share [j] of each vector's squared length, vectors [n, j], that lies in the span of `subspace` [n, k].

    Between 0 and 1, about k/n for a random vector; nan for a zero vector. Raises DynamicsError as `orthonormal`.
    """
    vectors = _matrix(vectors)
    (basis,) = orthonormal(subspace)
    _alike(vectors, basis)
    units = vectors / vectors.norm(dim=0)
    return (basis.T @ units).square().sum(0)


def subspace_overlap(a: Tensor, b: Tensor) -> float:
    """The mean squared cosine of the principal angles between the spans of a [n, j] and b [n, k].

    1 where the smaller span lies inside the larger, 0 where they are orthogonal, about max(j, k)/n for random ones.
    Raises DynamicsError as `orthonormal`, and for a span of dimension 0.
    Source: Björck and Golub, "Numerical methods for computing angles between linear subspaces" (1973).
    """
    (a,), (b,) = orthonormal(a), orthonormal(b)
    _alike(a, b)
    smaller = min(a.shape[1], b.shape[1])
    if not smaller:
        raise DynamicsError("the overlap with an empty span is not defined: the vectors are all zero")
    return float((a.T @ b).double().square().sum() / smaller)


@dataclass(frozen=True)
class Projected:
    """P A P with P = I − B Bᵀ: symmetric, and zero on the columns of the orthonormal B [n, k]."""

    op: Operator
    basis: Tensor = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.op.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.op.dtype

    @property
    def device(self) -> torch.device:
        return self.op.device

    def matvec(self, v: Tensor) -> Tensor:
        return self._outside(self.op.matvec(self._outside(v)))

    def matmat(self, v: Tensor) -> Tensor:
        return self._outside(self.op.matmat(self._outside(v)))

    def _outside(self, v: Tensor) -> Tensor:
        return v - self.basis @ (self.basis.T @ v)


def project_out(op: Operator, subspace: Tensor) -> Projected:
    """The operator P A P [n, n] that sees nothing in the span of `subspace` [n, k]; an operator again.

    P stands on both sides: P A alone has the same nonzero eigenvalues, but Lanczos assumes symmetry.
    Raises DynamicsError as `orthonormal`, and where the subspace has another dimension than the operator.
    """
    subspace = _matrix(subspace).to(op.device, op.dtype)
    if len(subspace) != op.shape[0]:
        raise DynamicsError(f"the subspace has {len(subspace)} rows and the operator {op.shape[0]}: they must agree")
    (basis,) = orthonormal(subspace)
    return Projected(op, basis)


def _matrix(vectors: Tensor) -> Tensor:
    columns = vectors[:, None] if vectors.ndim == 1 else vectors
    if columns.ndim != 2 or not columns.is_floating_point():
        raise DynamicsError(f"expected float vectors [n, k], got {tuple(vectors.shape)} of {vectors.dtype}")
    if not torch.isfinite(columns).all():
        raise DynamicsError("the given vectors are not finite: mend what made them")
    return columns.detach()


def _alike(a: Tensor, b: Tensor) -> None:
    if (len(a), a.dtype, a.device) != (len(b), b.dtype, b.device):
        raise DynamicsError(
            f"vectors differ: {len(a)} rows of {a.dtype} on {a.device} and {len(b)} of {b.dtype} on {b.device}"
        )
