"""T-6: stochastic weight averaging at a rate that stays high, against the last weights."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import cache

import torch.nn.functional as F

from ..claims import Claim
from ..curvature import Hessian, top_eigenpairs
from ..data import load_data
from ..nets import Net
from ..optim import SGD, Constant
from ..training import SWA, Recipe, averaged, evaluate, steps
from .measurement import shapes

NOTES = "notes"
AVERAGED = Recipe(
    Net("resnet9", width=4),
    SGD(Constant(0.1), momentum=0.9, nesterov=True, weight_decay=5e-4),
    batch_size=64,
    epochs=6,
    precision="float32",
    average=SWA(start=3.0, every=10),
)
AVERAGED_IMAGES = 4_000


@cache
def _swa(seed: int) -> tuple[float, float]:
    """Points of accuracy that the average gains over the last iterate, and its largest curvature over that one's."""
    data = load_data("shapes", limit=AVERAGED_IMAGES)
    last = deque(steps(replace(AVERAGED, seed=seed), data.train), maxlen=1).pop()
    mean = averaged(last, data.train)
    gain = evaluate(last, data.test, state=mean).accuracy - evaluate(last, data.test).accuracy
    part = data.train[:500]
    batch = part.padded().permute(0, 3, 1, 2).contiguous(), part.labels
    tops = []
    for params in (mean.params, last.params):
        net = AVERAGED.net.build(classes=len(data.train.classes), seed=seed).train()
        net.load_state_dict(dict(params), strict=False)
        pair = top_eigenpairs(Hessian(net, F.cross_entropy, [batch], bn="batch"), 1, tol=1e-2, progress=False)
        tops.append(float(pair.values[0]))
    return 100 * gain, tops[0] / tops[1]


def swa_gains(seed: int) -> float:
    return _swa(seed)[0]


def swa_flattens(seed: int) -> float:
    return _swa(seed)[1]


MEASUREMENTS = (
    shapes(
        Claim("T-6", "points of accuracy that the average gains over the last weights", NOTES, 0, 100, "points"),
        swa_gains, seeds=4, recipes=(AVERAGED,),
    ),
    shapes(
        Claim("T-6", "largest eigenvalue of the Hessian, of the average over that of the last weights", NOTES, 0, 1),
        swa_flattens, seeds=4, recipes=(AVERAGED,),
    ),
)  # fmt: skip
