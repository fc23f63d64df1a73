from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from helpers import assert_same, last, toy_recipe, toy_split

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.runs.stress import endured, raise_rate, smoothed_loss


class Readings(dict):
    status = "finished"


def ramp(loss, status="finished"):
    """What `endured` reads of a run: losses, and a rate that doubles every ten steps."""
    steps = np.arange(len(loss))
    given = Readings(
        train=SimpleNamespace(loss=xr.DataArray(np.asarray(loss, dtype=float), dims="step")),
        hyperparameters=SimpleNamespace(lr=xr.DataArray((0.01 * 2 ** (steps / 10))[:, None], dims=("step", "group"))),
    )
    given.status = status
    return given


def test_what_was_learned_is_lost_where_the_loss_has_gone_back_half_of_the_way():
    guess = math.log(10)
    loss = [guess] * 5 + [1.3] * 10 + [1.7] * 10 + [1.9] * 10  # half of the way from 1.3 is 1.80
    found = endured(ramp(loss), window=1)
    assert found.lost == pytest.approx(0.01 * 2**2.4)  # step 24, the last at 1.7
    assert found.best == pytest.approx(0.01 * 2**0.5)
    assert (found.survived, found.lowest) == (False, 1.3)


def test_a_run_that_loses_nothing_has_survived_its_ramp():
    found = endured(ramp([2.3, 2.0, 1.5, 1.6, 1.7]), window=1)
    assert found.survived
    assert found.lost == pytest.approx(0.01 * 2**0.4)


def test_a_loss_that_is_not_finite_is_lost_and_who_comes_back_had_not_lost_it():
    assert endured(ramp([2.0, 1.0, 1.2, math.nan], "diverged"), window=1).lost == pytest.approx(0.01 * 2**0.2)
    recovered = endured(ramp([2.0, 1.5, 2.4, 1.4, 1.5, 2.4]), window=1)
    assert recovered.lost == pytest.approx(0.01 * 2**0.4)
    assert not recovered.survived
    again = endured(ramp([2.0, 1.5, 2.4, 2.2, 1.8]), window=1)
    assert (again.lost, again.survived) == (pytest.approx(0.01 * 2**0.4), True)


def test_smoothing_is_the_mean_of_the_steps_before():
    loss = np.random.RandomState(0).rand(30)
    lr, smooth = smoothed_loss(ramp(loss), window=7)
    np.testing.assert_allclose(smooth, [loss[i - 6 : i + 1].mean() for i in range(6, 30)])
    np.testing.assert_allclose(lr, 0.01 * 2 ** (np.arange(6, 30) / 10))
    for window in (0, 31):
        with pytest.raises(DynamicsError, match="window"):
            smoothed_loss(ramp(loss), window=window)


def test_a_run_that_never_learned_is_told_so():
    with pytest.raises(DynamicsError, match="guessing"):
        endured(ramp([2.31, 2.32, 2.4]), window=1)


def test_it_reads_the_rates_in_force_of_a_run():
    rates = dyn.PiecewiseLinear((0, 4), (0.01, 5.0))
    recipe = toy_recipe(epochs=4, optimizer=dyn.SGD(rates, momentum=0.9, nesterov=True))
    run = dyn.train(recipe, toy_split(), progress=False)
    lr, _ = smoothed_loss(run, window=3)
    np.testing.assert_allclose(lr, [rates((step + 1) / 3) for step in range(2, 12)])
    assert endured(run, window=3, guessing=10.0).lost in lr


def test_a_rising_rate_goes_on_from_the_weights_of_a_run_with_fresh_momentum_and_hard_labels():
    recipe, split = toy_recipe(epochs=1, label_smoothing=0.2), toy_split()
    run = dyn.train(recipe, split, progress=False)
    ramp = raise_rate(run, split, (0.01, 0.02, 0.08), hold=2)
    np.testing.assert_allclose(ramp["hyperparameters"].lr.values[:, 0], [0.015, 0.02, 0.05, 0.08], rtol=1e-6)
    by_hand = replace(
        recipe,
        optimizer=replace(recipe.optimizer, lr=dyn.PiecewiseLinear((0, 2 / 3, 4 / 3), (0.01, 0.02, 0.08))),
        label_smoothing=0.0,
        epochs=4 / 3,
    )
    start = dyn.State(0, run.state.params, run.state.buffers)
    assert_same(ramp.state.params, last(dyn.steps(by_hand, split, start)).params)


def test_the_rate_of_another_net_of_the_same_weights_can_be_raised():
    split, batch = toy_split(), dyn.Net("plain8", width=2)
    run = dyn.train(toy_recipe(net=batch, epochs=1), split, progress=False)
    frozen = raise_rate(run, split, (1e-9, 2e-9), hold=1, net=batch.replace(norm="frozen"), batch_size=30)
    assert (frozen.recipe.net, frozen.recipe.batch_size) == (batch.replace(norm="frozen"), 30)
    assert len(frozen["train"].loss) == 1
    assert_same(frozen.state.buffers, run.state.buffers)  # an active norm would have moved them
    for k, p in frozen.state.params.items():
        np.testing.assert_allclose(p, run.state.params[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rates", "hold"), [((0.1,), 2), ((0.1, 0.2), 0), ((0.1, 0.2), 1.5)])
def test_a_ramp_without_a_rise_is_refused(rates, hold):
    run = SimpleNamespace(recipe=toy_recipe())
    with pytest.raises(DynamicsError, match="a ramp needs two rates"):
        raise_rate(run, toy_split(), rates, hold=hold)
