"""Lookahead: slow weights that follow those of another optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import DynamicsError
from .base import Group, Optimizer, Schedule, Tensors
from .checks import whole

STATE = ("slow", "fast_steps")
"""What Lookahead adds to the inner optimizer's state."""


@dataclass(frozen=True, init=False)
class Lookahead:
    """Lookahead: k steps of the inner optimizer, then back to slow weights, which went a part alpha of that way.

    Every k steps slow ← slow + alpha (fast - slow) and fast ← slow, so that the update of such a step includes the pull
    back. The weights that a run has are the fast ones, which equal the slow ones after every k-th step (evaluate there:
    in between they are ahead). The inner optimizer's own state goes on through it. inner: any optimizer but another
    Lookahead. lr: another lr for the inner optimizer, whose lr and groups are Lookahead's too.

    State: the inner optimizer's entries, `slow` by parameter, and `fast_steps`, the number of updates made. Raises
    DynamicsError for what is no optimizer, k below 1, and alpha not above 0 and at most 1.
    Source: Zhang et al. 2019, arXiv 1907.08610, Algorithm 1.
    """

    inner: Optimizer
    k: int
    alpha: float

    def __init__(self, inner: Optimizer, k: int = 5, alpha: float = 0.5, *, lr: float | Schedule | None = None) -> None:
        parts = ("init", "update", "partition", "hyperparameters")
        if isinstance(inner, type) or not all(hasattr(inner, part) for part in parts):
            raise DynamicsError(f"inner must be an optimizer, got {inner!r}: write Lookahead(SGD(0.1))")
        if isinstance(inner, Lookahead):
            raise DynamicsError("Lookahead takes an optimizer other than Lookahead: nest no further")
        whole("k", k)
        if not isinstance(alpha, int | float) or not 0 < alpha <= 1:
            raise DynamicsError(f"alpha must be above 0 and at most 1, got {alpha!r}")
        # so that dataclasses.replace(optimizer, lr=...) is what it is for every optimizer
        object.__setattr__(self, "inner", inner if lr is None else replace(inner, lr=lr))
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "alpha", alpha)

    @property
    def lr(self) -> float | Schedule:
        return self.inner.lr

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.inner.groups

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return self.inner.partition(names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        inner = self.inner.hyperparameters(epoch)
        n = len(next(iter(inner.values())))
        return {**inner, "lookahead_k": (float(self.k),) * n, "lookahead_alpha": (float(self.alpha),) * n}

    def init(self, params: Tensors) -> dict[str, Any]:
        return {
            **self.inner.init(params),
            "slow": {k: p.clone() for k, p in params.items()},
            # on the CPU: reading it must not wait for the device
            "fast_steps": torch.zeros((), dtype=torch.float32),
        }

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        inner = {key: value for key, value in opt.items() if key not in STATE}
        updates, inner = self.inner.update(grads, inner, params, epoch)
        count, weights = opt["fast_steps"] + 1, [*params.values()]
        before = [opt["slow"][k] for k in params]
        if int(count) % self.k:
            slow = [s.clone() for s in before]
        else:
            fast = torch._foreach_add(weights, [updates[k] for k in params])
            slow = torch._foreach_lerp(before, fast, self.alpha)
            updates = dict(zip(params, torch._foreach_sub(slow, weights), strict=True))
        return updates, {**inner, "slow": dict(zip(params, slow, strict=True)), "fast_steps": count}
