"""What every optimizer is, its parameter groups, and learning-rate schedules in epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Protocol

import torch

from ..errors import DynamicsError

Tensors = Mapping[str, torch.Tensor]


class Optimizer(Protocol):
    """An optimizer is a pair of pure functions, and says which hyperparameters are in force.

    `update` returns the change of every parameter as a value (it is added to the parameters by the training
    loop) and the optimizer's next state; no argument is modified. `init` and `update` give states of one structure:
    nested dicts of tensors. The lr, a number or a schedule, is a field of that name.
    """

    def init(self, params: Tensors) -> dict[str, Any]: ...

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]: ...

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]: ...

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]: ...


@dataclass(frozen=True)
class PiecewiseLinear:
    """lr(epoch) by linear interpolation between knots (epochs), constant beyond the last (Page's posts)."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots", tuple(float(k) for k in self.knots))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if len(self.knots) != len(self.values) or not self.knots:
            raise DynamicsError(
                f"PiecewiseLinear needs one value a knot, got {len(self.knots)} knots and {len(self.values)} values"
            )
        if not all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise DynamicsError(f"PiecewiseLinear's knots must increase, got {self.knots}")
        for value in self.values:
            in_range("lr", value, 0.0, math.inf)

    def __call__(self, epoch: float) -> float:
        knots, values = self.knots, self.values
        if epoch <= knots[0]:
            return values[0]
        for a, b, left, right in zip(knots, knots[1:], values, values[1:], strict=False):
            if epoch < b:
                return left + (right - left) * ((epoch - a) / (b - a))
        return values[-1]

    def stretch(self, factor: float) -> PiecewiseLinear:
        """The same shape over `factor` times as many epochs."""
        return PiecewiseLinear(tuple(k * factor for k in self.knots), self.values)


@dataclass(frozen=True)
class Constant:
    """The same lr at every epoch."""

    value: float

    def __post_init__(self) -> None:
        in_range("lr", self.value, 0.0, math.inf)

    def __call__(self, epoch: float) -> float:
        return self.value

    def stretch(self, factor: float) -> Constant:
        return self


Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Group:
    """Parameters whose names match a pattern ("*.bias"), with factors on the optimizer's lr and weight decay."""

    match: str
    lr_factor: float = 1.0
    weight_decay_factor: float = 1.0

    def __post_init__(self) -> None:
        in_range("lr_factor", self.lr_factor, 0.0, math.inf)
        in_range("weight_decay_factor", self.weight_decay_factor, 0.0, math.inf)


def lr_at(lr: float | Schedule, epoch: float) -> float:
    return lr(epoch) if callable(lr) else lr


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


def in_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value < high:
        raise DynamicsError(f"{name} must be a number of at least {low:g}, got {value!r}")


def below_one(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise DynamicsError(f"{name} must be at least 0 and below 1, got {value!r}")


def check_shared(optimizer: Any) -> None:
    """Check the fields that every optimizer has, lr, weight_decay (if it has one) and groups, which becomes a tuple."""
    if not callable(optimizer.lr):
        in_range("lr", optimizer.lr, 0.0, math.inf)
    in_range("weight_decay", getattr(optimizer, "weight_decay", 0.0), 0.0, math.inf)
    groups = optimizer.groups
    if not isinstance(groups, tuple | list) or not all(isinstance(g, Group) for g in groups):
        raise DynamicsError(f'groups must be a tuple of Group, got {groups!r}: write groups=(Group("*.bias", 2.0),)')
    object.__setattr__(optimizer, "groups", tuple(groups))
