"""Optimizers as pure functions of values, and learning-rate schedules in epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Protocol

import torch

from .errors import DynamicsError

Tensors = Mapping[str, torch.Tensor]


class Optimizer(Protocol):
    """An optimizer is a pair of pure functions, and says which hyperparameters are in force.

    `update` returns the change of every parameter as a value (it is added to the parameters by the training
    loop) and the optimizer's next state; neither argument is modified.
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
            _in_range("lr", value, 0.0, math.inf)

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
        _in_range("lr", self.value, 0.0, math.inf)

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
        _in_range("lr_factor", self.lr_factor, 0.0, math.inf)
        _in_range("weight_decay_factor", self.weight_decay_factor, 0.0, math.inf)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: plain, heavy ball or Nesterov, with coupled or decoupled weight decay.

    lr: a number or a schedule in epochs, per unit of the batch-mean gradient. The velocity is a sum of gradients and
    is multiplied by the current lr, as in torch.optim.SGD; Page's code keeps lr inside the velocity, which is the
    same at constant lr only. Decay is coupled (added to the gradient) unless `decoupled`, which shrinks the weights
    by 1 - lr * weight_decay (Loshchilov and Hutter 2019). groups: the first group that matches a name applies.
    Raises DynamicsError for hyperparameters out of range, and for a group that matches nothing.
    """

    lr: float | Schedule = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decoupled: bool = False
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.lr):
            _in_range("lr", self.lr, 0.0, math.inf)
        if not 0.0 <= self.momentum < 1.0:
            raise DynamicsError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise DynamicsError("Nesterov needs momentum: set momentum (0.9, say) or nesterov=False")
        _in_range("weight_decay", self.weight_decay, 0.0, math.inf)
        object.__setattr__(self, "groups", tuple(self.groups))

    def lr_at(self, epoch: float) -> float:
        return self.lr(epoch) if callable(self.lr) else self.lr

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Names by group: (pattern, names) for each group in order, and last ("default", the rest)."""
        return _partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        """What is in force at this epoch: name -> one number a group, in the order of `partition`."""
        lr, n = self.lr_at(epoch), len(self.groups) + 1
        return {
            "lr": (*(lr * g.lr_factor for g in self.groups), lr),
            "weight_decay": (*(self.weight_decay * g.weight_decay_factor for g in self.groups), self.weight_decay),
            "momentum": (self.momentum,) * n,
            "nesterov": (float(self.nesterov),) * n,
            "decoupled": (float(self.decoupled),) * n,
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        self.partition(tuple(params))
        return {"velocity": {k: torch.zeros_like(p) for k, p in params.items()}} if self.momentum else {}

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Changes of the parameters, and the next velocity; `epoch` is the time that the schedule is read at."""
        in_force = self.hyperparameters(epoch)
        updates: dict[str, torch.Tensor] = {}
        velocity: dict[str, torch.Tensor] = {}
        groups = self.partition(tuple(params))
        for (_, names), lr, decay in zip(groups, in_force["lr"], in_force["weight_decay"], strict=True):
            if not names:
                continue
            weights, step = [params[k] for k in names], [grads[k] for k in names]
            ours = bool(decay) and not self.decoupled  # whether `step` is ours to write to
            if ours:
                step = torch._foreach_add(step, weights, alpha=decay)
            if self.momentum:
                moving = torch._foreach_add(step, [opt["velocity"][k] for k in names], alpha=self.momentum)
                velocity.update(zip(names, moving, strict=True))
                if not self.nesterov:
                    step, ours = moving, False
                elif ours:  # in place: at full width every pass over the weights is felt
                    torch._foreach_add_(step, moving, alpha=self.momentum)
                else:
                    step, ours = torch._foreach_add(step, moving, alpha=self.momentum), True
            if ours:
                torch._foreach_mul_(step, -lr)
            else:
                step = torch._foreach_mul(step, -lr)
            if decay and self.decoupled:
                torch._foreach_add_(step, weights, alpha=-lr * decay)
            updates.update(zip(names, step, strict=True))
        return {k: updates[k] for k in params}, {"velocity": velocity} if self.momentum else {}


@lru_cache(maxsize=256)
def _partition(groups: tuple[Group, ...], names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
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


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value < high:
        raise DynamicsError(f"{name} must be a number of at least {low:g}, got {value!r}")
