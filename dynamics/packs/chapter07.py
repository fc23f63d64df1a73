"""The recordings of chapter 07: LARS beside SGD on one schedule, and SGD at three batch sizes; and what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .. import theory
from ..errors import DynamicsError, unknown
from ..optim import LARS, SGD, Group, PageLARS, PiecewiseLinear, Tensors
from ..optim.base import lr_at, partition
from ..probes import angles, diffusion, every
from ..recipes import EQUILIBRIUM
from ..runs import Run
from ..training import Recipe
from .record import Recording

BY = ("filter", "layer")

BLOCKS = 32
"""Curves are kept as means over so many equal parts of a run."""

HIDDEN = slice(1, -1)
"""Of a net's layers: not the first, which sees images, and not the classifier, which no norm follows."""

SETTLED = 0.4
"""The part of a run at constant lr that is left out: five time constants, in which norms settle."""


@dataclass(frozen=True)
class LikeSGD:
    """LARS for the parameters that match, at the rate of SGD's equilibrium sqrt(2ηλ(1-ρ)); for the others SGD itself.

    sgd: heavy ball with coupled decay and no groups, whose lr η may be a schedule: the rate follows it step by step.
    by: "filter" (Page's definition, `PageLARS`) or "layer" (the common one, `LARS`). factor multiplies the rate, and
    decay_factor the weight decay that LARS is given, not the one that the rate is of. eps is PageLARS's. State: one
    velocity for all, as SGD's. Raises DynamicsError for another `by`, and for an sgd that these rates are not of.
    Source: Page, post 6; `theory.equivalent_lars_rate`.
    """

    sgd: SGD
    by: str = "filter"
    match: str = "*conv.weight"
    factor: float = 1.0
    decay_factor: float = 1.0
    eps: float = 0.0

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise unknown("by", self.by, BY)
        if not isinstance(self.sgd, SGD) or self.sgd.groups or self.sgd.nesterov or self.sgd.decoupled:
            raise DynamicsError(
                "LikeSGD takes heavy ball with coupled decay and no groups: write SGD(lr, momentum=, weight_decay=)"
            )

    def rate(self, epoch: float) -> float:
        """The share of its norm that a weight moves by in a step without momentum."""
        eta = lr_at(self.sgd.lr, epoch)
        found = theory.equivalent_lars_rate(eta, self.sgd.weight_decay, momentum=self.sgd.momentum)
        return self.factor * float(found)

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition((Group(self.match),), names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        decay = self.sgd.weight_decay
        return {
            "lr": (self.rate(epoch), lr_at(self.sgd.lr, epoch)),
            "weight_decay": (decay * self.decay_factor, decay),
            "momentum": (float(self.sgd.momentum),) * 2,
            "nesterov": (0.0, 0.0),
            "decoupled": (0.0, 0.0),
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        self.partition(tuple(params))
        return self.sgd.init(params)

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        (_, adapted), (_, rest) = self.partition(tuple(params))
        updates: dict[str, torch.Tensor] = {}
        velocity: dict[str, torch.Tensor] = {}
        for optimizer, names in ((self._lars(epoch), adapted), (self.sgd, rest)):
            moves, state = optimizer.update(
                {k: grads[k] for k in names}, opt, {k: params[k] for k in names}, epoch
            )  # fmt: skip
            updates.update(moves)
            velocity.update(state.get("velocity", {}))
        kept = {"velocity": {k: velocity[k] for k in params}} if velocity else {}
        return {k: updates[k] for k in params}, kept

    def _lars(self, epoch: float) -> PageLARS | LARS:
        common = {"momentum": self.sgd.momentum, "weight_decay": self.sgd.weight_decay * self.decay_factor}
        if self.by == "filter":
            return PageLARS(self.rate(epoch), nesterov=False, eps=self.eps, **common)
        return LARS(self.rate(epoch), trust=1.0, **common)


def like_sgd(recipe: Recipe, by: str = "filter", **changes: Any) -> Recipe:
    """A recipe of SGD with its convolutions' steps by LARS, eps being Page's 1e-2 in units of the mean loss."""
    return replace(recipe, optimizer=LikeSGD(recipe.optimizer, by, **{"eps": 1e-2 / recipe.batch_size, **changes}))


def similarity(run: Run) -> dict[str, Any]:
    """Of a run on a schedule: test accuracy at each epoch and at the end, and along the run the training loss and the
    rms angle of each layer, in `BLOCKS` parts; nothing of one that diverged."""
    if run.status == "diverged":
        return {}
    valid, read, total = run["valid"], run["angles"], run.state.step
    of_layers = {
        f"angle {layer}": np.sqrt(_blocks(read.step.values, read.angle.sel(layer=layer).values ** 2, total))
        for layer in read.layer.values
    }
    return {
        "accuracy": float(valid.accuracy[-1]),
        "test_loss": float(valid.loss[-1]),
        "accuracies": valid.accuracy.values,
        "losses": _blocks(run["train"].step.values, run["train"].loss.values, total),
        **of_layers,
    }


def turned(run: Run) -> dict[str, Any]:
    """Of a run at constant lr, settled: the mean squared angle of a step, and -2 ln <cos> of windows of k steps, nan
    where no window begins in the settled part; nothing of one that diverged."""
    if run.status == "diverged":
        return {}
    begin = SETTLED * run.state.step
    steps = run["angles"].angle.sel(step=slice(begin, None))
    found = {"square_1": float((steps[:, HIDDEN] ** 2).mean())}
    for k in WINDOWS:
        angle = run[f"turn_{k}"].angle.sel(step=slice(begin + k, None)).values[:, HIDDEN].astype(float)
        found[f"square_{k}"] = -2 * math.log(np.cos(angle).mean()) if angle.size else math.nan
    return found


def _blocks(steps: np.ndarray, values: np.ndarray, total: int) -> np.ndarray:
    """The mean of the values in each of `BLOCKS` equal parts of `total` steps; nan for one without any."""
    part = np.minimum(np.asarray(steps) * BLOCKS // total, BLOCKS - 1)
    count, added = (np.bincount(part, weights=w, minlength=BLOCKS) for w in (None, values))
    with np.errstate(invalid="ignore"):
        return added / count


SCHEDULED = replace(
    EQUILIBRIUM,
    optimizer=replace(EQUILIBRIUM.optimizer, lr=PiecewiseLinear((0, 1.6, 8), (0, 0.1, 0))),
    epochs=8,
)
"""Heavy ball with a warmup and a linear decay: 6 time constants of the norm, where Page's 24 epochs have 9."""

SIMILARITY = Recording(
    chapter="07",
    recipes={
        "sgd": SCHEDULED,
        "lars_by_filter": like_sgd(SCHEDULED),
        "lars_by_layer": like_sgd(SCHEDULED, "layer"),
        # the rate of the formula without momentum: a difference that the comparison must not miss
        "lars_too_fast": like_sgd(SCHEDULED, factor=1 / math.sqrt(1 - SCHEDULED.optimizer.momentum)),
    },
    seeds=tuple(range(8)),
    figures=similarity,
    limit=10_000,
    probes={"angles": every(5, angles)},
)

BATCHES = (32, 64, 128)

WINDOWS = (8, 16, 32, 64, 78, 128, 156, 256, 312)
"""In steps: powers of two, which at all batch sizes make 1,024 to 8,192 images, and each batch size's epoch."""

IMAGES = 40_960

BATCH_SCALING = Recording(
    chapter="07",
    recipes={
        f"batch_{n}": replace(
            EQUILIBRIUM,
            batch_size=n,
            optimizer=replace(EQUILIBRIUM.optimizer, lr=0.1 * n / 64),
            epochs=IMAGES / n / (10_000 // n),
        )
        for n in BATCHES
    },
    seeds=tuple(range(8)),
    figures=turned,
    limit=10_000,
    probes={"angles": every(4, angles), **{f"turn_{k}": every(k, diffusion) for k in WINDOWS}},
)
