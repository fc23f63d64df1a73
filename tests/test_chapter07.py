"""What chapter 07 adds: LARS at SGD's rate beside SGD for the rest, and the figures kept of its recordings."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from dynamics import SGD, DynamicsError, Net, PiecewiseLinear, Recipe, theory
from dynamics.packs import RECORDINGS
from dynamics.packs.chapter07 import (
    BATCH_SCALING,
    BLOCKS,
    SCHEDULED,
    SIMILARITY,
    WINDOWS,
    LikeSGD,
    like_sgd,
    similarity,
    turned,
)

HEAVY = SGD(PiecewiseLinear((0, 2, 10), (0, 0.1, 0)), momentum=0.9, weight_decay=5e-3)


def toy(seed: int = 0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shapes = {
        "a.conv.weight": (4, 3, 3, 3),
        "a.norm.weight": (4,),
        "b.conv.weight": (5, 4, 3, 3),
        "linear.weight": (10, 5),
    }
    return {k: torch.randn(s, generator=draws, dtype=torch.float64) for k, s in shapes.items()}


@pytest.mark.parametrize("by", ["filter", "layer"])
def test_steps_are_those_of_a_plain_loop(by: str) -> None:
    eps, decay, rho = 1e-3, 5e-3, 0.9
    optimizer = LikeSGD(HEAVY, by, eps=eps, factor=1.5, decay_factor=0.5)
    params = toy()
    twin = {k: p.numpy().copy() for k, p in params.items()}
    velocity = {k: np.zeros_like(p) for k, p in twin.items()}
    opt = optimizer.init(params)
    for step in range(5):
        epoch, grads = (step + 1) / 2, toy(step + 1)
        updates, opt = optimizer.update(grads, opt, params, epoch)
        params = {k: p + updates[k] for k, p in params.items()}
        eta = float(np.interp(epoch, (0, 2, 10), (0, 0.1, 0)))
        for k, w in twin.items():
            g = grads[k].numpy()
            if not k.endswith("conv.weight"):
                velocity[k] = rho * velocity[k] + g + decay * w
                twin[k] = w - eta * velocity[k]
                continue
            found = np.empty_like(w)
            for i in range(len(w)):
                if by == "filter":
                    ratio = np.linalg.norm(w[i]) / (np.linalg.norm(g[i]) + eps)
                else:
                    ratio = np.linalg.norm(w) / (np.linalg.norm(g) + decay / 2 * np.linalg.norm(w))
                found[i] = ratio * (g[i] + decay / 2 * w[i])
            velocity[k] = rho * velocity[k] + found
            twin[k] = w - 1.5 * math.sqrt(2 * eta * decay * (1 - rho)) * velocity[k]
    for k, w in twin.items():
        np.testing.assert_allclose(params[k].numpy(), w, rtol=1e-12, atol=1e-14)


def test_what_does_not_match_takes_sgds_own_steps_bit_for_bit() -> None:
    params, grads, optimizer = toy(), toy(1), LikeSGD(HEAVY)
    ours, state = optimizer.update(grads, optimizer.init(params), params, 1.0)
    theirs, other = HEAVY.update(grads, HEAVY.init(params), params, 1.0)
    assert list(ours) == list(params) == list(state["velocity"])
    for k in ("a.norm.weight", "linear.weight"):
        assert torch.equal(ours[k], theirs[k]) and torch.equal(state["velocity"][k], other["velocity"][k])
    assert not torch.equal(ours["a.conv.weight"], theirs["a.conv.weight"])


def test_B8_the_rate_is_the_raw_step_of_sgds_equilibrium_at_every_epoch() -> None:
    optimizer, names = LikeSGD(HEAVY, factor=2.0, decay_factor=0.0), tuple(toy())
    assert [len(members) for _, members in optimizer.partition(names)] == [2, 2]
    for epoch in (0.5, 2.0, 7.0, 10.0):
        given = optimizer.hyperparameters(epoch)
        assert given["lr"][0] == pytest.approx(2 * theory.raw_step(HEAVY.lr(epoch), 5e-3, momentum=0.9))
        assert given["lr"][1] == HEAVY.lr(epoch)
        assert given["weight_decay"] == (0.0, 5e-3)


@pytest.mark.parametrize("by", ["filter", "layer"])
def test_B8_a_loss_a_thousand_times_as_large_changes_no_step_of_lars(by: str) -> None:
    params, grads = toy(), toy(1)
    optimizer = LikeSGD(HEAVY, by, match="*.weight", decay_factor=0.0)
    matrices = {k: p for k, p in params.items() if p.ndim > 1}
    once, larger = (
        optimizer.update({k: c * grads[k] for k in matrices}, optimizer.init(matrices), matrices, 1.0)[0]
        for c in (1, 1000)
    )
    for k in matrices:
        torch.testing.assert_close(once[k], larger[k], rtol=1e-12, atol=0)


@pytest.mark.parametrize("by", ["filter", "layer"])
def test_P6_4_a_random_walk_under_sgd_settles_at_the_angle_of_lars(by: str) -> None:
    sgd = SGD(0.1, momentum=0.9, weight_decay=5e-3)
    squares = {}
    for name, optimizer in (("sgd", sgd), ("lars", LikeSGD(sgd, by))):
        draws = torch.Generator().manual_seed(3)
        params = {f"{i}.conv.weight": torch.randn(16, 64, generator=draws).double() for i in (1, 2)}
        opt, found = optimizer.init(params), []
        for step in range(700):
            grads = {}
            for i, (k, w) in enumerate(params.items()):  # scale-invariant, and the second's a hundred times as large
                g = torch.randn(w.shape, generator=draws, dtype=torch.float64)
                g -= (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
                grads[k] = 100.0**i * g / w.norm(dim=1, keepdim=True)
            updates, opt = optimizer.update(grads, opt, params, 0.0)
            after = {k: w + updates[k] for k, w in params.items()}
            if step >= 500:
                cosines = [float((w * after[k]).sum() / (w.norm() * after[k].norm())) for k, w in params.items()]
                found.append([math.acos(c) ** 2 for c in cosines])
            params = after
        squares[name] = np.sqrt(np.mean(found, axis=0))
    law = float(theory.equilibrium_angle(0.1, 5e-3, momentum=0.9))
    lars = theory.lars_equilibrium(
        theory.equivalent_lars_rate(0.1, 5e-3, momentum=0.9), 5e-3, 1.0, momentum=0.9, layerwise=by == "layer"
    )
    np.testing.assert_allclose(squares["sgd"], law, rtol=0.03)
    np.testing.assert_allclose(squares["lars"], float(lars.angle), rtol=0.03)
    np.testing.assert_allclose(squares["lars"], law, rtol=0.06)  # by layer, the decay in the ratio takes 5 %


def test_a_recipe_survives_its_json() -> None:
    for recording in (SIMILARITY, BATCH_SCALING):
        for recipe in recording.recipes.values():
            assert Recipe.from_json(recipe.to_json()) == recipe


def test_only_heavy_ball_with_coupled_decay_is_taken() -> None:
    for sgd in (replace(HEAVY, nesterov=True), replace(HEAVY, decoupled=True), object()):
        with pytest.raises(DynamicsError, match="heavy ball"):
            LikeSGD(sgd)
    with pytest.raises(DynamicsError, match="layer"):
        LikeSGD(HEAVY, "layers")
    with pytest.raises(DynamicsError, match="no parameter matches"):
        LikeSGD(HEAVY, match="*.bias").init(toy())


def test_eps_is_pages_in_units_of_the_mean_loss() -> None:
    assert like_sgd(SCHEDULED).optimizer.eps == 1e-2 / SCHEDULED.batch_size
    assert like_sgd(replace(SCHEDULED, net=Net("resnet9", width=4)), "layer").optimizer.sgd == SCHEDULED.optimizer


class Recorded(dict):
    """Readings with the step that a run ended at."""

    def __init__(self, steps: int, **readings: xr.Dataset) -> None:
        super().__init__(readings)
        self.state, self.status = SimpleNamespace(step=steps), "finished"

    def cut(self, steps: int) -> Recorded:
        return Recorded(steps, **{k: v.sel(step=slice(None, steps)) for k, v in self.items()})


def reading(steps: Any, layers: list[str], seed: int) -> xr.Dataset:
    values = np.random.default_rng(seed).uniform(0.01, 0.2, (len(steps), len(layers)))
    return xr.Dataset({"angle": (("step", "layer"), values)}, {"step": list(steps), "layer": layers})


def test_curves_are_means_over_equal_parts_of_a_run() -> None:
    layers, steps = ["first", "hidden", "linear"], range(0, 330, 5)
    loss = np.random.default_rng(1).uniform(size=330)
    run = Recorded(
        330,
        angles=reading(steps, layers, 0),
        train=xr.Dataset({"loss": ("step", loss)}, {"step": np.arange(330)}),
        valid=xr.Dataset({"accuracy": ("step", [0.2, 0.7]), "loss": ("step", [2.0, 1.0])}, {"step": [165, 330]}),
    )
    found = similarity(run)
    assert (found["accuracy"], found["test_loss"]) == (0.7, 1.0)
    for part in range(BLOCKS):
        inside = [s for s in range(330) if part <= s * BLOCKS / 330 < part + 1]
        assert found["losses"][part] == pytest.approx(np.mean([loss[s] for s in inside]))
        angles = [run["angles"].angle.sel(layer="hidden", step=s).item() for s in inside if s % 5 == 0]
        assert found["angle hidden"][part] == pytest.approx(math.sqrt(np.mean(np.square(angles))))


def test_turns_are_of_hidden_layers_once_settled() -> None:
    layers = ["first", "one", "two", "linear"]
    run = Recorded(
        1000,
        angles=reading(range(1000), layers, 0),
        **{f"turn_{k}": reading(range(0, 1001, k), layers, k) for k in WINDOWS},
    )
    found = turned(run)
    of_one = [run["angles"].angle[s, i].item() ** 2 for s in range(400, 1000) for i in (1, 2)]
    assert found["square_1"] == pytest.approx(np.mean(of_one))
    for k, first in ((8, 408), (64, 512), (256, 768)):
        ends = [s for s in range(0, 1001, k) if s >= first]
        cosines = [math.cos(run[f"turn_{k}"].angle.sel(step=s).values[i]) for s in ends for i in (1, 2)]
        assert found[f"square_{k}"] == pytest.approx(-2 * math.log(np.mean(cosines)))
    # no window of 256 steps begins after step 160 and ends by step 400
    assert math.isnan(turned(run.cut(400))["square_256"])
    run.status = "diverged"
    assert turned(run) == similarity(run) == {}


def test_runs_of_all_batch_sizes_see_the_same_number_of_images_and_time_constants() -> None:
    seen = set()
    for recipe in BATCH_SCALING.recipes.values():
        steps = round(recipe.epochs * (10_000 // recipe.batch_size))
        tau = float(theory.time_constant(recipe.optimizer.lr, recipe.optimizer.weight_decay, momentum=0.9))
        seen.add((steps * recipe.batch_size, round(steps / tau, 6)))
        assert {k * recipe.batch_size for k in WINDOWS} >= {1024, 2048, 4096, 8192, 9984}  # the last is an epoch
    assert len(seen) == 1
    assert {"lars_similarity", "batch_scaling"} <= set(RECORDINGS)
