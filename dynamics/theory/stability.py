"""Which learning rates are stable along a direction of given curvature."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Floats, finite, fraction, positive


def stability_bound(curvature: ArrayLike, *, momentum: ArrayLike = 0.0, nesterov: bool = False) -> Floats:
    """The largest lr at which full-batch SGD is stable along a direction of this curvature (Hessian eigenvalue).

    Gradient descent 2/h; heavy ball 2(1+ρ)/h; Nesterov as torch computes it 2(1+ρ)/((1+2ρ)h). Infinite where the
    curvature is zero or negative. `curvature` is of the mean loss. Source: derived here: the characteristic polynomial
    of the quadratic's recursion has its root at -1 there; the first is Page, post 7's bound.
    """
    curvature, rho = finite("curvature", curvature), fraction("momentum", momentum)
    gain = 2 * (1 + rho) / (1 + 2 * rho) if nesterov else 2 * (1 + rho)
    return np.where(curvature > 0, gain / np.where(curvature > 0, curvature, 1.0), np.inf)[()]


def robust_region(curvature: ArrayLike, *, momentum: ArrayLike) -> tuple[Floats, Floats]:
    """The lowest and highest lr between which heavy ball converges as sqrt(ρ)^t along a direction, whatever the lr.

    (1-sqrt ρ)^2/h and (1+sqrt ρ)^2/h; NaN where the curvature is zero or negative. The upper end lies below
    `stability_bound`; in between, convergence is slower.
    Source: Zhang and Mitliagkas 2017, "YellowFin" (arXiv 1706.03471), the robust region: complex roots there, whose
    product is ρ.
    """
    curvature, root = finite("curvature", curvature), np.sqrt(fraction("momentum", momentum))
    safe = np.where(curvature > 0, curvature, np.nan)
    return (1 - root) ** 2 / safe, (1 + root) ** 2 / safe


def batch_sharpness(lr: ArrayLike, *, momentum: ArrayLike = 0.0) -> tuple[Floats, Floats]:
    """Where the batch sharpness of heavy ball is reported to settle: 2(1-ρ)/η for small batches, 2(1+ρ)/η for large.

    Batch sharpness is the mean over batches of the batch Hessian along the batch's own gradient. An observation on
    trained nets, not a theorem; the second is `stability_bound` solved for the curvature.
    Source: Andreyev, "Momentum further constrains sharpness at the edge of stochastic stability", arXiv 2604.14108,
    abstract.
    """
    lr, rho = positive("lr", lr), fraction("momentum", momentum)
    return 2 * (1 - rho) / lr, 2 * (1 + rho) / lr
