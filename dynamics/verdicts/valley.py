"""T-1: the loss after full-batch gradient descent against its rate, which the initial curvature places."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import torch.nn.functional as F

from .. import theory
from ..claims import Claim
from ..curvature import Hessian, top_eigenpairs
from ..data import Augment, load_data
from ..nets import Net
from ..optim import SGD, Constant
from ..training import Recipe, steps
from .measurement import shapes

NOTES = "notes"
VALLEY = Recipe(
    Net("mlp", depth=2, width=32, act="celu"),
    SGD(Constant(1.0), momentum=0.0, weight_decay=0.0),
    batch_size=500,
    epochs=60,
    augment=Augment(pad=0, flip=False),
    precision="float32",
    channels_last=False,
)
RATES = tuple(4.0**k for k in range(-4, 4))
"""In units of the largest stable one, 2 over the largest eigenvalue of the Hessian at the initial weights."""


@cache
def _valley(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The last loss at each rate, infinite where it has diverged, and the share of steps at which the loss rose."""
    data = load_data("shapes", limit=VALLEY.batch_size).train
    net = VALLEY.net.build(classes=len(data.classes), seed=seed)
    batch = data.padded().permute(0, 3, 1, 2).contiguous(), data.labels
    top = top_eigenpairs(Hessian(net, F.cross_entropy, [batch]), 1, tol=1e-3, progress=False)
    bound = float(theory.stability_bound(float(top.values[0])))
    last, rose = [], []
    for rate in RATES:
        recipe = replace(VALLEY, seed=seed, optimizer=replace(VALLEY.optimizer, lr=Constant(rate * bound)))
        losses = [float(snap.loss) for snap in islice(steps(recipe, data), VALLEY.epochs)]
        high = not math.isfinite(losses[-1]) or losses[-1] > 3 * losses[0]
        last.append(math.inf if high else losses[-1])
        rose.append(float(np.mean(~(np.diff(losses) < 0))))
    return np.array(last), np.array(rose)


def slow_side(seed: int) -> float:
    """The loss at the lowest rate over that at the best."""
    last, _ = _valley(seed)
    return last[0] / last.min()


def diverges(seed: int) -> float:
    """1 where training diverges at the highest rate, else 0."""
    return float(np.isinf(_valley(seed)[0][-1]))


def turns(seed: int) -> float:
    """How often the loss goes up and then down again as the rate grows: 0 in a valley."""
    slopes = np.sign([b - a if b != a else 1.0 for a, b in zip(_valley(seed)[0], _valley(seed)[0][1:], strict=False)])
    return float(np.sum((slopes[:-1] > 0) & (slopes[1:] < 0)))


def oscillates(seed: int) -> float:
    """The share of steps at which the loss rises, just beyond the best rate less that at the lowest."""
    last, rose = _valley(seed)
    return float(rose[min(int(last.argmin()) + 1, len(RATES) - 1)] - rose[0])


MEASUREMENTS = (
    # a tenth more than the least loss is no longer at the bottom
    shapes(
        Claim("T-1", "loss at the lowest rate over the least loss", NOTES, 1.1, math.inf),
        slow_side, seeds=4, recipes=(VALLEY,),
    ),
    shapes(
        Claim("T-1", "runs that diverge at 64 times the largest stable rate, as a share", NOTES, 1, 1),
        diverges, seeds=4, exact=True, recipes=(VALLEY,),
    ),
    shapes(
        Claim("T-1", "hills in the loss against the rate", NOTES, 0, 0),
        turns, seeds=4, exact=True, recipes=(VALLEY,),
    ),
    # one step in twenty more
    shapes(
        Claim("T-1", "share of steps that raise the loss, beyond the best rate less at the lowest", NOTES, 0.05, 1),
        oscillates, seeds=4, recipes=(VALLEY,),
    ),
)  # fmt: skip
