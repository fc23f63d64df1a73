"""EMA and SWA: averages along a run, kept in its State."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import assert_same, largest_difference, last, toy_recipe, toy_split

import dynamics as dyn
from dynamics.errors import DynamicsError

SPLIT = toy_split()


def points(recipe: dyn.Recipe) -> list[dict[str, torch.Tensor]]:
    """θ_0, θ_1, ... and the floating buffers after as many steps, in float64."""
    return [
        {k: t.double().clone() for k, t in {**snap.params, **snap.buffers}.items() if t.is_floating_point()}
        for snap in dyn.steps(replace(recipe, average=None), SPLIT)
    ]


def flat(average) -> dict[str, torch.Tensor]:
    return {k: t.double() for k, t in {**average["params"], **average["buffers"]}.items()}


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.99, 5), (0.5, 2)])
def test_ema_equals_its_recursion_from_the_initial_weights(decay, every):
    recipe = toy_recipe(epochs=4, precision="float64", average=dyn.EMA(decay, every))
    walk = points(recipe)
    expected = walk[0]
    for t, point in enumerate(walk[1:], start=1):
        if t % every == 0:
            r = decay**every
            expected = {k: r * e + (1 - r) * point[k] for k, e in expected.items()}
    found = last(dyn.steps(recipe, SPLIT)).state.average
    assert largest_difference(flat(found), expected) < 1e-12
    assert int(found["n"]) == (len(walk) - 1) // every


def test_swa_is_the_plain_mean_from_its_start_on():
    recipe = toy_recipe(epochs=4, precision="float64", average=dyn.SWA(start=2, every=2))
    walk = points(recipe)
    taken = [walk[t] for t in range(1, len(walk)) if t % 2 == 0 and t / 3 >= 2]
    found = last(dyn.steps(recipe, SPLIT)).state.average
    assert int(found["n"]) == len(taken) == 4
    expected = {k: torch.stack([p[k] for p in taken]).mean(0) for k in taken[0]}
    assert largest_difference(flat(found), expected) < 1e-12


def test_an_average_every_5_steps_keeps_more_noise_than_one_every_step():
    # claim P8-16: same timescale, another average; white noise around nothing, variance (1 - r) / (1 + r)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 64, generator=draws, dtype=torch.float64)
    for every in (1, 5):
        r, e, seen = 0.99**every, torch.zeros(64, dtype=torch.float64), []
        averager = dyn.EMA(0.99, every)
        for t, w in enumerate(noise, start=1):
            e = torch.lerp(e, w, averager.share(t, 0.0, 0))
            seen.append(e)
        variance = torch.stack(seen[2000:]).var().item()
        assert variance == pytest.approx((1 - r) / (1 + r), rel=0.05)


def test_an_average_does_not_change_the_run():
    bare, kept = (last(dyn.steps(toy_recipe(average=a), SPLIT)) for a in (None, dyn.EMA()))
    assert_same(bare.params, kept.params)
    assert_same(bare.buffers, kept.buffers)
    assert bare.state.average is None


@pytest.mark.parametrize("average", [dyn.EMA(0.9, 2), dyn.SWA(0.5, 1)])
def test_resuming_in_the_middle_gives_the_same_average(average, tmp_path):
    recipe = toy_recipe(epochs=4, average=average)
    whole = dyn.train(recipe, SPLIT, out=tmp_path / "a", chunk_steps=5, progress=False)
    forked = dyn.train(recipe, SPLIT, start=whole.state_at(5), progress=False)
    loaded = dyn.load_run(tmp_path / "a")
    for run in (forked, loaded):
        assert_same(flat(run.state.average), flat(whole.state.average))
        assert int(run.state.average["n"]) == int(whole.state.average["n"])


def test_a_fork_with_an_average_begins_it_where_it_starts():
    first = dyn.train(toy_recipe(epochs=1), SPLIT, progress=False)
    snap = next(dyn.steps(toy_recipe(epochs=2, average=dyn.EMA()), SPLIT, start=first.state))
    assert_same(snap.state.average["params"], first.state.params)


def test_evaluate_takes_the_average_and_train_records_it():
    valid = toy_split(20, seed=1, like=SPLIT)
    recipe = toy_recipe(epochs=2, average=dyn.EMA(0.5, 1))
    run = dyn.train(recipe, SPLIT, valid, progress=False)
    state = dyn.averaged(run)
    scored = dyn.evaluate(run, valid, state=state)
    assert scored.loss == pytest.approx(float(run["valid"].average_loss[-1]), rel=1e-6)
    assert scored != dyn.evaluate(run, valid)
    net = recipe.net.build(classes=4)
    net.load_state_dict({**state.params, **state.buffers}, strict=True)
    assert dyn.evaluate(net, valid, precision="float32").loss == pytest.approx(scored.loss, rel=1e-6)


def test_recomputed_statistics_are_the_mean_over_batches_of_what_the_averaged_weights_make():
    recipe = toy_recipe(epochs=2, precision="float64", average=dyn.SWA(0, 1))
    run = dyn.train(recipe, SPLIT, progress=False)
    state = dyn.averaged(run, SPLIT, batch_size=20)
    net = recipe.net.build(classes=4).double()
    net.load_state_dict({**state.params, **run.state.buffers})
    inputs = []
    net.prep.norm.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    net.layer3.norm.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    net.train()
    pixels = SPLIT.padded().permute(0, 3, 1, 2).double()
    for i in range(3):
        net(pixels[20 * i : 20 * i + 20])
    for path, seen in (("prep.norm", inputs[0::2]), ("layer3.norm", inputs[1::2])):
        mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        var = torch.stack([x.var((0, 2, 3), correction=1) for x in seen]).mean(0)
        torch.testing.assert_close(state.buffers[f"{path}.running_mean"], mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(state.buffers[f"{path}.running_var"], var, rtol=1e-10, atol=1e-12)


def test_recomputing_leaves_a_live_net_as_it_was():
    recipe = toy_recipe(average=dyn.EMA())
    for snap in dyn.steps(recipe, SPLIT):
        if snap.step == 3:
            before = {k: b.clone() for k, b in snap.net.named_buffers()}
            modes = [m.training for m in snap.net.modules()]
            momenta = [m.momentum for m in snap.net.modules() if hasattr(m, "momentum")]
            dyn.averaged(snap, SPLIT)
            assert_same(before, dict(snap.net.named_buffers()))
            assert modes == [m.training for m in snap.net.modules()]
            assert momenta == [m.momentum for m in snap.net.modules() if hasattr(m, "momentum")]


@pytest.mark.parametrize(
    "make",
    [lambda: dyn.EMA(1.0), lambda: dyn.EMA(0.9, 0), lambda: dyn.SWA(-1), lambda: dyn.SWA(0, 1.5)],
)
def test_bad_averages_are_refused_in_one_line(make):
    with pytest.raises(DynamicsError) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_run_without_an_average_says_so():
    run = dyn.train(toy_recipe(epochs=1), SPLIT, progress=False)
    with pytest.raises(DynamicsError, match="keeps no average"):
        dyn.averaged(run)


def test_the_start_of_an_average_is_in_the_schedules_time():
    # three steps an epoch: epoch 1 is reached at step 3
    recipe = toy_recipe(epochs=2, average=dyn.SWA(start=1, every=1))
    assert [int(s.state.average["n"]) for s in dyn.steps(recipe, SPLIT)] == [0, 0, 0, 1, 2, 3, 4]
