"""Exact identities of optimizers, averages and schedules, each named by its claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.training.averages import add_to_average, begin_average

DOUBLE = {"dtype": torch.float64}


# --- T-4


def adams(grads: list[torch.Tensor], **given) -> tuple[list[torch.Tensor], list[dict]]:
    """Updates and the states after them, of one parameter."""
    adam, params = dyn.Adam(**given), {"w": torch.ones_like(grads[0])}
    opt, updates, states = adam.init(params), [], []
    for g in grads:
        update, opt = adam.update({"w": g}, opt, params, 0.0)
        updates.append(update["w"])
        states.append(opt)
    return updates, states


def test_T_4_adams_first_step_is_lr_along_the_sign_of_the_gradient():
    g = torch.tensor([3.0, -1e-3, 1e4, -7.0], **DOUBLE)
    (update,), _ = adams([g], lr=0.02, eps=0.0)
    torch.testing.assert_close(update, -0.02 * g.sign(), rtol=1e-14, atol=0)
    (update,), _ = adams([g], lr=0.02)  # at the default eps, up to eps / |g|
    torch.testing.assert_close(update, -0.02 * g / (g.abs() + 1e-8), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.5, 0.7), (0.0, 0.9)])
def test_T_4_adams_moments_are_biased_by_1_minus_beta_to_the_t_and_the_correction_removes_it(beta1, beta2):
    g = torch.tensor([0.7, -2.0, 1e-3], **DOUBLE)
    updates, states = adams([g] * 60, lr=0.1, beta1=beta1, beta2=beta2, eps=0.0)
    for t, (update, opt) in enumerate(zip(updates, states, strict=True), start=1):
        torch.testing.assert_close(opt["exp_avg"]["w"], (1 - beta1**t) * g, rtol=1e-12, atol=0)
        torch.testing.assert_close(opt["exp_avg_sq"]["w"], (1 - beta2**t) * g**2, rtol=1e-12, atol=0)
        # so m_hat is g and v_hat is g²
        torch.testing.assert_close(update, -0.1 * g.sign(), rtol=1e-11, atol=0)


def test_T_4_the_bias_is_that_of_the_mean_for_gradients_that_vary():
    """E m_t = (1 - beta^t) E g: the weights of the gradients in m_t, found by impulses, sum to 1 - beta^t."""
    steps = 12
    impulses = torch.eye(steps, **DOUBLE)  # the gradient of entry i is 1 at step i alone
    _, states = adams([*impulses], beta1=0.8)
    weights = states[-1]["exp_avg"]["w"]
    expected = 0.2 * 0.8 ** torch.arange(steps - 1, -1, -1, **DOUBLE)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)
    assert float(weights.sum()) == pytest.approx(1 - 0.8**steps, rel=1e-12)


# --- P8-16


def ema_weights(averager: dyn.EMA, steps: int) -> torch.Tensor:
    """The weight that each of θ_0 ... θ_steps has in the average, found by impulses."""
    points = torch.eye(steps + 1, **DOUBLE)
    average = begin_average({"w": points[0]}, {})
    for t in range(1, steps + 1):
        add_to_average(averager, average, t, 0.0, {"w": points[t]}, {})
    return average["params"]["w"]


def test_P8_16_an_average_every_5_steps_has_the_timescale_of_one_every_step_but_is_not_equal_to_it():
    steps = 4000
    every, sparse = ema_weights(dyn.EMA(0.99, 1), steps), ema_weights(dyn.EMA(0.99, 5), steps)
    ages = torch.arange(steps, -1, -1, **DOUBLE)
    r = 0.99**5
    assert r == pytest.approx(0.95099, abs=5e-6)
    for weights, factor in ((every, 0.99), (sparse, r)):
        assert float(weights.sum()) == pytest.approx(1, rel=1e-12)
        # of white noise it keeps the sum of squared weights
        assert float(weights[1:].square().sum()) == pytest.approx((1 - factor) / (1 + factor), rel=1e-6)
    assert float(every.square().sum()) == pytest.approx(0.0050, abs=5e-5)
    assert float(sparse.square().sum()) == pytest.approx(0.0251, abs=5e-5)
    # the timescale: what was averaged n steps ago has faded alike
    for n in (5, 50, 500):
        assert float(sparse[-1 - n] / sparse[-1]) == pytest.approx(float(every[-1 - n] / every[-1]), rel=1e-9)
    mean_age = [float((w * ages).sum()) for w in (every, sparse)]
    assert mean_age[0] == pytest.approx(99, rel=1e-3) and mean_age[1] == pytest.approx(97, rel=1e-2)
    # not the every-step average looked at every fifth step: it holds a fifth of the points
    assert int((sparse > 0).sum()) * 5 == pytest.approx(int((every > 0).sum()), abs=9)
    assert float((every - sparse).abs().sum()) > 1.5
    # it begins as a copy of the initial weights, which fade at the same rate
    assert float(ema_weights(dyn.EMA(0.99, 5), 100)[0]) == pytest.approx(r**20, rel=1e-12)


# --- P2-2


def smooth_net(classes: int) -> nn.Module:
    """Without norm, whose statistics know the batch, and smooth."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


