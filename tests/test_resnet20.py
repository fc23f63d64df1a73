from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, first, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets import count_macs, count_weights, norm_of
from dynamics.nets.resnet20 import PadShortcut, ResidualBlock, StochasticDepth, resnet20, survivals

FORMS = [False, True]


def images(n: int = 4, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def blocks_of(net: nn.Module) -> list[ResidualBlock]:
    return [m for m in net.modules() if isinstance(m, ResidualBlock)]


def moved(net: nn.Module) -> nn.Module:
    """In float64, with norms' scales and biases away from 1 and 0."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.3)
    return net.double()


# sizes


@pytest.mark.parametrize("pre_activation", FORMS)
def test_weights_and_macs_of_resnet20_are_those_counted_by_hand(pre_activation):
    net = resnet20(pre_activation=pre_activation)
    stages = [6 * 16 * 16 * 9, (16 + 5 * 32) * 32 * 9, (32 + 5 * 64) * 64 * 9]
    prep, linear = 3 * 16 * 9, 64 * 10
    assert count_weights(net) == prep + sum(stages) + linear == 268_336
    # scales and biases of nineteen norms, of as many channels in both forms, and the classifier's biases
    assert sum(p.numel() for p in net.parameters()) == 268_336 + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 10 == 269_722
    macs = 32**2 * (prep + stages[0]) + 16**2 * stages[1] + 8**2 * stages[2] + linear
    assert count_macs(net) == macs == 40_551_040


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_sizes_are_the_published_ones_at_every_depth(depth, millions):
    """He et al. 2015, table 6."""
    total = sum(p.numel() for p in resnet20(depth=depth).parameters()) / 1e6
    assert round(total, 1 if depth == 110 else 2) == millions


def test_projections_add_two_matrices_and_their_norms():
    extra = 16 * 32 + 32 * 64
    assert count_weights(resnet20(shortcut="project")) == 268_336 + extra
    assert sum(p.numel() for p in resnet20(shortcut="project").parameters()) == 269_722 + extra + 2 * (32 + 64)
    both = resnet20(shortcut="project", pre_activation=True)
    assert sum(p.numel() for p in both.parameters()) == 269_722 + extra


def test_depth_is_the_number_of_layers_with_weights_on_the_longest_path():
    for depth in (8, 14, 20):
        net = resnet20(1, depth=depth)
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth


# forward


def normalised(x, p, name):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (p[f"{name}.{k}"].view(-1, 1, 1) for k in ("weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


@pytest.mark.parametrize("pre_activation", FORMS)
def test_forward_equals_plain_functions(pre_activation):
    """Both forms written out by hand, with every block beside a zero-padded identity."""
    net = moved(resnet20(2, depth=14, pre_activation=pre_activation, classes=5, seed=1))
    p, x = dict(net.named_parameters()), images(5)

    def conv(x, name, stride=1):
        return F.conv2d(x, p[f"{name}.weight"], padding=1, stride=stride)

    y = normalised(conv(x, "prep.conv"), p, "prep.norm").clamp_min(0)
    for i in (1, 2, 3):
        for j in (1, 2):
            name, stride = f"layer{i}.block{j}.branch", 2 if (i > 1 and j == 1) else 1
            short = y
            if stride == 2:
                short = torch.zeros(5, 2 * y.shape[1], y.shape[2] // 2, y.shape[3] // 2, dtype=y.dtype)
                short[:, : y.shape[1]] = y[:, :, ::2, ::2]
            if pre_activation:
                z = y if (i, j) == (1, 1) else normalised(y, p, f"{name}.norm1").clamp_min(0)
                z = normalised(conv(z, f"{name}.conv1", stride), p, f"{name}.norm2").clamp_min(0)
                y = short + conv(z, f"{name}.conv2")
            else:
                z = normalised(conv(y, f"{name}.conv1", stride), p, f"{name}.norm1").clamp_min(0)
                y = (short + normalised(conv(z, f"{name}.conv2"), p, f"{name}.norm2")).clamp_min(0)
    if pre_activation:
        y = normalised(y, p, "final.norm").clamp_min(0)
    expected = y.mean((2, 3)) @ p["linear.weight"].T + p["linear.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("side", [8, 7])
def test_padded_shortcuts_fit_branches_at_odd_sizes_and_in_channels_last(side):
    x = images(2, side)
    y = PadShortcut(5)(x)
    assert y.shape == F.conv2d(x, torch.zeros(5, 3, 3, 3).double(), stride=2, padding=1).shape
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2]) and not y[:, 3:].any()
    in_channels_last = PadShortcut(5)(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(in_channels_last, y)
    assert in_channels_last.is_contiguous(memory_format=torch.channels_last) or side % 2


def test_projections_are_convolutions_of_the_blocks_input():
    net = moved(resnet20(2, depth=8, pre_activation=True, shortcut="project", norm="none"))
    block, x = net.layer2.block1, images(2)[:, :2]
    expected = block.branch.conv2(F.relu(block.branch.conv1(F.relu(x)))) + block.shortcut.conv(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shortcut", ["pad", "project"])
@pytest.mark.parametrize("pre_activation", FORMS)
def test_a_norm_after_a_sum_is_no_layers(pre_activation, shortcut):
    net = resnet20(1, depth=8, pre_activation=pre_activation, shortcut=shortcut)
    found = {k: v.path for k, v in norm_of(net).items()}
    branches = [f"layer{i}.block1.branch" for i in (1, 2, 3)]
    expected = {"prep.conv": "prep.norm"}
    if pre_activation:
        expected |= {f"{b}.conv1": f"{b}.norm2" for b in branches}
    else:
        expected |= {f"{b}.conv{i}": f"{b}.norm{i}" for b in branches for i in (1, 2)}
        if shortcut == "project":
            expected |= {f"layer{i}.block1.shortcut.conv": f"layer{i}.block1.shortcut.norm" for i in (2, 3)}
    assert found == expected


def test_weights_are_hes_and_shared_between_nets_that_differ_in_survival():
    net = resnet20()
    for name, p in net.named_parameters():
        if p.ndim == 4:
            second_moment = float(p.detach().square().mean()) * p[0].numel() / 2
            assert second_moment == pytest.approx(1, abs=6 * (2 / p.numel()) ** 0.5), name
    assert not net.linear.bias.any()
    other = resnet20(survival=0.5, survival_rule="linear")
    assert_same(dict(net.named_parameters()), dict(other.named_parameters()))


# stochastic depth


def test_survival_falls_linearly_from_the_image_to_the_last_block():
    """Huang et al. 2016, eq. 4 and what follows it: 3/4 of the blocks are expected at 0.5, and 40 of 54."""
    assert survivals(4, 0.5, "constant") == (0.5,) * 4
    assert survivals(4, 0.5, "linear") == (0.875, 0.75, 0.625, 0.5)
    for blocks in (1, 9, 54):
        assert sum(survivals(blocks, 0.5, "linear")) == pytest.approx((3 * blocks - 1) / 4)
    assert round(sum(survivals(54, 0.5, "linear"))) == 40
    assert survivals(9, 1.0, "linear") == (1.0,) * 9
    chances = [b.branch.survival for b in blocks_of(resnet20(1, survival=0.5, survival_rule="linear"))]
    assert chances == list(survivals(9, 0.5, "linear"))


def executed(net: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Blocks and MACs of an image that one pass in training mode computes."""
    seen = []
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [
        m.register_forward_hook(lambda m, _, y: seen.append((m, y[0].numel() * m.weight[0].numel()))) for m in layers
    ]
    with torch.no_grad():
        net.train()(x)
    for hook in hooks:
        hook.remove()
    ran = {m for m, _ in seen}
    return sum(b.branch.conv2 in ran for b in blocks_of(net)), sum(macs for _, macs in seen)


@pytest.mark.parametrize("rule", ["constant", "linear"])
def test_S_3_stochastic_depth_computes_the_expected_number_of_blocks_and_macs(rule):
    """The time that it saves is that of blocks that are not computed."""
    net, x, passes = resnet20(1, survival=0.5, survival_rule=rule, norm="none"), images(1, 4).float(), 400
    chances = survivals(9, 0.5, rule)
    whole = count_macs(net, (3, 4, 4))
    branches = [  # three stages of equal convolutions at half the side and twice the channels
        side**2 * 9 * c * (into + c) for side, c, firsts in ((4, 1, 1), (2, 2, 1), (1, 4, 2)) for into in (firsts, c, c)
    ]
    assert whole == 16 * 27 + sum(branches) + 4 * 10
    torch.manual_seed(0)
    found = [executed(net, x) for _ in range(passes)]
    mean_blocks, mean_macs = (sum(values) / passes for values in zip(*found, strict=True))
    spread = math.sqrt(sum(p * (1 - p) for p in chances) / passes)
    assert abs(mean_blocks - sum(chances)) < 4 * spread
    macs_spread = math.sqrt(sum(p * (1 - p) * m**2 for p, m in zip(chances, branches, strict=True)) / passes)
    expected = whole - sum((1 - p) * m for p, m in zip(chances, branches, strict=True))
    assert abs(mean_macs - expected) < 4 * macs_spread
    # the binomial interval is narrow enough to tell the two rules apart
    other = sum(survivals(9, 0.5, "linear" if rule == "constant" else "constant"))
    assert abs(mean_blocks - other) > 8 * spread


def test_S_3_evaluation_is_the_mean_over_training_passes():
    """Of a block without norm and without activation after the sum, over both outcomes of its draw."""
    net = moved(resnet20(2, depth=8, pre_activation=True, norm="none", survival=0.7))
    for block, x in ((net.layer1.block1, images(2)[:, :2]), (net.layer2.block1, images(2)[:, :2])):
        short, branch = block.shortcut(x), nn.Sequential(*block.branch)(x)
        seen = {}
        for seed in range(20):
            torch.manual_seed(seed)
            kept = float(torch.rand(())) < 0.7
            torch.manual_seed(seed)
            seen[kept] = block.train()(x)
        assert torch.equal(seen[False], short) and torch.equal(seen[True], short + branch)
        mean = 0.7 * seen[True] + 0.3 * seen[False]
        torch.testing.assert_close(block.eval()(x), mean, rtol=1e-12, atol=1e-12)


def test_a_block_that_is_left_out_leaves_its_statistics_and_is_not_entered():
    net = resnet20(1, depth=8, survival=1e-9)
    before = {k: b.clone() for k, b in net.named_buffers()}

    def refuse(*_):
        raise AssertionError("a branch was computed")

    for block in blocks_of(net):
        block.branch.conv1.register_forward_hook(refuse)
    net.train()(images().float())
    after = dict(net.named_buffers())
    moved_on = {k.rpartition(".")[0] for k in after if not torch.equal(after[k], before[k])}
    assert moved_on == {"prep.norm"}


def test_full_survival_draws_nothing_and_is_the_plain_net():
    plain, linear = resnet20(1), resnet20(1, survival=1.0, survival_rule="linear")
    x, state = images().float(), torch.get_rng_state()
    assert torch.equal(plain(x), linear(x)) and torch.equal(plain.eval()(x), linear.eval()(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_draw_decides_for_the_whole_batch():
    branch = StochasticDepth(nn.Identity(), survival=0.5)
    x = torch.ones(1000, 2)
    found = set()
    for seed in range(20):
        torch.manual_seed(seed)
        found |= set(branch(x).flatten().tolist()) | {f"{branch(x).unique().numel()} values"}
    assert found == {1.0, 2.0, "1 values"}


def stochastic(**changes):
    net = dyn.Net("resnet20", width=1, depth=8, survival=0.3, **changes)
    return toy_recipe(net=net, precision="float64", epochs=3, optimizer=dyn.SGD(0.05, momentum=0.9, weight_decay=0.01))


def test_training_gives_blocks_that_are_left_out_zero_gradients_and_decays_them():
    seen = set()
    for snap in dyn.steps(stochastic(), toy_split()):
        if snap.grads is None:
            break
        assert snap.grads.keys() == snap.params.keys()
        for i in (1, 2, 3):
            name = f"layer{i}.block1.branch.conv1.weight"
            left_out = not snap.grads[name].any()
            assert left_out == (not snap.grads[name.replace("conv1", "conv2")].any())
            seen.add(left_out)
            if left_out and snap.step == 0:
                torch.testing.assert_close(snap.updates[name], -0.05 * 0.01 * snap.params[name])
    assert seen == {True, False}


def test_a_resumed_run_leaves_out_the_same_blocks():
    split = toy_split()
    whole = last(dyn.steps(stochastic(), split)).state
    half = next(s.state.clone() for s in dyn.steps(stochastic(), split) if s.step == 4)
    again = last(dyn.steps(stochastic(), split, half)).state
    assert_same(whole.params, again.params)
    assert_same(whole.buffers, again.buffers)


def test_probes_read_a_stochastic_net_and_change_nothing():
    split = toy_split()
    fixed = dyn.sharpness([first(dyn.batches(split, 20))])

    def sharpness(snap):
        # curvature wants a loss that draws nothing: the net that is evaluated, whose norms it sets itself
        return fixed(replace(snap, net=copy.deepcopy(snap.net).eval()), None)[0]

    measures = {
        "norms": dyn.weight_norms, "angles": dyn.angles, "gradients": dyn.gradients, "sharpness": sharpness,
        "moments": dyn.moments(split[:8]), "running": dyn.moments(split[:8], statistics="running"),
    }  # fmt: skip
    probes = {name: dyn.every(8 if name == "sharpness" else 2, measure) for name, measure in measures.items()}
    run = dyn.train(stochastic(), split, probes=probes, progress=False)
    bare = dyn.train(stochastic(), split, progress=False)
    assert_same(run.weights, bare.weights)
    assert bool(run["sharpness"]["sharpness"].notnull().all())
    # in training mode a probe sees what its own fixed draw leaves, in evaluation mode everything
    layers = [set(run[name]["channel_layer"].values.tolist()) for name in ("moments", "running")]
    assert layers[0] < layers[1] and "layer3.block1.branch.conv2" in layers[1]


def curved() -> nn.Module:
    return moved(resnet20(1, depth=20, survival=0.5, act="softplus", seed=2))


def test_curvature_is_of_the_net_that_is_evaluated():
    x, y, net = images(6), torch.arange(6), curved().eval()
    op = dyn.Hessian(net, F.cross_entropy, [(x, y)])
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    v = torch.randn(len(weights), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v /= v.norm()

    def gradient(at: torch.Tensor) -> torch.Tensor:
        twin = curved().train()
        for block in blocks_of(twin):
            block.branch.training = False
        torch.nn.utils.vector_to_parameters(at, twin.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(twin(x), y), [*twin.parameters()])])

    h = 1e-4
    expected = (gradient(weights + h * v) - gradient(weights - h * v)) / (2 * h)
    assert float((op.matvec(v) - expected).norm() / expected.norm()) < 1e-6


def test_curvature_of_a_net_that_draws_its_blocks_is_refused_by_name():
    op = dyn.Hessian(curved().train(), F.cross_entropy, [(images(6), torch.arange(6))])
    with pytest.raises(DynamicsError, match=r"differs between two evaluations, first after 'layer.*StochasticDepth"):
        op.gradient()


# arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, r"depth must be 6 n \+ 2, got 21: take 20"),
        ({"depth": 7}, "depth must be a whole number from 8"),
        ({"survival": 0.0}, "survival must be above 0"),
        ({"survival": 1.5}, "at most 1, got 1.5"),
        ({"survival_rule": "lineal"}, "did you mean 'linear'"),
        ({"shortcut": "padd"}, "did you mean 'pad'"),
        ({"pre_activation": 1}, "pre_activation must be True or False"),
        ({"width": 0}, "width must be a whole number"),
        ({"norm": "bach"}, "did you mean 'batch'"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(arguments, message):
    with pytest.raises(DynamicsError, match=message) as caught:
        resnet20(**arguments)
    assert "\n" not in str(caught.value)
