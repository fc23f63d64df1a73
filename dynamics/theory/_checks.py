"""What every function of the package asks of its arguments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DynamicsError

Floats = NDArray[np.float64]


def finite(name: str, value: ArrayLike) -> Floats:
    value = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(value)):
        raise DynamicsError(f"{name} has nan or infinite entries: select the finite ones first")
    return value


def nonnegative(name: str, value: ArrayLike) -> Floats:
    value = finite(name, value)
    if np.any(value < 0):
        raise DynamicsError(f"{name} must not be negative, got {value.min():g}: check its sign")
    return value


def positive(name: str, value: ArrayLike) -> Floats:
    value = finite(name, value)
    if np.any(value <= 0):
        raise DynamicsError(f"{name} must be positive, got {value.min():g}: leave out entries that are zero")
    return value


def fraction(name: str, value: ArrayLike) -> Floats:
    """A coefficient of momentum or of an average: from 0 to below 1."""
    value = nonnegative(name, value)
    if np.any(value >= 1):
        raise DynamicsError(f"{name} must be below 1, got {value.max():g}: pass the coefficient, such as 0.9")
    return value


def total_decay(weight_decay: ArrayLike, rho: Floats, decoupled: bool, radial: Floats) -> Floats:
    """The coupled decay that would balance as much growth: see the two substitutions in the package's head."""
    decay = nonnegative("weight_decay", weight_decay)
    return decay * (1 - rho) + radial if decoupled else decay + radial
