"""P8-11: how the learned scales of batch norm fall, against weight decay alone.

In 400 steps decay alone leaves of them what it left in post 8's run of 18 epochs, 0.073.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from .. import theory
from ..claims import Claim
from ..data import load_data
from ..nets import Net
from ..optim import SGD, PiecewiseLinear
from ..training import Recipe, steps
from .measurement import shapes

POST = "post 8"
SCALES = Recipe(
    Net("resnet9", width=8),
    SGD(PiecewiseLinear((0, 1, 5), (0, 0.2, 0)), momentum=0.9, nesterov=True, weight_decay=6e-3),
    batch_size=32,
    epochs=5,
    precision="float32",
)
SCALES_IMAGES = 2_560


def _scale(recipe: Recipe, step: int) -> float:
    """The mean over layers of a layer's mean scale, before the update of a step."""
    snap = next(islice(steps(recipe, load_data("shapes", limit=SCALES_IMAGES).train), step, None))
    means = [p.mean() for name, p in snap.params.items() if name.endswith("norm.weight")]
    return float(torch.stack(means).mean())


def by_decay_alone() -> np.ndarray:
    """What weight decay alone leaves of a scale before each update, and at the end."""
    per_epoch = SCALES_IMAGES // SCALES.batch_size
    lr = [SCALES.optimizer.lr((t + 1) / per_epoch) for t in range(round(SCALES.epochs * per_epoch))]
    return theory.decay_trajectory(1.0, lr, SCALES.optimizer.weight_decay, momentum=0.9, nesterov=True)


def scales_fall(seed: int, weight_decay: float | None = None) -> float:
    """The logarithm of the scales at the step at which decay alone would leave 1/4, over that of what it would."""
    alone = by_decay_alone()
    quarter = int(np.argmax(alone <= 0.25))
    recipe = replace(SCALES, seed=seed)
    if weight_decay is not None:
        recipe = replace(recipe, optimizer=replace(SCALES.optimizer, weight_decay=weight_decay))
    return math.log(_scale(recipe, quarter)) / math.log(alone[quarter])


def _without_decay(seed: int) -> float:
    return scales_fall(seed, weight_decay=0.0)


MEASUREMENTS = (
    # "mostly" is more than half of the change, and less than half as much again
    shapes(
        Claim("P8-11", "logarithm of the scales over that of what decay alone leaves, 1/4", POST, 0.5, 1.5),
        scales_fall, seeds=4, recipes=(SCALES,),
    ),
    shapes(
        Claim("P8-11", "ablation: the same without decay", "ablation", -0.5, 0.5),
        _without_decay, seeds=4, recipes=(SCALES,),
    ),
)  # fmt: skip
