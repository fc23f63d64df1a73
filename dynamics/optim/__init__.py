"""Optimizers as pure functions of values, and learning-rate schedules in epochs."""

from __future__ import annotations

from .adam import Adam, AdamW
from .adapter import TorchOptimizer, torch_hyperparameters, torch_state
from .base import Constant, Group, Optimizer, PiecewiseLinear, Schedule, Tensors
from .lars import LARS, PageLARS
from .lion import Lion
from .lookahead import Lookahead
from .muon import Muon, orthogonalised
from .schedules import Cosine, Cyclic, Exponential, OneCycle, Step
from .sgd import SGD
from .yellowfin import YellowFin, single_step

KINDS: tuple[type, ...] = (
    SGD, PageLARS, LARS, Adam, AdamW, Lion, Muon, Lookahead, YellowFin, TorchOptimizer,
    Group, Constant, PiecewiseLinear, Step, Exponential, Cyclic, Cosine, OneCycle,
)  # fmt: skip
"""Every dataclass of this package that a recipe may hold."""

__all__ = [
    "KINDS",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Cyclic",
    "Exponential",
    "Group",
    "Lion",
    "Lookahead",
    "Muon",
    "OneCycle",
    "Optimizer",
    "PageLARS",
    "PiecewiseLinear",
    "Schedule",
    "Step",
    "Tensors",
    "TorchOptimizer",
    "YellowFin",
    "orthogonalised",
    "single_step",
    "torch_hyperparameters",
    "torch_state",
]
