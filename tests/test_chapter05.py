"""What chapter 05 adds: SGD whose convolutions are held at the length of their equilibrium."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import toy_recipe, toy_split

import dynamics as dyn
from dynamics import theory
from dynamics.packs.chapter05 import PinnedSGD

SHAPES = {"a.conv.weight": (6, 3, 3, 3), "a.norm.weight": (6,), "b.conv.weight": (5, 6, 3, 3), "linear.weight": (4, 5)}


def drawn(seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=draws, dtype=torch.float64) for k, s in SHAPES.items()}


def test_its_steps_are_sgds_with_gradients_of_the_size_that_length_1_balances() -> None:
    sgd = {"lr": 0.05, "momentum": 0.6, "weight_decay": 1e-2}
    params, pinned = drawn(0), PinnedSGD(**sgd)
    opt = pinned.init(params)
    velocity = {k: np.zeros(s) for k, s in SHAPES.items()}
    for step in range(3):
        grads = drawn(step + 1)
        updates, opt = pinned.update(grads, opt, params, float(step))
        for k in SHAPES:
            w, g = params[k].numpy(), grads[k].numpy()
            if "conv" in k:
                g = g / np.linalg.norm(g) / np.linalg.norm(w) * (2 * 1e-2 * (1 - 0.6) / 0.05) ** 0.5
            velocity[k] = 0.6 * velocity[k] + g + 1e-2 * w
            np.testing.assert_allclose(updates[k].numpy(), -0.05 * velocity[k], rtol=1e-12, atol=1e-15)
        params = {k: params[k] + updates[k] for k in params}
    size = (2 * 1e-2 * (1 - 0.6) / 0.05) ** 0.5
    assert float(theory.equilibrium_norm(0.05, 1e-2, size, momentum=0.6)) == pytest.approx(1)


def test_a_coin_turns_filters_round_and_changes_nothing_else() -> None:
    plain, coin = PinnedSGD(0.05, weight_decay=1e-2), PinnedSGD(0.05, weight_decay=1e-2, coin=3)
    params, grads = drawn(0), drawn(1)
    without = plain.update(grads, plain.init(params), params, 0.5)[0]

    def signs(optimizer: PinnedSGD, epoch: float) -> list[float]:
        updates = optimizer.update(grads, optimizer.init(params), params, epoch)[0]
        assert torch.equal(updates["linear.weight"], without["linear.weight"])
        found = []
        for k in ("a.conv.weight", "b.conv.weight"):
            decay = -0.05 * 1e-2 * params[k]
            ratio = (updates[k] - decay) / (without[k] - decay)
            found += ratio.flatten(1)[:, 0].round().tolist()
            assert torch.allclose(ratio, ratio[:, :1, :1, :1].round().expand_as(ratio), atol=1e-9)
        return found

    assert set(signs(coin, 0.5)) == {-1.0, 1.0} and set(signs(plain, 0.5)) == {1.0}
    assert signs(coin, 0.5) == signs(coin, 0.5) != signs(coin, 0.6)
    assert signs(coin, 0.5) != signs(PinnedSGD(0.05, weight_decay=1e-2, coin=4), 0.5)


def test_lengths_come_to_1_and_stay_there() -> None:
    sgd = PinnedSGD(0.05, momentum=0.6, weight_decay=1e-2)
    draws = torch.Generator().manual_seed(0)
    params = {"a.conv.weight": torch.randn(16, 8, 3, 3, generator=draws, dtype=torch.float64)}
    params["a.conv.weight"] *= 2 / params["a.conv.weight"].norm()
    opt, lengths = sgd.init(params), []
    for step in range(2_000):  # ten time constants (1 - ρ) / (4 η λ), with gradients that know nothing of each other
        w = params["a.conv.weight"]
        g = torch.randn(w.shape, generator=draws, dtype=torch.float64)
        updates, opt = sgd.update({"a.conv.weight": g - (g * w).sum() / (w * w).sum() * w}, opt, params, float(step))
        params = {"a.conv.weight": w + updates["a.conv.weight"]}
        lengths.append(float(params["a.conv.weight"].norm()))
    assert lengths[0] > 1.9 and np.mean(lengths[1_000:]) == pytest.approx(1, abs=0.02)


def test_a_run_of_it_is_recorded_with_its_settings() -> None:
    recipe = toy_recipe(optimizer=PinnedSGD(0.05, momentum=0.6, weight_decay=1e-2, coin=1))
    assert dyn.train(recipe, toy_split(), progress=False).recipe == recipe
