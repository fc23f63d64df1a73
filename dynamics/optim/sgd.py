"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DynamicsError
from .base import Group, Schedule, Tensors, below_one, check_shared, lr_and_decay, lr_at, partition


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
        check_shared(self)
        below_one("momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise DynamicsError("Nesterov needs momentum: set momentum (0.9, say) or nesterov=False")

    def lr_at(self, epoch: float) -> float:
        return lr_at(self.lr, epoch)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Names by group: (pattern, names) for each group in order, and last ("default", the rest)."""
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        """What is in force at this epoch: name -> one number a group, in the order of `partition`."""
        n = len(self.groups) + 1
        return {
            **lr_and_decay(self.lr, self.weight_decay, self.groups, epoch),
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
