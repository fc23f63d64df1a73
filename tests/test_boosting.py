from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, first, last, load, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.training.boosting import block_paths, boost, edge, gain, shallow

RESNET20 = dyn.Net("resnet20", width=2, depth=8)
NETS = {
    "resnet9": dyn.Net("resnet9", width=2),
    "resnet20": RESNET20,
    "pre-activation": RESNET20.replace(pre_activation=True),
    "stochastic": RESNET20.replace(survival=0.5),
    "resnet18": dyn.Net("resnet18", width=2),
}


def recipe_of(name: str = "resnet20", **changes) -> dyn.Recipe:
    return toy_recipe(**{"net": NETS[name], "precision": "float64", **changes})


def boosted(name: str = "resnet20", **arguments):
    valid = toy_split(20, seed=1, like=toy_split())
    return boost(recipe_of(name), toy_split(), valid, epochs_per_block=1, progress=False, **arguments)


# the shallow nets


def test_blocks_are_found_in_the_order_of_their_calls():
    assert block_paths(NETS["resnet9"].build()) == ["layer1.residual", "layer3.residual"]
    assert block_paths(RESNET20.build()) == [f"layer{i}.block1" for i in (1, 2, 3)]
    assert len(block_paths(dyn.Net("resnet18", width=1).build())) == 8


@pytest.mark.parametrize("name", NETS)
def test_the_last_rounds_net_is_the_whole_net(name):
    whole = NETS[name].build(seed=3).double().eval()
    net = shallow(NETS[name], len(block_paths(whole)) - 1, seed=3)
    x = toy_split().padded()[:4].permute(0, 3, 1, 2).double()
    assert torch.equal(net.double().eval()(x), whole(x))
    names = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert names.keys() == {**dict(whole.named_parameters()), **dict(whole.named_buffers())}.keys()


@pytest.mark.parametrize("name", ["resnet9", "resnet20", "pre-activation"])
def test_a_shallow_net_is_the_blocks_so_far_and_a_classifier_written_out_by_hand(name):
    net, block = shallow(NETS[name], 0 if name == "resnet9" else 1, classes=5, seed=3).double(), 1
    x = toy_split().padded()[:6].permute(0, 3, 1, 2).double()
    if name == "resnet9":
        y = net.layer1(net.prep(x))
        expected = 0.125 * (y.amax((2, 3)) @ net.linear.weight.T)
        assert net.linear.weight.shape == (5, 4)
    else:
        for part in (net.prep, net.layer1.block1):
            part.eval()  # where earlier rounds have left it
        y = net.layer2.block1(net.layer1.block1(net.prep(x)))
        if name == "pre-activation":
            assert net.final.norm.num_features == len(net.final.norm.running_var) == 4
            y = F.relu(F.batch_norm(y, None, None, net.final.norm.weight, net.final.norm.bias, True))
        expected = y.mean((2, 3)) @ net.linear.weight.T + net.linear.bias
        assert net.linear.weight.shape == (5, 4) and not hasattr(net.layer3, f"block{block}")
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_what_earlier_rounds_trained_is_fixed_and_in_evaluation_mode(name):
    whole = NETS[name].build()
    paths = block_paths(whole)
    for t in range(len(paths)):
        net = shallow(NETS[name], t)
        assert net.train() is net and net.training
        for module, mode in [(m, m.training) for m in net.get_submodule(paths[t]).modules()]:
            assert mode, module
        for path in paths[:t]:
            done = net.get_submodule(path)
            assert not any(m.training for m in done.modules()) and not list(done.parameters())
        names = [k for k, _ in net.named_parameters()]
        assert any(k.startswith(f"{paths[t]}.") for k in names) and "linear.weight" in names
        assert not any(k.startswith(f"{p}.") for p in paths[t + 1 :] for k in names)


# training


@pytest.mark.parametrize("name", NETS)
def test_a_round_trains_its_block_and_its_classifier_alone(name):
    result, fresh = boosted(name), dict(NETS[name].build(classes=4).named_parameters())
    assert [r.block for r in result.rounds] == block_paths(NETS[name].build())
    for r in result.rounds:
        own = [k for k in r.state.params if k.startswith(f"{r.block}.") and fresh[k].ndim > 1]
        assert own and not any(torch.equal(r.state.params[k].float(), fresh[k]) for k in own)
    for before, after in zip(result.rounds, result.rounds[1:], strict=False):
        old, new = ({**r.state.params, **r.state.buffers} for r in (before, after))
        inside = [k for k in new if k.startswith(f"{before.block}.")]
        assert inside and not any(k in after.state.params for k in inside)
        assert_same({k: old[k] for k in inside}, {k: new[k] for k in inside})


