"""Adam with coupled decay, and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .base import Group, Schedule, Tensors, below_one, check_shared, in_range, lr_and_decay, partition


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction and coupled weight decay (L2: the decay is added to the gradient).

    lr: a number or a schedule in epochs. State: `exp_avg`, `exp_avg_sq` by parameter, and `step`, the number of updates
    made, as torch.optim.Adam names them. Raises DynamicsError for hyperparameters out of range, and for a group that
    matches nothing. Source: Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        return _hyperparameters(self, epoch, decoupled=False)

    def init(self, params: Tensors) -> dict[str, Any]:
        return _init(self, params)

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return _update(self, grads, opt, params, epoch, decoupled=False)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, which shrinks the weights by 1 - lr * weight_decay, as in torch.optim.AdamW.

    Fields, state and errors are those of `Adam`. The paper's schedule multiplier scales the decay alone; here the lr
    does, which is the same up to the units of weight_decay. Source: Loshchilov and Hutter 2019, arXiv 1711.05101,
    Algorithm 2.
    """

    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        return _hyperparameters(self, epoch, decoupled=True)

    def init(self, params: Tensors) -> dict[str, Any]:
        return _init(self, params)

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return _update(self, grads, opt, params, epoch, decoupled=True)


def _check(optimizer: Adam | AdamW) -> None:
    check_shared(optimizer)
    below_one("beta1", optimizer.beta1)
    below_one("beta2", optimizer.beta2)
    in_range("eps", optimizer.eps, 0.0, math.inf)


def _hyperparameters(optimizer: Adam | AdamW, epoch: float, *, decoupled: bool) -> dict[str, tuple[float, ...]]:
    n = len(optimizer.groups) + 1
    return {
        **lr_and_decay(optimizer.lr, optimizer.weight_decay, optimizer.groups, epoch),
        "beta1": (float(optimizer.beta1),) * n,
        "beta2": (float(optimizer.beta2),) * n,
        "eps": (float(optimizer.eps),) * n,
        "decoupled": (float(decoupled),) * n,
    }


def _init(optimizer: Adam | AdamW, params: Tensors) -> dict[str, Any]:
    optimizer.partition(tuple(params))
    return {
        # stays on the CPU, as torch's does: reading it must not wait for the device
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": {k: torch.zeros_like(p) for k, p in params.items()},
        "exp_avg_sq": {k: torch.zeros_like(p) for k, p in params.items()},
    }


def _update(
    optimizer: Adam | AdamW,
    grads: Tensors,
    opt: Mapping[str, Any],
    params: Tensors,
    epoch: float,
    *,
    decoupled: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    beta1, beta2, in_force = optimizer.beta1, optimizer.beta2, optimizer.hyperparameters(epoch)
    step = opt["step"] + 1
    bias1, bias2 = 1 - beta1 ** float(step), 1 - beta2 ** float(step)
    updates: dict[str, torch.Tensor] = {}
    means: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    groups = optimizer.partition(tuple(params))
    for (_, names), lr, decay in zip(groups, in_force["lr"], in_force["weight_decay"], strict=True):
        if not names:
            continue
        weights, g = [params[k] for k in names], [grads[k] for k in names]
        if decay and not decoupled:
            g = torch._foreach_add(g, weights, alpha=decay)
        mean = torch._foreach_lerp([opt["exp_avg"][k] for k in names], g, 1 - beta1)
        square = torch._foreach_mul([opt["exp_avg_sq"][k] for k in names], beta2)
        torch._foreach_addcmul_(square, g, g, 1 - beta2)
        size = torch._foreach_sqrt(square)
        torch._foreach_div_(size, math.sqrt(bias2))
        torch._foreach_add_(size, optimizer.eps)
        move = torch._foreach_div(mean, size)
        torch._foreach_mul_(move, -lr / bias1)
        if decay and decoupled:
            torch._foreach_add_(move, weights, alpha=-lr * decay)
        updates.update(zip(names, move, strict=True))
        means.update(zip(names, mean, strict=True))
        squares.update(zip(names, square, strict=True))
    return {k: updates[k] for k in params}, {
        "step": step,
        "exp_avg": {k: means[k] for k in params},
        "exp_avg_sq": {k: squares[k] for k in params},
    }
