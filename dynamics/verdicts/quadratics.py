"""Heavy ball on quadratics, whose best settings theory knows (the report's S-9)."""

from __future__ import annotations

import numpy as np
import torch

from .. import theory
from ..claims import Claim
from ..optim import SGD
from .measurement import Measurement

REPORT = "report"
STEPS, WARM = 1500, 300


def _curvatures(seed: int) -> np.ndarray:
    """Twenty, whose range spans a factor between 10 and 1000."""
    draw = np.random.default_rng(seed)
    ratio = 10 ** draw.uniform(1, 3)
    return np.exp(np.concatenate([[0.0, np.log(ratio)], draw.uniform(0, np.log(ratio), 18)])) * draw.uniform(0.1, 10)


def tuned(curvatures: np.ndarray) -> tuple[float, float]:
    """The momentum and lr whose robust region is the range of curvature.

    Source: Zhang and Mitliagkas 2017, "YellowFin" (arXiv 1706.03471), equation 4, met with equality.
    """
    low, high = np.sqrt(curvatures.min()), np.sqrt(curvatures.max())
    momentum = float(((high - low) / (high + low)) ** 2)
    return momentum, float(theory.robust_region(curvatures.max(), momentum=momentum)[1])


def _contraction(curvatures: np.ndarray, lr: float, momentum: float) -> float:
    """The mean factor a step, late in a run of our SGD from ones, of the distance to the minimum."""
    h = torch.tensor(curvatures, dtype=torch.float64)
    w, sgd = {"w": torch.ones_like(h)}, SGD(lr, momentum, weight_decay=0.0)
    opt, logs, scale = sgd.init(w), [], 0.0
    for _ in range(STEPS):
        updates, opt = sgd.update({"w": h * w["w"]}, opt, w, 0.0)
        w = {"w": w["w"] + updates["w"]}
        both = torch.cat([w["w"], updates["w"]])  # the recursion's whole state: a coordinate alone passes through 0
        logs.append(scale + float(both.norm().log()))
        shrink = 1 / both.norm()  # the recursion is linear; so it never underflows
        scale = logs[-1]
        w, opt = {"w": w["w"] * shrink}, _times(opt, float(shrink))
    return float(np.exp((logs[-1] - logs[WARM]) / (STEPS - 1 - WARM)))


def _times(opt: dict, factor: float) -> dict:
    return {k: _times(v, factor) if isinstance(v, dict) else v * factor for k, v in opt.items()}


def contraction_within(seed: int) -> float:
    """Measured over predicted contraction at the tuned momentum and lr, where every curvature lies in the region."""
    h = _curvatures(seed)
    momentum, lr = tuned(h)
    return _contraction(h, lr, momentum) / momentum**0.5


def contraction_outside(seed: int) -> float:
    """The same at half that lr, with which the small curvatures lie below the region."""
    h = _curvatures(seed)
    momentum, lr = tuned(h)
    return _contraction(h, lr / 2, momentum) / momentum**0.5


def steps_against_descent(seed: int) -> float:
    """Steps that tuned heavy ball needs for a given factor, over those of gradient descent at its best lr."""
    h = _curvatures(seed)
    momentum, lr = tuned(h)
    plain = _contraction(h, 2 / float(h.min() + h.max()), 0.0)
    return float(np.log(plain) / np.log(_contraction(h, lr, momentum)))


MEASUREMENTS = (
    # at the ends of the region roots are double, and the distance falls as t sqrt(momentum)^t: hence 1 %
    Measurement(
        Claim("S-9", "contraction over the root of momentum, where that is tuned to curvature", REPORT, 0.99, 1.01),
        contraction_within, seeds=8,
    ),
    Measurement(
        Claim("S-9", "with it, steps over those of gradient descent at its best lr", REPORT, 0, 1),
        steps_against_descent, seeds=8,
    ),
    Measurement(
        Claim("S-9", "ablation: contraction over the root of momentum, at half that lr", "ablation", 1.01, np.inf),
        contraction_outside, seeds=8,
    ),
)  # fmt: skip