def test_a_boosted_net_is_evaluated_as_a_whole_and_may_start_a_training():
    valid = toy_split(20, seed=1, like=toy_split())
    result = boosted()
    whole = dyn.evaluate(result, valid)
    assert whole == result.rounds[-1].valid
    assert dyn.evaluate(result.rounds[0], valid) == result.rounds[0].valid
    for i, r in enumerate(result.rounds):
        again = dyn.evaluate(r, toy_split())
        assert (again.accuracy, again.n) == (r.train.accuracy, r.train.n), i
        assert again.loss == pytest.approx(r.train.loss, rel=1e-9)
    snap = first(dyn.steps(result.recipe, toy_split(), result.state))
    assert snap.step == 0
    assert_same(dict(snap.params), dict(result.state.params))


def test_boosting_block_by_block_equals_boosting_in_one_go():
    whole = boosted()
    part = boosted(blocks=1)
    assert [r.block for r in part.rounds] == ["layer1.block1"]
    again = boosted(start=boosted(blocks=2, start=part))
    assert_same(whole.state.params, again.state.params)
    assert_same(whole.state.buffers, again.state.buffers)
    for a, b in zip(whole.rounds, again.rounds, strict=True):
        assert (a.edge, a.alpha, a.gain, a.train, a.valid) == (b.edge, b.alpha, b.gain, b.train, b.valid)
    assert part.state.params["layer3.block1.branch.conv1.weight"].abs().sum() > 0


def test_blocks_without_a_round_are_as_initialised():
    state, fresh = boosted(blocks=1).state, dict(RESNET20.build(classes=4).named_parameters())
    for name, p in state.params.items():
        trained = name.startswith(("prep.", "layer1."))
        assert torch.equal(p.float(), fresh[name]) != trained, name


def test_rounds_are_ordinary_recipes_that_draw_their_own_order():
    result = boosted()
    recipes = [r.recipe for r in result.rounds]
    assert len({r.seed for r in recipes}) == 3
    for r in recipes:
        assert dyn.Recipe.from_json(r.to_json()) == r
        assert r.epochs == 1
    run = dyn.train(recipes[1], toy_split(), probes={"norms": dyn.every(1, dyn.weight_norms)}, progress=False)
    layers = set(run["norms"]["layer"].values.tolist())
    assert layers == {"layer2.block1.branch.conv1", "layer2.block1.branch.conv2", "linear"}


def test_by_default_all_rounds_together_see_as_many_images_as_the_recipe():
    result = boost(recipe_of(epochs=3), toy_split(), progress=False)
    assert result.epochs_per_block == 1 and result.rounds[0].valid is None
    assert [r.state.step for r in result.rounds] == [3, 3, 3]
    schedule = dyn.SGD(dyn.PiecewiseLinear((0, 1, 3), (0, 0.1, 0)), momentum=0.9)
    result = boost(recipe_of(epochs=3, optimizer=schedule), toy_split(), blocks=1, progress=False)
    assert result.rounds[0].recipe.optimizer.lr.knots == pytest.approx((0, 1 / 3, 1))


def test_boosting_learns_and_keeps_no_average():
    recipe = recipe_of(average=dyn.EMA(), optimizer=dyn.SGD(0.1, momentum=0.9))
    result = boost(recipe, toy_split(), epochs_per_block=10, progress=False)
    assert all(r.train.loss < math.log(4) for r in result.rounds)
    assert result.rounds[-1].train.accuracy > 0.5
    assert all(r.state.average is None and r.state.opt is None for r in result.rounds)


def test_norms_that_frozen_statistics_were_captured_for_keep_them():
    result = boost(recipe_of(net=RESNET20.replace(norm="frozen")), toy_split(), progress=False, epochs_per_block=1)
    start = first(dyn.steps(result.recipe, toy_split())).state
    assert_same(dict(start.buffers), dict(result.state.buffers))


# what boosting's theory reads


