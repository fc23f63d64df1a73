"""Averages of the weights along a run: exponential (EMA) and stochastic weight averaging (SWA).

An average is part of the State: {"params": ..., "buffers": ...} of the same names, and "n", how many points are in it.
It is updated after the weights: what a State at step t holds are averages of points up to θ_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import DynamicsError

Weights = Mapping[str, torch.Tensor]


class Averager(Protocol):
    """How a run's weights are averaged: the share that a new point gets, or 0 where none is taken."""

    def share(self, step: int, epoch: float, n: int) -> float: ...


@dataclass(frozen=True)
class EMA:
    """Exponential moving average: e <- r e + (1 - r) θ at every `every`-th step, r = decay ** every.

    It begins as a copy of the initial weights, as in Page's post 8 (torch's AveragedModel begins at its first update).
    Its timescale is 1 / (1 - decay) steps whatever `every` is; yet it averages fewer points than with every=1, and
    keeps more of their noise: its variance is (1 - r) / (1 + r) of theirs. Norms' running statistics are averaged too.
    """

    decay: float = 0.99
    every: int = 5

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise DynamicsError(f"decay must be at least 0 and below 1, got {self.decay!r}: 0.99, say")
        _whole("every", self.every)

    def share(self, step: int, epoch: float, n: int) -> float:
        return 0.0 if step % self.every else 1.0 - self.decay**self.every


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging: the plain mean of the weights at every `every`-th step from epoch `start` on.

    a <- (a n + θ) / (n + 1); until `start` it is the initial weights. Source: Izmailov et al. 2018, arXiv 1803.05407,
    Algorithm 1, where `every` is an epoch's steps. Norms' statistics should be recomputed: `averaged(run, split)`.
    """

    start: float = 0.0
    every: int = 5

    def __post_init__(self) -> None:
        if not isinstance(self.start, int | float) or self.start < 0:
            raise DynamicsError(f"start must be a number of epochs of at least 0, got {self.start!r}")
        _whole("every", self.every)

    def share(self, step: int, epoch: float, n: int) -> float:
        return 0.0 if step % self.every or epoch < self.start else 1.0 / (n + 1)


def begin_average(params: Weights, buffers: Weights) -> dict[str, Any]:
    """An average that holds no point yet but looks like the weights it begins from."""
    copies = {"params": params, "buffers": floating(buffers)}
    start = {k: {name: t.detach().clone() for name, t in group.items()} for k, group in copies.items()}
    return {**start, "n": torch.zeros((), dtype=torch.int64)}


@torch.no_grad()
def add_to_average(
    averager: Averager, average: Mapping[str, Any], step: int, epoch: float, params: Weights, buffers: Weights
) -> None:
    """Take the point θ_step into the average, in place, if it is due."""
    share = averager.share(step, epoch, int(average["n"]))
    if share:
        ours = [*average["params"].values(), *average["buffers"].values()]
        torch._foreach_lerp_(ours, [*params.values(), *floating(buffers).values()], share)
        average["n"].add_(1)


def floating(buffers: Weights) -> dict[str, torch.Tensor]:
    """The buffers that can be averaged: statistics, not counters."""
    return {k: b for k, b in buffers.items() if b.is_floating_point()}


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DynamicsError(f"{name} must be a whole number of steps of at least 1, got {value!r}")
