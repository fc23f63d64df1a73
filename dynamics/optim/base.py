"""What every optimizer is, and its parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Protocol

import torch

from ..errors import DynamicsError
from .checks import below_one, in_range
from .schedules import Constant, PiecewiseLinear, Schedule, lr_at

__all__ = [
    "Constant",
    "Group",
    "Optimizer",
    "PiecewiseLinear",
    "Schedule",
    "Tensors",
    "below_one",
    "check_shared",
    "in_range",
    "lr_and_decay",
    "lr_at",
    "partition",
]

Tensors = Mapping[str, torch.Tensor]


class Optimizer(Protocol):
    """An optimizer is a pair of pure functions, and says which hyperparameters are in force.

    `update` returns the change of every parameter as a value (it is added to the parameters by the training
    loop) and the optimizer's next state; no argument is modified. `init` and `update` give states of one structure:
    nested dicts of tensors. The lr, a number or a schedule, is `lr`, which dataclasses.replace can change.
    """

    def init(self, params: Tensors) -> dict[str, Any]: ...

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]: ...

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]: ...

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]: ...


@dataclass(frozen=True)
class Group:
    """Parameters whose names match a pattern ("*.bias"), with factors on the optimizer's lr and weight decay."""

    match: str
    lr_factor: float = 1.0
    weight_decay_factor: float = 1.0

    def __post_init__(self) -> None:
        in_range("lr_factor", self.lr_factor, 0.0, math.inf)
        in_range("weight_decay_factor", self.weight_decay_factor, 0.0, math.inf)


def lr_and_decay(
    lr: float | Schedule, weight_decay: float, groups: tuple[Group, ...], epoch: float
) -> dict[str, tuple[float, ...]]:
    """The lr and the weight decay in force at an epoch, one number a group, in the order of `partition`."""
    now = lr_at(lr, epoch)
    return {
        "lr": (*(now * g.lr_factor for g in groups), now),
        "weight_decay": (*(weight_decay * g.weight_decay_factor for g in groups), weight_decay),
    }


@lru_cache(maxsize=256)
def partition(groups: tuple[Group, ...], names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Names by group: (pattern, names) for each group in order, and last ("default", the rest).

    Raises DynamicsError for a group that matches nothing.
    """
    found: dict[int, list[str]] = {i: [] for i in range(len(groups) + 1)}
    for name in names:
        first = next((i for i, g in enumerate(groups) if fnmatchcase(name, g.match)), len(groups))
        found[first].append(name)
    for i, group in enumerate(groups):
        if not found[i]:
            raise DynamicsError(
                f"no parameter matches the group {group.match!r}: patterns are of names such as {names[0]!r}, "
                f"{names[-1]!r}"
            )
    patterns = [*(g.match for g in groups), "default"]
    return tuple((pattern, tuple(found[i])) for i, pattern in enumerate(patterns))


def check_shared(optimizer: Any) -> None:
    """Check the fields that every optimizer has, lr, weight_decay (if it has one) and groups, which becomes a tuple."""
    if not callable(optimizer.lr):
        in_range("lr", optimizer.lr, 0.0, math.inf)
    in_range("weight_decay", getattr(optimizer, "weight_decay", 0.0), 0.0, math.inf)
    groups = optimizer.groups
    if not isinstance(groups, tuple | list) or not all(isinstance(g, Group) for g in groups):
        raise DynamicsError(f'groups must be a tuple of Group, got {groups!r}: write groups=(Group("*.bias", 2.0),)')
    object.__setattr__(optimizer, "groups", tuple(groups))
