"""Lion, the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .base import Group, Schedule, Tensors, below_one, check_shared, lr_and_decay, partition


@dataclass(frozen=True)
class Lion:
    """Lion: a step of lr along the sign of beta1 * exp_avg + (1 - beta1) * gradient, with decoupled weight decay.

    lr: a number or a schedule in epochs; every entry moves by lr, whatever its gradient. beta1 interpolates for the
    step, beta2 for the average that is kept. State: `exp_avg` by parameter. Raises DynamicsError for hyperparameters
    out of range, and for a group that matches nothing. Source: Chen et al. 2023, arXiv 2302.06675, Algorithm 2.
    """

    lr: float | Schedule = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        check_shared(self)
        below_one("beta1", self.beta1)
        below_one("beta2", self.beta2)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        n = len(self.groups) + 1
        return {
            **lr_and_decay(self.lr, self.weight_decay, self.groups, epoch),
            "beta1": (float(self.beta1),) * n,
            "beta2": (float(self.beta2),) * n,
            "decoupled": (1.0,) * n,
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        self.partition(tuple(params))
        return {"exp_avg": {k: torch.zeros_like(p) for k, p in params.items()}}

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        in_force = self.hyperparameters(epoch)
        updates: dict[str, torch.Tensor] = {}
        means: dict[str, torch.Tensor] = {}
        groups = self.partition(tuple(params))
        for (_, names), lr, decay in zip(groups, in_force["lr"], in_force["weight_decay"], strict=True):
            if not names:
                continue
            g, before = [grads[k] for k in names], [opt["exp_avg"][k] for k in names]
            move = torch._foreach_mul(before, self.beta1)
            torch._foreach_add_(move, g, alpha=1 - self.beta1)
            torch._foreach_sign_(move)
            torch._foreach_mul_(move, -lr)
            if decay:
                torch._foreach_add_(move, [params[k] for k in names], alpha=-lr * decay)
            mean = torch._foreach_mul(before, self.beta2)
            torch._foreach_add_(mean, g, alpha=1 - self.beta2)
            updates.update(zip(names, move, strict=True))
            means.update(zip(names, mean, strict=True))
        return {k: updates[k] for k in params}, {"exp_avg": {k: means[k] for k in params}}
