"""S-10: backward passes that keep a tenth of the gradients (meProp)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import cache

from ..claims import Claim
from ..data import load_data
from ..nets import Net
from ..optim import Adam, PiecewiseLinear
from ..training import Recipe, evaluate, steps
from .measurement import shapes

REPORT = "report"
SPARSE = Recipe(
    Net("mlp", depth=2, width=128, norm="batch", top_k=13),
    Adam(PiecewiseLinear((0, 5), (2e-3, 0))),
    batch_size=128,
    epochs=5,
    precision="float32",
)


@cache
def _accuracy(top_k: int, seed: int) -> float:
    data = load_data("shapes", limit=4_000)
    recipe = replace(SPARSE, net=SPARSE.net.replace(top_k=top_k), seed=seed)
    return 100 * evaluate(deque(steps(recipe, data.train), maxlen=1).pop(), data.test).accuracy


def sparse_loses(seed: int, top_k: int = 13) -> float:
    """Points of accuracy lost where so many of the 128 gradients of each layer and image are kept."""
    return _accuracy(128, seed) - _accuracy(top_k, seed)


def _one_of_128(seed: int) -> float:
    return sparse_loses(seed, top_k=1)


MEASUREMENTS = (
    # twice the standard error of one accuracy near a half on the 2,000 test images is 2.2 points: less cannot be told
    shapes(
        Claim("S-10", "points of accuracy lost with a tenth of the gradients", REPORT, -100, 2, "points"),
        sparse_loses, seeds=5, recipes=(SPARSE,),
    ),
    shapes(
        Claim("S-10", "ablation: points of accuracy lost with one gradient of 128", "ablation", 2, 100, "points"),
        _one_of_128, seeds=5, recipes=(SPARSE,),
    ),
)  # fmt: skip
