"""Checks of numbers that users give, with one-line errors."""

from __future__ import annotations

import math
from typing import Any

from ..errors import DynamicsError


def in_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value < high:
        raise DynamicsError(f"{name} must be a number of at least {low:g}, got {value!r}")


def above_zero(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise DynamicsError(f"{name} must be a number above 0, got {value!r}")


def below_one(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise DynamicsError(f"{name} must be at least 0 and below 1, got {value!r}")


def whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DynamicsError(f"{name} must be a whole number of at least 1, got {value!r}")