def softmax(n: int, classes: int, seed: int) -> torch.Tensor:
    logits = torch.randn(n, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (2 * logits).softmax(1)


def test_S_8_boosting_telescopes_to_the_last_classifier():
    """Scores, costs, edges and the loss that a round minimises, accumulated over weak learners example by example as in
    the paper's algorithm 3, are those of the last weighted classifier alone."""
    n, classes = 12, 3
    labels = torch.arange(n) % classes
    outputs = [softmax(n, classes, seed) for seed in range(4)]
    scores = [[0.0] * classes for _ in range(n)]
    alpha, before = 0.0, torch.zeros(n, classes, dtype=torch.float64)
    for o in outputs:
        cost = [[math.exp(s[j] - s[y]) for j in range(classes)] for s, y in zip(scores, labels.tolist(), strict=True)]
        total = reached = 0.0
        for i, y in enumerate(labels.tolist()):
            wrong = sum(cost[i][j] for j in range(classes) if j != y)
            total += wrong
            reached += sum((cost[i][j] if j != y else -wrong) * float(o[i, j]) for j in range(classes))
        now = edge(o, alpha * before, labels)
        assert now == pytest.approx(-reached / total, rel=1e-12)
        new = math.atanh(now)
        weighted = 0.0
        for i, y in enumerate(labels.tolist()):
            h = [new * float(o[i, j]) - alpha * float(before[i, j]) for j in range(classes)]
            weighted += sum(cost[i][j] * math.exp(h[j] - h[y]) for j in range(classes) if j != y)
            scores[i] = [s + step for s, step in zip(scores[i], h, strict=True)]
        margins = new * (o - o[torch.arange(n), labels, None])
        plain = float(margins.exp().sum()) - n  # without the right class, whose margin is 0
        assert weighted == pytest.approx(plain, rel=1e-12)
        alpha, before = new, o


def test_edges_run_from_guessing_to_no_error():
    labels = torch.arange(8) % 4
    right = F.one_hot(labels, 4).double()
    none = torch.zeros(8, 4, dtype=torch.float64)
    assert edge(right, none, labels) == 1
    assert edge(torch.full((8, 4), 0.25, dtype=torch.float64), none, labels) == pytest.approx(0, abs=1e-15)
    assert edge(right.roll(1, 1), none, labels) == pytest.approx(-1 / 3)
    assert edge(right.roll(1, 1), 9 * right.roll(1, 1), labels) < -0.99
    first_half, wrong = torch.arange(8)[:, None] < 4, right.roll(1, 1)
    half, other = torch.where(first_half, right, wrong), torch.where(first_half, wrong, right)
    # what the classifier before got wrong weighs more
    assert edge(half, 2 * half, labels) < edge(half, none, labels) < edge(half, 2 * other, labels)


def test_gains_compose_to_the_edge():
    """1 - edge² is the product of 1 - gain² over rounds."""
    edges = [0.3, 0.5, 0.8]
    gains = [gain(now, before) for now, before in zip(edges, [0.0, *edges], strict=False)]
    assert math.prod(1 - g**2 for g in gains) == pytest.approx(1 - 0.8**2)
    assert gain(0.3, 0.5) == pytest.approx(-math.sqrt(0.16 / 0.75))
    assert gain(0.5, 0.5) == 0


def probabilities(r, split: dyn.Split) -> torch.Tensor:
    net = r.recipe.net.build(classes=len(split.classes)).double().eval()
    load(net, r.state)
    with torch.no_grad():
        return net(split.padded().permute(0, 3, 1, 2).double()).softmax(1)


def test_rounds_tell_their_edges():
    result, split = boosted(), toy_split()
    ahead, scores = 0.0, torch.zeros(60, 4, dtype=torch.float64)
    for r in result.rounds:
        found = probabilities(r, split)
        assert r.edge == pytest.approx(edge(found, scores, split.labels), rel=1e-9)
        assert r.alpha == pytest.approx(0.5 * math.log((1 + r.edge) / (1 - r.edge)))
        assert r.gain == gain(r.edge, ahead)
        ahead, scores = r.edge, r.alpha * found
    assert scores.abs().max() > 0.01


# bad input


def raised(match: str, recipe: dyn.Recipe, **arguments) -> None:
    with pytest.raises(DynamicsError, match=match) as caught:
        boost(recipe, toy_split(), progress=False, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("net", [dyn.Net("plain8", width=2), dyn.Net("mlp", depth=1), dyn.Net("helpers:plain_net")])
def test_boosting_a_net_without_branches_is_refused(net):
    raised("no residual blocks .* so there is nothing to boost: take resnet9 or resnet20", recipe_of(net=net))


def test_bad_arguments_are_refused_before_training():
    raised("blocks must be a whole number from 1 to 3, got 4", recipe_of(), blocks=4)
    raised("0.1 epochs a block are less than one batch: raise them to at least 0.33", recipe_of(), epochs_per_block=0.1)
    raised("epochs_per_block must be above 0", recipe_of(), epochs_per_block=0)
    part = boosted(blocks=1)
    raised("boosted by another recipe", recipe_of(seed=1), start=part, epochs_per_block=1)
    raised("boosted by another recipe", recipe_of(), start=part, epochs_per_block=2)
    groups = replace(recipe_of().optimizer, groups=(dyn.Group("prep.*", lr_factor=0.5),))
    raised("no parameter matches the group 'prep", recipe_of(optimizer=groups))


def test_a_loss_that_is_not_finite_ends_boosting_with_its_block():
    raised("diverged in layer1.block1: lower the learning rate", recipe_of(net=NONE, optimizer=dyn.SGD(1e200)))


NONE = RESNET20.replace(norm="none")


def test_images_that_the_net_cannot_take_are_refused():
    with pytest.raises(DynamicsError, match="cannot take images of 4x4"):
        boost(recipe_of("resnet9"), toy_split(side=4), progress=False)


def test_training_a_shallow_net_moves_its_own_statistics_alone():
    recipe = boosted(blocks=2).rounds[1].recipe
    start = first(dyn.steps(recipe, toy_split())).state.clone()
    end = last(dyn.steps(recipe, toy_split())).state
    for name in start.buffers:
        moved = not torch.equal(start.buffers[name], end.buffers[name])
        assert moved == name.startswith("layer2.block1."), name
    assert isinstance(recipe.net.build(classes=4), nn.Sequential)
