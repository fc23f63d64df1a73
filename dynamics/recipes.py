"""Named recipes: Page's baseline, and the constant-lr setting in which equilibrium can be watched."""

from __future__ import annotations

from dataclasses import replace

from .errors import unknown
from .nets import Net
from .optim import SGD, PiecewiseLinear
from .training import Recipe

BASELINE = Recipe(
    net=Net("resnet9", width=64),
    optimizer=SGD(PiecewiseLinear((0, 5, 24), (0, 0.4, 0)), momentum=0.9, nesterov=True, weight_decay=5e-4),
    batch_size=512,
    epochs=24,
)
"""The 24-epoch recipe of Page's post 4 without cutout: 94 % on CIFAR-10 in 79 s on a V100 with 8x8 cutout."""

EQUILIBRIUM = replace(
    BASELINE,
    net=Net("resnet9", width=8),
    optimizer=SGD(0.1, momentum=0.9, weight_decay=5e-3),
    batch_size=128,
    epochs=12,
)
"""Constant lr and a decay large enough that norms reach equilibrium in a few hundred steps (one time constant: 50)."""

RECIPES: dict[str, Recipe] = {"baseline": BASELINE, "equilibrium": EQUILIBRIUM}


def named(name: str) -> Recipe:
    """A recipe by name; raises DynamicsError with the nearest names."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
