"""Optimizers as pure functions of values, and learning-rate schedules in epochs."""

from __future__ import annotations

from .adam import Adam, AdamW
from .adapter import TorchOptimizer, torch_hyperparameters, torch_state
from .base import Constant, Group, Optimizer, PiecewiseLinear, Schedule, Tensors
from .lars import LARS, PageLARS
from .lion import Lion
from .sgd import SGD

KINDS: tuple[type, ...] = (SGD, PageLARS, LARS, Adam, AdamW, Lion, TorchOptimizer, Group, Constant, PiecewiseLinear)
"""Every dataclass of this package that a recipe may hold."""

__all__ = [
    "KINDS",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Group",
    "Lion",
    "Optimizer",
    "PageLARS",
    "PiecewiseLinear",
    "Schedule",
    "Tensors",
    "TorchOptimizer",
    "torch_hyperparameters",
    "torch_state",
]
