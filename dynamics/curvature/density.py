"""The whole spectrum of an operator from a few products: stochastic Lanczos quadrature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..errors import DynamicsError
from .krylov import Krylov, Operator, dimension, random_vector


class Density(NamedTuple):
    """`density` [g], of integral 1, over the eigenvalues `grid` [g], and its standard deviation over probes, `spread`.

    `spread` / sqrt(probes) is the standard error of `density`. `nodes` and `weights` [probes, steps] are the
    quadratures before smoothing: a row's weights add up to 1, and the mean over rows of Σ w f(x) estimates tr f(H)/n.
    `width` is the standard deviation of the smoothing Gaussian, in units of the eigenvalues. All float64, on the CPU.
    """

    grid: torch.Tensor
    density: torch.Tensor
    spread: torch.Tensor
    nodes: torch.Tensor
    weights: torch.Tensor
    width: float
    products: int


def spectral_density(
    op: Operator,
    *,
    probes: int = 10,
    steps: int = 80,
    width: float | None = None,
    points: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Density:
    """The density of eigenvalues, estimated from `probes` random vectors and `steps` products for each.

    A probe's quadrature is exact for polynomials of degree below 2 steps, so moments of the density carry the noise
    of the probes alone; `spread` shows that. Eigenvalues closer than about the range divided by `steps` are not told
    apart: the default `width` is 1 % of the range, and `points` resolves it (the grid reaches 6 widths beyond).
    Memory: steps vectors, for full reorthogonalisation (without it, copies of the outliers would appear).
    Raises DynamicsError for counts below 1, a width that is not positive, and a product that is not finite.
    Source: Golub and Meurant, "Matrices, Moments and Quadrature" (2010); Ghorbani et al. 2019, arXiv 1901.10159.
    """
    n = dimension(op)
    for name, count in (("probes", probes), ("steps", steps), ("points", points or 2)):
        if not isinstance(count, int) or count < 1:
            raise DynamicsError(f"{name} must be a whole number from 1 on, got {count!r}")
    if width is not None and not 0 < width < float("inf"):
        raise DynamicsError(f"width must be positive, in units of the eigenvalues, got {width}")
    from tqdm.auto import tqdm

    steps = min(steps, n)
    nodes, weights, products = np.zeros((probes, steps)), np.zeros((probes, steps)), 0
    with tqdm(total=probes * steps, desc="density", unit="product", disable=not progress, leave=False) as bar:
        for probe in range(probes):
            krylov = Krylov.empty(op)
            krylov.inject(random_vector(op, seed, "density", probe))
            # an exhausted space ends early, and its quadrature is exact; the rest of the row has weight 0
            while len(krylov.Q) and krylov.m < steps:
                krylov.expand(0)
                bar.update()
            values, y = krylov.ritz()
            nodes[probe, : krylov.m], weights[probe, : krylov.m] = values, y[0] ** 2
            nodes[probe, krylov.m :] = values[-1]
            products += krylov.products
    low, high = float(nodes.min()), float(nodes.max())
    span = high - low
    if width is None:
        width = span / 100 or max(abs(high) / 1000, 1e-12)
    if points is None:
        points = int(min(max(1001, 5 * (span / width + 12)), 200_001))
    grid = np.linspace(low - 6 * width, high + 6 * width, points)
    each = np.zeros((probes, points))
    for probe in range(probes):
        for x, w in zip(nodes[probe], weights[probe], strict=True):
            each[probe] += w * np.exp(-0.5 * ((grid - x) / width) ** 2)
    each /= width * np.sqrt(2 * np.pi)
    spread = each.std(0, ddof=1) if probes > 1 else np.full(points, np.nan)
    arrays = (torch.from_numpy(array) for array in (grid, each.mean(0), spread, nodes, weights))
    return Density(*arrays, float(width), products)