def epoch_of(batch_size: int, lr: float) -> dict[str, torch.Tensor]:
    recipe = toy_recipe(
        net=dyn.Net("test_identities_optim:smooth_net"), batch_size=batch_size, epochs=1, precision="float64",
        optimizer=dyn.SGD(lr, 0.0, weight_decay=0.02), augment=dyn.Augment(pad=0, flip=False),
    )  # fmt: skip
    *_, end = dyn.steps(recipe, toy_split(64))
    return {k: p.clone() for k, p in end.params.items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[k] - b[k]).flatten() for k in a]).norm())


def test_P2_2_to_first_order_in_lr_a_small_batch_only_delays_updates():
    """An epoch with (N, lr) and one with (k N, k lr) end O(lr²) apart, decay included; without the factor on lr they
    end O(lr) apart."""
    n, k = 4, 8
    lrs = [0.02 / 2**i for i in range(2, 7)]
    apart = [distance(epoch_of(n, lr), epoch_of(k * n, k * lr)) for lr in lrs]
    unscaled = [distance(epoch_of(n, lr), epoch_of(k * n, lr)) for lr in lrs]
    moved = [distance(epoch_of(n, lr), epoch_of(n, 0.0)) for lr in lrs]
    for values, slope in ((apart, 2), (unscaled, 1), (moved, 1)):
        found = np.diff(np.log(values)) / np.diff(np.log(lrs))
        assert found[-2:] == pytest.approx(slope, abs=0.03), values
    assert apart[-1] < 0.05 * moved[-1]


# --- P5-7


def normed_net(classes: int) -> nn.Module:
    """Two scale-invariant convolutions; an eps that no scale of the weights comes near."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4, eps=1e-28), nn.CELU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6, eps=1e-28), nn.CELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


CONVOLUTIONS = ("0.weight", "3.weight")


@pytest.mark.parametrize("nesterov", [False, True])
def test_P5_7_lr_and_decay_and_size_of_scale_invariant_weights_trade_exactly(nesterov):
    """(lr, wd, w0) -> (c² lr, wd / c², c w0) leaves every direction and every other weight alone for 300 steps, through
    momentum and a schedule; either factor by itself does not."""
    c, epochs = 3.0, 75
    schedule = dyn.PiecewiseLinear((0, epochs / 4, epochs), (0, 0.1, 0))
    recipe = toy_recipe(
        net=dyn.Net("test_identities_optim:normed_net"), batch_size=16, epochs=epochs, precision="float64",
        optimizer=dyn.SGD(schedule, 0.9, nesterov=nesterov, weight_decay=5e-3),
    )  # fmt: skip
    split = toy_split(64)
    start = next(iter(dyn.steps(recipe, split))).state.clone()

    def run(size: float, lr_factor: float, decay_factor: float) -> dict[str, torch.Tensor]:
        groups = tuple(dyn.Group(k, lr_factor, decay_factor) for k in CONVOLUTIONS)
        params = {k: size * p if k in CONVOLUTIONS else p for k, p in start.params.items()}
        scaled = replace(recipe, optimizer=replace(recipe.optimizer, groups=groups))
        *_, end = dyn.steps(scaled, split, start=replace(start, params=params, opt=None))
        assert end.step == 300
        return {k: p / size if k in CONVOLUTIONS else p for k, p in end.params.items()}

    plain, traded = run(1, 1, 1), run(c, c**2, 1 / c**2)

    def gap(other: dict[str, torch.Tensor]) -> float:
        directions = [{k: p[k] / p[k].norm() if k in CONVOLUTIONS else p[k] for k in p} for p in (plain, other)]
        return max(float((directions[0][k] - directions[1][k]).norm()) for k in plain)

    assert gap(start.params) > 0.3, "the weights moved"
    assert gap(traded) < 1e-9
    assert max(float(plain[k].norm() / traded[k].norm() - 1) for k in CONVOLUTIONS) < 1e-9
    assert gap(run(c, c**2, 1)) > 1e-2 and gap(run(c, 1, 1 / c**2)) > 1e-2
