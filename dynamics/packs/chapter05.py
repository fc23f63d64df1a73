"""Chapter 05's pack, three slices through one recipe and how far two flat directions go; and its pinned SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..nets import Net
from ..optim import SGD, PiecewiseLinear, Tensors
from ..optim.base import lr_at
from ..rng import generator
from ..runs import Run
from ..slices import ALIGNED, hyperparameters, moved, slice_recipes, with_values
from ..slices.grid import cell_name
from ..training import Recipe
from .record import Recording

EPOCHS = 5
BASE = Recipe(
    Net("resnet9", width=8),
    SGD(PiecewiseLinear((0, 0.2 * EPOCHS, EPOCHS), (0, 0.2, 0)), momentum=0.75, weight_decay=5e-3),
    batch_size=32,
    epochs=EPOCHS,
)
"""Decay is large enough for norms to settle within the run, and steps are small enough for momentum to be short."""

LR = tuple(0.025 * 2.0**i for i in range(7))
SLICES: Mapping[str, tuple[Mapping[str, tuple[float, ...]], Mapping[str, tuple[float, ...]]]] = {
    "batch_size": ({"lr": LR}, {"batch_size": (16, 32, 64, 128)}),
    "momentum": ({"lr": LR}, {"momentum": (0.0, 0.5, 0.75, 0.875)}),
    "weight_decay": ({"lr": LR}, {"weight_decay": (2.5e-3, 5e-3, 1e-2, 2e-2)}),
}
"""x and y of each slice; all factors are 2, so that a ridge of slope 1 or -1 meets each row alike."""

FARTHER: Mapping[str, tuple[float, ...]] = {"batch_size": (8, 16, 32), "momentum": (1 / 4, 1 / 16, 1 / 32)}
"""Factors by which the base is moved along two flat directions, beyond the slices."""


@dataclass(frozen=True)
class PinnedSGD(SGD):
    """SGD that gives every convolution a gradient g with ||w|| ||g|| = sqrt(2 λ (1 - ρ) / η), whatever the loss gave.

    Then length 1 is the equilibrium of the weights w (theory.equilibrium_norm), from the first step on, and stays it:
    what is left of the laws of diffusion to be tested are the directions. lr stays above 0; a gradient of zero becomes
    nan. coin: a seed; each filter's gradient then gets a random sign, drawn anew at every step, and keeps its size and
    its axis. Other parameters get SGD's own steps.
    """

    coin: int | None = None

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        grads = dict(grads)
        wanted = math.sqrt(2 * self.weight_decay * (1 - self.momentum) / lr_at(self.lr, epoch))
        draws = None if self.coin is None else generator(self.coin, "sign", round(epoch * 1e6))
        for k in (k for k in grads if k.endswith("conv.weight")):
            g = grads[k] * (wanted / (grads[k].norm() * params[k].norm()))
            if draws is not None:
                g = g * (2.0 * torch.randint(2, (len(g), 1, 1, 1), generator=draws).to(g) - 1)
            grads[k] = g
        return super().update(grads, opt, params, epoch)


def along(name: str) -> dict[float, Recipe]:
    """Recipes along a flat direction through the base, in the slice and beyond it, by batch size or by 1 / (1 -
    momentum)."""
    base = hyperparameters(BASE)
    inside = (1, 2, 4) if name == "batch_size" else (4, 2, 1, 1 / 2)
    points = [moved(base, ALIGNED[name], factor) for factor in (*inside, *FARTHER[name])]
    key = {"batch_size": lambda p: p["batch_size"], "momentum": lambda p: 1 / (1 - p["momentum"])}[name]
    return {key(p): with_values(BASE, p) for p in points if p is not None}


def scores(run: Run) -> dict[str, float]:
    """Loss and accuracy on the test images at the end; nan for a run that diverged."""
    if run.status != "finished":
        return {"loss": math.nan, "accuracy": math.nan}
    return {name: float(run["valid"][name].values[-1]) for name in ("loss", "accuracy")}


def _recipes() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for x, y in SLICES.values():
        found |= slice_recipes(BASE, x, y)
    return found | {cell_name(recipe): recipe for name in FARTHER for recipe in along(name).values()}


RECORDING = Recording("05", _recipes(), (0, 1, 2), scores, limit=4096)
