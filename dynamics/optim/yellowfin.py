"""YellowFin: heavy ball that tunes its own momentum and learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .base import Group, Schedule, Tensors, below_one, check_shared, lr_and_decay, partition
from .checks import whole

SMALLEST = 1e-12
"""The least ‖g‖² that is taken: its logarithm and its inverse are."""
STATISTICS = ("square", "size", "distance", "log_max", "log_min")


@dataclass(frozen=True)
class YellowFin:
    """Heavy-ball SGD whose momentum and lr are set in every step from how gradients vary, for all weights together.

    Of the gradient g at step t, h = ‖g‖² stands for the curvature (as in Fisher's information of a log likelihood).
    Averages with factor `beta`, corrected for their start at zero, are kept of the logarithms of the largest and the
    smallest h in the last `window` steps, H and L; of g and h, whence the variance C = avg h - ‖avg g‖²; and of
    avg ‖g‖ / avg h, the distance D to the minimum. `single_step` makes a momentum and an lr of them, and in the first
    10 `window` steps the lr grows in proportion to the step. Gradients are measured without weight decay.

    lr: a number or a schedule that multiplies the tuned lr, 1 as published. clip: from the second step on,
    scale gradients down to the norm sqrt(H) of the steps before; for the averages to 10 sqrt(H), so that H can grow.
    State: `velocity`, the averages, and the `lr` (lr's factor included, a Group's not) and `momentum` that the last
    update took, 0-d tensors that a probe can read: the state that enters step t has those of step t - 1.
    As nobody knows them from the epoch alone, `hyperparameters` says nan for lr and momentum, and so do readings that
    need lr; `lr_factor` is what multiplies the tuned lr. Raises DynamicsError for hyperparameters out of range, and
    for a group that matches nothing.
    Source: Zhang and Mitliagkas 2017, arXiv 1706.03471, Algorithms 1 to 4, with the logarithms, the slow start and the
    clipping of the authors' code (JianGoForIt/YellowFin_Pytorch), and without its guards of 1e-6.
    """

    lr: float | Schedule = 1.0
    beta: float = 0.999
    window: int = 20
    clip: bool = False
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        check_shared(self)
        below_one("beta", self.beta)
        whole("window", self.window)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        n = len(self.groups) + 1
        given = lr_and_decay(self.lr, self.weight_decay, self.groups, epoch)
        return {
            **given,
            "lr": (math.nan,) * n,
            "momentum": (math.nan,) * n,
            "lr_factor": given["lr"],
            "nesterov": (0.0,) * n,
            "decoupled": (0.0,) * n,
            "beta": (float(self.beta),) * n,
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        self.partition(tuple(params))
        scalar = torch.zeros((), dtype=torch.float64, device=next(iter(params.values())).device)
        return {
            # on the CPU: reading it must not wait for the device
            "step": torch.zeros((), dtype=torch.float32),
            "velocity": {k: torch.zeros_like(p) for k, p in params.items()},
            "mean": {k: torch.zeros_like(p) for k, p in params.items()},
            **{name: scalar.clone() for name in (*STATISTICS, "lr", "momentum")},
            "window": scalar.new_zeros(self.window),
        }

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        gradients = [grads[k] for k in params]
        h = _square(gradients)
        applied = gradients
        if self.clip and opt["step"]:
            largest = (opt["log_max"] / self._weight(opt["step"])).exp()
            gradients = torch._foreach_mul(gradients, (100 * largest / h).clamp(max=1).sqrt())
            applied = torch._foreach_mul(applied, (largest / h).clamp(max=1).sqrt())
            h = torch.minimum(h, 100 * largest)
        following = self._measured(gradients, h, opt, params)
        lr, momentum = following["lr"], following["momentum"]
        given = self.hyperparameters(epoch)
        # 0-d tensors, and so nothing waits for the device here
        following["lr"] = lr * given["lr_factor"][-1]
        updates: dict[str, torch.Tensor] = {}
        velocity: dict[str, torch.Tensor] = {}
        steps = dict(zip(params, applied, strict=True))
        groups = self.partition(tuple(params))
        for (_, names), factor, decay in zip(groups, given["lr_factor"], given["weight_decay"], strict=True):
            if not names:
                continue
            moving = torch._foreach_mul([opt["velocity"][k] for k in names], momentum)
            torch._foreach_add_(moving, [steps[k] for k in names])
            if decay:
                torch._foreach_add_(moving, [params[k] for k in names], alpha=decay)
            velocity.update(zip(names, moving, strict=True))
            updates.update(zip(names, torch._foreach_mul(moving, -factor * lr), strict=True))
        following["velocity"] = {k: velocity[k] for k in params}
        return {k: updates[k] for k in params}, {k: following[k] for k in opt}

    def _measured(
        self, gradients: list[torch.Tensor], h: torch.Tensor, opt: Mapping[str, Any], params: Tensors
    ) -> dict[str, Any]:
        """The next averages and what they make of momentum and lr (without lr's factor)."""
        step = opt["step"] + 1
        weight, seen = self._weight(step), min(int(step), self.window)
        h = h.clamp(min=SMALLEST)
        window = torch.cat([opt["window"][1:], h[None]])
        mean = torch._foreach_lerp([opt["mean"][k] for k in params], gradients, 1 - self.beta)
        square, size = self._average(opt["square"], h), self._average(opt["size"], h.sqrt())
        distance = self._average(opt["distance"], size / square)  # their corrections cancel
        log_max = self._average(opt["log_max"], window[-seen:].max().log())
        log_min = self._average(opt["log_min"], window[-seen:].min().log())
        variance = (square / weight - _square(mean) / weight**2).clamp(min=0)
        lr, momentum = single_step(
            variance, distance / weight, (log_min / weight).exp(), (log_max / weight).exp()
        )  # fmt: skip
        return {
            "step": step,
            "mean": dict(zip(params, mean, strict=True)),
            "square": square,
            "size": size,
            "distance": distance,
            "log_max": log_max,
            "log_min": log_min,
            "window": window,
            "lr": lr * min(1.0, float(step) / (10 * self.window)),
            "momentum": momentum,
        }

    def _average(self, before: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.beta * before + (1 - self.beta) * value

    def _weight(self, step: torch.Tensor) -> float:
        """The sum of an average's weights after as many steps, which it is divided by."""
        return 1 - self.beta ** float(step)


def single_step(
    variance: torch.Tensor, distance: torch.Tensor, h_min: torch.Tensor, h_max: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lr and the momentum that make a noisy quadratic of curvatures h_min to h_max smallest after one step.

    momentum minimises momentum D² + lr² C, subject to lr = (1 - sqrt(momentum))² / h_min and to momentum being at least
    ((sqrt r - 1) / (sqrt r + 1))², r = h_max / h_min, which puts every curvature into the region where heavy ball
    contracts by sqrt(momentum) a step (`theory.robust_region`). All are 0-d float64 tensors. Source: Zhang and
    Mitliagkas 2017, arXiv 1706.03471, SingleStep; the root of their cubic is written as a hyperbolic sine.
    """
    # x = sqrt(momentum) solves p x = (1 - x)³; the bounds keep p and 1/p finite without noise or without distance
    p = (distance.square() * h_min.square() / (2 * variance)).clamp(1e-24, 1e24)
    y = 2 * (p / 3).sqrt() * ((1.5 * (3 / p).sqrt()).asinh() / 3).sinh()
    ratio = (h_max / h_min).sqrt()
    root = torch.maximum(y**3 / p, (ratio - 1) / (ratio + 1))
    return (1 - root).square() / h_min, root.square()


def _square(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The sum of squares of all entries, a 0-d float64 tensor."""
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
