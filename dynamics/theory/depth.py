"""What many random layers do together: how products of matrices stretch, and how fixed statistics fail with depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Floats, nonnegative, positive


def product_stretch(layers: ArrayLike) -> Floats:
    """The largest singular value of a product of `layers` wide square matrices, entries independent N(0, 1/width).

    sqrt((L+1)^(L+1) / L^L), about sqrt(e (L + 1/2)): the mean squared singular value is 1 at every depth L, so what
    the product stretches more in some directions it squeezes in others.
    Raises DynamicsError for layers that are not positive.
    Source: Penson and Życzkowski 2011, arXiv 1103.3453: the edge of the Fuss-Catalan law of the squares.
    """
    n = positive("layers", layers)
    return np.exp(0.5 * ((n + 1) * np.log(n + 1) - n * np.log(n)))


def fixed_scale_map(square: ArrayLike) -> Floats:
    """An input's mean square one layer on, in a wide ReLU net that fixed numbers normalise: q + (sqrt(q) - 1)^2/(π-1).

    q is the mean over channels of an input's squared pre-activations, over the value that the fixed numbers are right
    for: shifts and scales as of `relu_moments`, or statistics frozen at that value. 1 is a fixed point of slope 1,
    approached from below and left from above; far above it each layer multiplies q by π/(π-1) = 1.467, the rate at
    which gradients grow in a net with active batch norm (Yang et al. 2019, arXiv 1902.08129).
    Raises DynamicsError for negative squares.
    Source: derived here, from the half-normal moments of `relu_moments`.
    """
    q = nonnegative("square", square)
    return q + (np.sqrt(q) - 1) ** 2 / (np.pi - 1)
