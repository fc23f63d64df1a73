"""A symmetric operator that is known by its products, and the Krylov decomposition that every method here grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DynamicsError
from ..rng import generator

CHUNK = 16  # columns to a call of matmat


class Operator(Protocol):
    """A symmetric matrix [n, n] known by its products with vectors of its dtype on its device."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def matvec(self, v: Tensor, /) -> Tensor:
        """[n] -> [n]"""
        ...

    def matmat(self, v: Tensor, /) -> Tensor:
        """[n, k] -> [n, k]"""
        ...


@dataclass
class Krylov:
    """A V = V H + Q Cᵀ: V [m, n] is the basis in rows, Q [p, n] the directions in which its products leave it.

    Any unit vector of the span of Q may join the basis next. H and C (float64, on the CPU) keep every coefficient as
    it was computed, so that H − Hᵀ shows the rounding of the products.
    """

    op: Operator
    V: Tensor
    Q: Tensor
    H: np.ndarray
    C: np.ndarray
    norm: float = 0.0  # a lower bound of the operator's norm
    m: int = 0
    products: int = 0

    @classmethod
    def empty(cls, op: Operator, *, products: int = 0) -> Krylov:
        n = dimension(op)
        rows = torch.empty(0, n, dtype=op.dtype, device=op.device)
        return cls(op, rows, rows, np.zeros((0, 0)), np.zeros((0, 0)), products=products)

    def inject(self, vector: Tensor) -> bool:
        """Let a new direction wait in Q; False where it lies in the span of what is there."""
        v = vector.to(self.op.device, self.op.dtype)
        length = v.norm()
        for _ in range(3):
            v = self._less(v, self.V[: self.m])[0]
            v = self._less(v, self.Q)[0]
            # what is left of a nearly dependent vector is rounding, until it is scaled up and cleaned again
            left = v.norm()
            if not float(left) > 1e3 * torch.finfo(v.dtype).eps * float(length):
                return False
            v, length = v / left, torch.ones(())
        self.Q = torch.cat([self.Q, v[None]])
        self.C = np.concatenate([self.C, np.zeros((self.m, 1))], axis=1)
        return True

    def expand(self, g: np.ndarray | int) -> float:
        """Move a unit combination g [p] (or column g) of Q into the basis, for one product; how far that one leaves."""
        m, p = self.m, len(self.Q)
        if isinstance(g, int):
            g = np.eye(p)[g % p]
        if (g == 1).any():
            rest = np.eye(p)[:, g != 1]
        else:
            rest = np.linalg.qr(np.column_stack([g, np.eye(p)]))[0][:, 1:p]
        v = self._like(g) @ self.Q
        v = self._less(v, self.V[:m])[0]
        v /= v.norm()
        self.Q = self._like(rest.T) @ self.Q if p > 1 else self.Q[:0]
        if m == len(self.V):
            grown = torch.empty(2 * m + 32, self.V.shape[1], dtype=self.V.dtype, device=self.V.device)
            grown[:m] = self.V
            self.V = grown
        self.V[m] = v
        w = finite(self.op.matvec(v))
        self.products += 1
        self.norm = max(self.norm, float(w.norm()))
        w, h = self._less(w, self.V[: m + 1])
        w, c = self._less(w, self.Q)
        away = float(w.norm())
        H = np.zeros((m + 1, m + 1))
        H[:m, :m], H[m, :m], H[:, m] = self.H, self.C @ g, h
        C = np.vstack([self.C @ rest, c])
        if away > 10 * torch.finfo(w.dtype).eps * self.norm:
            self.Q = torch.cat([self.Q, w[None] / away])
            C = np.concatenate([C, away * np.eye(m + 1)[:, m:]], axis=1)
        else:
            away = 0.0
        self.H, self.C, self.m = H, C, m + 1
        return away

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Rayleigh-Ritz values [m], ascending, and coefficients [m, m]."""
        return np.linalg.eigh((self.H + self.H.T) / 2)

    def residuals(self, values: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what more products can mend, what they cannot because it is rounding) of the residuals [j] of V y [m, j]."""
        return norms(self.C.T @ y), norms(self.H @ y - y * values)

    def mismatch(self, y: np.ndarray) -> float:
        """How far a fresh product of V y, y [m], lies from what the decomposition says, for one product."""
        told = self.combine(self.H @ y) + self._like(self.C.T @ y) @ self.Q
        self.products += 1
        return float((finite(self.op.matvec(self.combine(y))) - told).norm())

    def restart(self, y: np.ndarray) -> None:
        """Shrink the basis to Ritz vectors V y, y [m, j]; what rounding H − Hᵀ showed outside them is forgotten."""
        self.V[: y.shape[1]] = self.combine(y).T
        self.H, self.C, self.m = y.T @ self.H @ y, y.T @ self.C, y.shape[1]

    def combine(self, y: np.ndarray) -> Tensor:
        return self.V[: self.m].T @ self._like(y)

    def _like(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.V.device, self.V.dtype)

    def _less(self, w: Tensor, rows: Tensor) -> tuple[Tensor, np.ndarray]:
        """w without its part in the span of orthonormal rows, and the coefficients of that part."""
        total = np.zeros(len(rows))
        if len(rows):
            for _ in range(2):  # twice is enough (Kahan; Parlett 1980, section 6.9)
                h = rows @ w
                w = w - h @ rows
                total += h.double().cpu().numpy()
        return w, total


def matmat(op: Operator, v: Tensor, *, bar: Any = None) -> Tensor:
    """Products [n, k] of the columns of v, a few columns at a time; raises DynamicsError for one that is not finite."""
    out = torch.empty_like(v)
    for i in range(0, v.shape[1], CHUNK):
        out[:, i : i + CHUNK] = finite(op.matmat(v[:, i : i + CHUNK]))
        if bar is not None:
            bar.update(min(CHUNK, v.shape[1] - i))
    return out


def random_vector(op: Operator, seed: int, purpose: str, index: int = 0) -> Tensor:
    """A standard normal vector [n], drawn on the CPU in float64: the same one for every dtype and device."""
    drawn = torch.randn(dimension(op), generator=generator(seed, purpose, index), dtype=torch.float64)
    return drawn.to(op.device, op.dtype)


def dimension(op: Operator) -> int:
    shape = tuple(op.shape)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise DynamicsError(f"eigenpairs need a square operator with at least one row, got shape {shape}")
    return int(shape[0])


def finite(product: Tensor) -> Tensor:
    product = product.detach()
    if not torch.isfinite(product).all():
        raise DynamicsError("a product of the operator is not finite: check the loss and the weights, or use float64")
    return product


def norms(columns: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(columns).sum(0))
