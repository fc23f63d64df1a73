"""To which tensors, and to which of their filters, is the loss scale-invariant? Measured, for any module.

A filter is a slice along the first dimension of a tensor, as everywhere in this package.
"""

from .measure import invariance
from .table import Invariance, TensorInvariance

__all__ = ["Invariance", "TensorInvariance", "invariance"]
