"""The trace of an operator from a few products, with its standard error."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..errors import DynamicsError
from ..rng import generator
from .krylov import Operator, dimension, matmat


class Trace(NamedTuple):
    """`value` ± `error`, one standard error; the estimates of single probes, `samples` [m] float64; products spent.

    `error` is 0 where the operator was small enough to be summed exactly (then there are no samples); an interval is
    value ± t(m − 1) · error.
    """

    value: float
    error: float
    samples: torch.Tensor
    products: int


def trace(op: Operator, *, products: int = 60, seed: int = 0, progress: bool = True) -> Trace:
    """The sum of the eigenvalues, of an operator that may be indefinite; exact up to rounding for rank <= products/3.

    A third of the products sketches the range, a third takes the exact trace there, and the last third samples the
    trace of what is left with random signs, whose scatter is the standard error given the sketch.
    Raises DynamicsError for fewer than 6 products, and for a product that is not finite.
    Source: Hutch++, Meyer et al. 2021, arXiv 2010.09649, algorithm 1.
    """
    n = dimension(op)
    if not isinstance(products, int) or products < 6:
        raise DynamicsError(f"the trace needs at least 6 products, two for each of its parts, got {products!r}")
    from tqdm.auto import tqdm

    total = min(n, products)
    with tqdm(total=total, desc="trace", unit="product", disable=not progress, leave=False) as bar:
        if n <= products:
            exact = matmat(op, torch.eye(n, dtype=op.dtype, device=op.device), bar=bar).diagonal().double().sum()
            return Trace(float(exact), 0.0, torch.empty(0, dtype=torch.float64), n)
        third = products // 3
        rest = products - 2 * third
        range_, _ = torch.linalg.qr(matmat(op, _signs(op, third, seed, 0), bar=bar))
        inside = _inner(range_, matmat(op, range_, bar=bar)).sum()
        probes = _signs(op, rest, seed, 1)
        for _ in range(2):
            probes = probes - range_ @ (range_.T @ probes)
        samples = (_inner(probes, matmat(op, probes, bar=bar)) + inside).cpu()
    return Trace(float(samples.mean()), float(samples.std() / rest**0.5), samples, products)


def _signs(op: Operator, columns: int, seed: int, index: int) -> torch.Tensor:
    drawn = torch.randint(0, 2, (columns, dimension(op)), generator=generator(seed, "trace", index))
    return (2 * drawn - 1).T.to(op.device, op.dtype)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products [k] of columns, summed in float64 one column at a time."""
    return torch.stack([torch.dot(x.double().cpu(), y.double().cpu()) for x, y in zip(a.T, b.T, strict=True)])
