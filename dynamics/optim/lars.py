"""The two optimizers called LARS: Page's, per output channel, and the published one, per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DynamicsError
from .base import Group, Schedule, Tensors, below_one, check_shared, in_range, lr_and_decay, partition


@dataclass(frozen=True)
class PageLARS:
    """LARS as in Page's post 6: every output channel moves by a fraction lr of its own norm.

    For each slice w of a tensor along its first dimension, with g its raw gradient (before decay),
    r = ‖w‖ / (‖g‖ + eps), d = r (g + weight_decay w), v ← momentum v + d, and w moves by -lr v, or by
    -lr (d + momentum v) with `nesterov`. So the decay is scaled by the local rate as well, and a slice of norm 0 stays
    where it is. Tensors of two or more dimensions are adapted; the others have r = 1, which is plain `SGD` at this lr:
    mind that lr is a relative step for the former, and give the latter a Group of their own.

    The velocity is multiplied by the current lr, as in torch.optim.SGD. Page's code keeps lr inside the velocity, which
    is the same at constant lr only. eps: in units of the batch-mean gradient; Page's 1e-2 is for the batch sum, and so
    1e-2 / batch size here (the default is for 512). The lr that goes with SGD's equilibrium at lr η, weight decay λ and
    momentum ρ is sqrt(2 η λ (1 - ρ)). Raises DynamicsError for hyperparameters out of range, and for a group that
    matches nothing.
    """

    lr: float | Schedule = 3e-3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    eps: float = 1e-2 / 512
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        check_shared(self)
        below_one("momentum", self.momentum)
        in_range("eps", self.eps, 0.0, math.inf)
        if self.nesterov and self.momentum == 0:
            raise DynamicsError("Nesterov needs momentum: set momentum (0.9, say) or nesterov=False")

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        n = len(self.groups) + 1
        return {
            **lr_and_decay(self.lr, self.weight_decay, self.groups, epoch),
            "momentum": (float(self.momentum),) * n,
            "nesterov": (float(self.nesterov),) * n,
            "decoupled": (0.0,) * n,
            "eps": (float(self.eps),) * n,
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        return _init(self, params)

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        def ratio(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
            inputs = tuple(range(1, w.ndim))
            norm = torch.linalg.vector_norm(w, dim=inputs, keepdim=True)
            size = torch.linalg.vector_norm(g, dim=inputs, keepdim=True) + self.eps
            return torch.where(size > 0, norm / size, 1.0)  # eps may be 0

        return _update(self, ratio, grads, opt, params, epoch, nesterov=self.nesterov)


@dataclass(frozen=True)
class LARS:
    """Layer-wise adaptive rate scaling as published: every tensor moves by a fraction of its norm, at most lr * trust.

    For a tensor w with gradient g, r = trust ‖w‖ / (‖g‖ + weight_decay ‖w‖), v ← momentum v + r (g + weight_decay w),
    and w moves by -lr v. Tensors of two or more dimensions are adapted; the others (biases, norms) have r = 1, which is
    plain `SGD` at this lr. So has a tensor of norm 0, which would never move. The paper keeps lr inside the velocity;
    here the velocity is multiplied by the current lr, as in torch.optim.SGD, which is the same at constant lr only.
    Raises DynamicsError for hyperparameters out of range, and for a group that matches nothing.
    Source: You, Gitman and Ginsburg 2017, arXiv 1708.03888, equation 6 and Algorithm 1.
    """

    lr: float | Schedule = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trust: float = 1e-3
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        check_shared(self)
        below_one("momentum", self.momentum)
        in_range("trust", self.trust, 0.0, math.inf)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        n = len(self.groups) + 1
        return {
            **lr_and_decay(self.lr, self.weight_decay, self.groups, epoch),
            "momentum": (float(self.momentum),) * n,
            "nesterov": (0.0,) * n,
            "decoupled": (0.0,) * n,
            "trust": (float(self.trust),) * n,
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        return _init(self, params)

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        def ratio(w: torch.Tensor, g: torch.Tensor, decay: float) -> torch.Tensor:
            norm, size = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
            size = size + decay * norm
            return torch.where((norm > 0) & (size > 0), self.trust * norm / size, 1.0)

        return _update(self, ratio, grads, opt, params, epoch, nesterov=False)


def _init(optimizer: PageLARS | LARS, params: Tensors) -> dict[str, Any]:
    optimizer.partition(tuple(params))
    return {"velocity": {k: torch.zeros_like(p) for k, p in params.items()}} if optimizer.momentum else {}


def _update(
    optimizer: PageLARS | LARS,
    ratio: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    grads: Tensors,
    opt: Mapping[str, Any],
    params: Tensors,
    epoch: float,
    *,
    nesterov: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    momentum, in_force = optimizer.momentum, optimizer.hyperparameters(epoch)
    updates: dict[str, torch.Tensor] = {}
    velocity: dict[str, torch.Tensor] = {}
    groups = optimizer.partition(tuple(params))
    for (_, names), lr, decay in zip(groups, in_force["lr"], in_force["weight_decay"], strict=True):
        if not names:
            continue
        weights, raw = [params[k] for k in names], [grads[k] for k in names]
        step = torch._foreach_add(raw, weights, alpha=decay) if decay else raw
        step = [
            d * ratio(w, g, decay) if w.ndim >= 2 else d for d, w, g in zip(step, weights, raw, strict=True)
        ]  # fmt: skip
        if momentum:
            moving = torch._foreach_add(step, [opt["velocity"][k] for k in names], alpha=momentum)
            velocity.update(zip(names, moving, strict=True))
            step = torch._foreach_add(step, moving, alpha=momentum) if nesterov else moving
        updates.update(zip(names, torch._foreach_mul(step, -lr), strict=True))
    return {k: updates[k] for k in params}, {"velocity": {k: velocity[k] for k in params}} if momentum else {}
