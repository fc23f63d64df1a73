"""The ladder's nets: post 1's ResNet-18, post 4's backbones and search, and what post 8 changes of a net."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.invariance import invariance
from dynamics.nets import (
    BACKBONES,
    SEARCH,
    BatchNorm,
    capture_statistics,
    count_macs,
    count_weights,
    norm_of,
)
from dynamics.training import initial_state

STAGES = (dyn.Stage(4, branch="residual"), dyn.Stage(8), dyn.Stage(16, branch="extra"))
SMALL = {
    "staged": dyn.Net("staged", width=2, stages=STAGES),
    "resnet18": dyn.Net("resnet18", width=2),
    "duplicate": dyn.Net("resnet18", width=2, duplicate=True),
    **{f"backbone {name}": net.replace(width=2) for name, net in BACKBONES.items()},
    **{name: net.replace(width=2) for name, net in SEARCH.items()},
}


def images(n: int = 8, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normalised(x: torch.Tensor, p: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Batch norm with scale and bias, by hand."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * p[f"{name}.weight"].view(-1, 1, 1) + p[f"{name}.bias"].view(-1, 1, 1)


def max_pool(x: torch.Tensor) -> torch.Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))


def randomised(net: nn.Module) -> nn.Module:
    """Norms' scales of either sign and biases, so that a norm that is left out or moved shows."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.normal_(generator=draw)
    return net


# sizes


def conv3(c_in: int, c_out: int, side: int) -> tuple[int, int]:
    """Weights and MACs of a 3x3 convolution by counting: one weight a tap, one MAC a tap and output pixel."""
    weights = sum(1 for _ in range(c_out) for _ in range(c_in) for _tap in range(9))
    return weights, weights * side * side


def conv1(c_in: int, c_out: int, side: int) -> tuple[int, int]:
    return c_in * c_out, c_in * c_out * side * side


def total(*layers: tuple[int, int]) -> tuple[int, int]:
    return sum(w for w, _ in layers), sum(m for _, m in layers)


def sizes(net: dyn.Net) -> tuple[int, int]:
    built = net.build()
    return count_weights(built), count_macs(built)


@pytest.mark.parametrize("width", [4, 8, 16])
def test_sizes_of_resnet18(width):
    w = width
    layers = [conv3(3, w, 32), *[conv3(w, w, 32)] * 4]
    for c_in, c_out, side in ((w, 2 * w, 16), (2 * w, 4 * w, 8), (4 * w, 4 * w, 4)):
        layers += [conv3(c_in, c_out, side), *[conv3(c_out, c_out, side)] * 3, conv1(c_in, c_out, side)]
    expected = total(*layers, (8 * w * 10, 8 * w * 10))
    net = dyn.Net("resnet18", width=width)
    assert sizes(net) == expected == sizes(net.replace(duplicate=True))


def test_P1_5_the_work_of_post_1s_net_is_2_8_GFLOP_an_image():
    """Forward and backward, at two operations a MAC: 40 s for 35 epochs at the 125 TFLOP/s of a V100."""
    weights, macs = sizes(dyn.Net("resnet18"))
    assert (weights, macs) == (5_200_576, 460_002_304)
    assert 6 * macs == pytest.approx(2.8e9, rel=0.02)
    assert 6 * macs * 50_000 * 35 / 125e12 == pytest.approx(39.2, rel=0.02)


def test_P1_2_the_duplicate_is_one_norm_and_one_activation():
    plain, twice = (dyn.Net("resnet18", width=2, duplicate=d).build() for d in (False, True))
    for kind, fewer in ((BatchNorm, 16), (nn.ReLU, 16), (nn.Conv2d, 20)):
        count = [sum(isinstance(m, kind) for m in net.modules()) for net in (plain, twice)]
        assert count == [fewer, fewer + (kind is not nn.Conv2d)]
    assert set(twice.state_dict()) - set(plain.state_dict()) == {
        f"prep.norm.{k}" for k in ("weight", "bias", "running_mean", "running_var")
    }


BACKBONE_CONVS = {  # kernel, sides of outputs, channels of the last stage, inputs of the classifier
    "repeated": (conv1, (16, 8, 4), 4, 8),
    "stride1x1": (conv1, (16, 8, 4), 4, 8),
    "stride3x3": (conv3, (16, 8, 4), 4, 8),
    "maxpool": (conv3, (32, 16, 8), 4, 8),
    "global-maxpool": (conv3, (32, 16, 8), 8, 8),
    "scales-1": (conv3, (32, 16, 8), 8, 8),
}


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("name", BACKBONES)
def test_sizes_of_backbones(name, width):
    conv, sides, top, features = BACKBONE_CONVS[name]
    channels = [width, 2 * width, 4 * width, top * width]
    layers = [conv3(3, width, 32)]
    layers += [conv(a, b, side) for a, b, side in zip(channels, channels[1:], sides, strict=False)]
    expected = total(*layers, (features * width * 10, features * width * 10))
    assert sizes(BACKBONES[name].replace(width=width)) == expected


def test_backbones_keep_the_number_of_features():
    """Post 4 doubles the last channels because the classifier loses its means."""
    assert list(BACKBONES) == list(BACKBONE_CONVS)
    assert {net.replace(width=4).build().linear.in_features for net in BACKBONES.values()} == {32}
    assert {net.build().linear.in_features for net in BACKBONES.values()} == {512}


@pytest.mark.parametrize("name", SEARCH)
def test_sizes_of_the_search(name):
    width = 4
    kind, _, layers = name.partition(":")
    expected, c_in = [conv3(3, width, 32), (8 * width * 10, 8 * width * 10)], width
    for i in (1, 2, 3):
        c_out, side = c_in * 2, 64 >> i
        expected.append(conv3(c_in, c_out, side))
        more = {"residual": 2, "extra": 1}[kind] if f"L{i}" in layers.split("+") else 0
        expected += [conv3(c_out, c_out, side // 2)] * more
        c_in = c_out
    assert sizes(SEARCH[name].replace(width=width)) == total(*expected)


def test_published_sizes_of_the_search():
    assert sizes(SEARCH["residual:L1+L3"]) == (6_568_640, 379_261_952)
    # the published MACs of post 7's net are of convolutions alone
    assert sizes(SEARCH["extra:L1+L2+L3"]) == (4_651_712, 341_508_096 + 5120)


def test_sizes_of_the_final_recipes_net():
    """The learnable weights of each layer of post 8's final net, and the 729 of the fixed filters, which are work."""
    net = dyn.Net("resnet9", whiten=True, norm="ghost", act="celu", norm_scale=False, order="pool-norm-act").build()
    expected = {
        "prep.conv": 1728, "layer1.conv": 73728, "layer1.residual.res1.conv": 147456,
        "layer1.residual.res2.conv": 147456, "layer2.conv": 294912, "layer3.conv": 1179648,
        "layer3.residual.res1.conv": 2359296, "layer3.residual.res2.conv": 2359296, "linear": 5120,
    }  # fmt: skip
    weights = {k.removesuffix(".weight"): p.numel() for k, p in net.named_parameters() if p.ndim >= 2}
    assert weights == expected and net.whiten.weight.numel() == 729
    biases = {k: p.numel() for k, p in net.named_parameters() if p.ndim == 1}
    assert len(biases) == 8 and all(k.endswith("norm.bias") for k in biases) and sum(biases.values()) == 35 * 64
    assert count_weights(net) == sum(expected.values())
    # a 1x1 convolution of 27 inputs has as many weights as a 3x3 one of 3
    assert count_macs(net) == count_macs(dyn.Net("resnet9").build()) + 729 * 32 * 32
    assert not net.whiten.fitted, "counting needs no data, and gives the net none"


# values


def test_the_search_has_fifteen_nets():
    """P4-5: the backbone and seven nets of each type."""
    assert len(SEARCH) == 15 and len(set(SEARCH.values())) == 15
    assert [sum(name.startswith(kind) for name in SEARCH) for kind in ("backbone", "extra:", "residual:")] == [1, 7, 7]
    assert SEARCH["backbone"] == BACKBONES["scales-1"]
    for name, net in SEARCH.items():
        kind, _, layers = name.partition(":")
        branches = [s.branch for s in dict(net.arguments)["stages"]]
        assert branches == [kind if f"L{i}" in layers.split("+") else None for i in (1, 2, 3)]


@pytest.mark.parametrize("width", [2, 3])
def test_resnet9_is_residual_L1_L3(width):
    ours = SEARCH["residual:L1+L3"].replace(width=width).build(seed=3)
    theirs = dyn.Net("resnet9", width=width).build(seed=3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours.state_dict(), theirs.state_dict())
    x = images().float()
    assert torch.equal(ours(x), theirs(x))


def test_plain8_is_extra_L1_L2_L3():
    post_7 = {"norm_scale": False, "norm_bias": False, "init": "he", "classifier_gain": 2.0}
    scales = {"input_scale": 2**-0.5, "logit_scale": 0.125 * 6**-0.5}
    ours = SEARCH["extra:L1+L2+L3"].replace(width=2, **post_7, **scales).build(seed=3)
    theirs = dyn.Net("plain8", width=2).build(seed=3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours.state_dict(), theirs.state_dict())
    x = images().float()
    assert torch.equal(ours(x), theirs(x))
    # post 4's own has the same layers, with scales and biases
    names = {k for k, _ in SEARCH["extra:L1+L2+L3"].replace(width=2).build().named_parameters()}
    assert {k for k in names if "norm" not in k} == {k for k, _ in theirs.named_parameters()}


def test_double_width_is_a_replacement():
    """P4-4: channels 128, 256, 512, 1024."""
    net = BACKBONES["scales-1"].replace(width=128).build()
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [128, 256, 512, 1024]


def test_stages_as_written_do_not_scale():
    net = dyn.Net("staged", width=3, stages=(dyn.Stage(5), dyn.Stage(7, pool=False))).build()
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [3, 5, 7]
    assert net(torch.zeros(1, 3, 4, 4)).shape == (1, 10)


@pytest.mark.parametrize("name", SMALL)
def test_every_net_of_the_ladder_is_data_and_trains(name):
    recipe = toy_recipe(net=SMALL[name], epochs=1 / 3)
    assert dyn.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    snap = last(dyn.steps(recipe, toy_split()))
    assert snap.step == 1 and all(torch.isfinite(p).all() for p in snap.params.values())


def test_a_stage_without_down_still_loads():
    """JSON that was written before stages had a way to halve."""
    value = toy_recipe(net=dyn.Net("staged", width=2, stages=STAGES)).to_json()
    for stage in value["net"]["arguments"]["stages"]:
        stage.pop("down", None)
    assert dict(dyn.Recipe.from_json(value).net.arguments)["stages"] == STAGES


# functions


def test_resnet18_equals_plain_functions():
    """The whole net written out by hand in float64, with the duplicate and without."""
    for duplicate in (False, True):
        net = randomised(dyn.Net("resnet18", width=2, duplicate=duplicate).build(classes=5, seed=1).double())
        p = dict(net.named_parameters())
        x = images()
        y = F.conv2d(x, p["prep.conv.weight"], padding=1)
        if duplicate:
            y = normalised(y, p, "prep.norm").clamp_min(0)
        for i in (1, 2, 3, 4):
            for j in (0, 1):
                at, halve = f"layer{i}.block{j}", i > 1 and j == 0
                a = normalised(y, p, f"{at}.norm1").clamp_min(0)
                z = F.conv2d(a, p[f"{at}.sum.branch.conv1.weight"], stride=1 + halve, padding=1)
                z = normalised(z, p, f"{at}.sum.branch.norm2").clamp_min(0)
                z = F.conv2d(z, p[f"{at}.sum.branch.conv2.weight"], padding=1)
                if halve:  # every second pixel, mixed over channels
                    a = torch.einsum("oi,nihw->nohw", p[f"{at}.sum.shortcut.weight"][:, :, 0, 0], a[:, :, ::2, ::2])
                y = a + z
        features = torch.cat([y.amax((2, 3)), y.mean((2, 3))], 1)
        expected = features @ p["linear.weight"].T + p["linear.bias"]
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)
        assert len(p) == 20 + 2 + 2 * (16 + duplicate)


REPEATS = {"repeated": (3, 2, 2, 1)}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_equal_plain_functions(name):
    """Each of the six states written out by hand in float64."""
    net = randomised(BACKBONES[name].replace(width=2).build(classes=5, seed=1).double())
    p = dict(net.named_parameters())
    x = y = images()
    for at, times in zip(("prep", "layer1", "layer2", "layer3"), REPEATS.get(name, (1,) * 4), strict=True):
        weight = p[f"{at}.conv.weight"]
        if at != "prep" and name in ("repeated", "stride1x1"):
            y = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], y[:, :, ::2, ::2])
        else:
            y = F.conv2d(y, weight, padding=1)
            y = y[:, :, ::2, ::2] if at != "prep" and name == "stride3x3" else y
        for norm in ("norm", "norm2", "norm3")[:times]:
            y = normalised(y, p, f"{at}.{norm}").clamp_min(0)
        if at != "prep" and name in ("maxpool", "global-maxpool", "scales-1"):
            y = max_pool(y)
    if name in ("global-maxpool", "scales-1"):
        features = y.amax((2, 3))
    else:
        features = torch.cat([y.amax((2, 3)), y.mean((2, 3))], 1)
    expected = features @ p["linear.weight"].T
    expected = expected / 8 if name == "scales-1" else expected + p["linear.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("head", ["max", "avg", "max+avg"])
def test_heads(head):
    net = dyn.Net("staged", width=2, stages=(dyn.Stage(3),), head=head).build().double()
    x = images()
    features = net.layer1(net.prep(x))
    expected = {"max": features.amax((2, 3)), "avg": features.mean((2, 3))}
    expected = torch.cat([expected[k] for k in head.split("+")], 1) @ net.linear.weight.T / 8
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_1x1_convolutions_of_stride_2_see_a_quarter_of_the_pixels():
    """P4-2: what they discard cannot change the outputs of the first stage; 3x3 ones of stride 2 see every pixel."""
    x = images()
    for name, blind in (("stride1x1", True), ("stride3x3", False)):
        net = BACKBONES[name].replace(width=2).build().double().eval()
        y = net.prep(x)
        changed = y.clone()
        changed[:, :, 1::2] += 1
        changed[:, :, :, 1::2] -= 1
        assert torch.equal(net.layer1(changed), net.layer1(y)) == blind


def test_P4_3_scales_of_norms_are_drawn_from_0_to_1():
    net = BACKBONES["global-maxpool"].build(seed=2)
    scales = {k: p.detach() for k, p in net.named_parameters() if k.endswith("norm.weight")}
    drawn = torch.cat(list(scales.values()))
    assert len(scales) == 4 and len(drawn) == 960
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    # six standard errors of a mean and of a variance
    assert float(drawn.mean()) == pytest.approx(0.5, abs=6 * (1 / 12 / 960) ** 0.5)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=6 * (1 / 180 / 960) ** 0.5)
    assert not torch.equal(scales["prep.norm.weight"], scales["layer1.norm.weight"][:64])
    ones = BACKBONES["scales-1"].build(seed=2)
    assert all((p == 1).all() for k, p in ones.named_parameters() if k.endswith("norm.weight"))
    assert torch.equal(ones.layer3.conv.weight, net.layer3.conv.weight), "what is shared does not change"
    assert not any(p.any() for k, p in net.named_parameters() if k.endswith("bias")), "biases start at zero"


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norm", ["ghost", "frozen", "none"])
def test_other_norms_and_fixed_scales_work_in_every_net(name, norm):
    net = SMALL[name].replace(norm=norm, norm_scale=False, ghost_splits=2).build().double()
    scales = [m.weight for m in net.modules() if isinstance(m, BatchNorm)]
    assert all(s is None for s in scales) and bool(scales) == (norm != "none")
    x = images()
    capture_statistics(net, x)
    y = net(x)
    if norm == "frozen":
        batch = SMALL[name].replace(norm_scale=False).build().double()
        torch.testing.assert_close(y, batch(x), rtol=1e-9, atol=1e-9)
    elif norm == "ghost":
        batch = SMALL[name].replace(norm_scale=False).build().double()
        expected = torch.stack([batch(x[0::2]), batch(x[1::2])], 1).flatten(0, 1)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(F.cross_entropy(y, torch.arange(8) % 10), list(net.parameters()))
    assert all(torch.isfinite(g).all() for g in grads)


# norms and what they follow


def test_norms_of_the_backbone_are_paired_once():
    pairs = norm_of(BACKBONES["repeated"].replace(width=2).build())
    assert {k: v.path for k, v in pairs.items()} == {
        f"{k}.conv": f"{k}.norm" for k in ("prep", "layer1", "layer2", "layer3")
    }


def test_a_convolution_that_is_added_to_a_shortcut_has_no_norm_of_its_own():
    pairs = norm_of(dyn.Net("resnet18", width=2).build())
    firsts = {f"layer{i}.block{j}.sum.branch": ["conv1", "norm2"] for i in (1, 2, 3, 4) for j in (0, 1)}
    expected = {f"{at}.{conv}": f"{at}.{norm}" for at, (conv, norm) in firsts.items()}
    assert {k: v.path for k, v in pairs.items()} == {"prep.conv": "layer1.block0.norm1", **expected}
    twice = norm_of(dyn.Net("resnet18", width=2, duplicate=True).build())
    assert twice["prep.conv"].path == "prep.norm" and twice.keys() == pairs.keys()


@pytest.mark.parametrize("name", ["resnet18", "duplicate", "staged", "backbone repeated", "residual:L1+L3"])
def test_what_norms_are_paired_with_is_scale_invariant_and_nothing_else(name):
    """B1: the gradient of a filter is orthogonal to it exactly where a batch norm undoes its scale."""
    net = SMALL[name].replace(eps=1e-14).build().double()
    F.cross_entropy(net(images(16)), torch.arange(16) % 10).backward()
    paired = norm_of(net)
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            w, g = module.weight.detach().flatten(1), module.weight.grad.flatten(1)
            cosine = float(((w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1)).clamp_min(1e-30)).abs().max())
            assert (cosine < 1e-9) == (path in paired), (path, cosine)


def test_the_table_of_invariances_agrees_for_resnet18():
    net = SMALL["resnet18"].build()
    table = invariance(net, F.cross_entropy, (images(16), torch.arange(16) % 10))
    assert {name.removesuffix(".weight") for name in table.invariant} == set(norm_of(net))


# activations and orders


@pytest.mark.parametrize("alpha", [0.075, 0.3, 2.0])
def test_P8_9_celu_is_smooth(alpha):
    """max(0, x) + min(0, a (exp(x/a) - 1)), continuous with its derivative, of slope at most 1/a; ReLU's jumps."""
    net = dyn.Net("resnet9", width=2, act="celu", celu_alpha=alpha).build()
    acts = [m for m in net.modules() if isinstance(m, nn.CELU)]
    assert len(acts) == 8 and {m.alpha for m in acts} == {alpha}
    x = torch.linspace(-6 * alpha, 6 * alpha, 24_001, dtype=torch.float64, requires_grad=True)
    y = acts[0](x)
    by_hand = x.clamp_min(0) + (alpha * torch.expm1(x / alpha)).clamp_max(0)
    torch.testing.assert_close(y, by_hand, rtol=1e-12, atol=1e-15)
    [slope] = torch.autograd.grad(y.sum(), x)
    step = 12 * alpha / 24_000
    # torch rounds 1 / alpha to float32 in the derivative
    torch.testing.assert_close(slope, torch.exp(x.detach().clamp_max(0) / alpha), rtol=1e-6, atol=0)
    assert float(slope.diff().abs().max()) <= step / alpha * (1 + 1e-6)
    [kinked] = torch.autograd.grad(F.relu(x).sum(), x)
    assert float(kinked.diff().abs().max()) == 1


@pytest.mark.parametrize("f", ["relu", "celu"])
def test_P8_5_max_pooling_commutes_with_monotone_activations(f):
    """Exactly, of the functions and of nets in both orders; pooling before the norm is another function."""
    act = {"relu": nn.ReLU(), "celu": nn.CELU(alpha=0.075)}[f]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = (3 * images()).to(dtype)
        assert torch.equal(F.max_pool2d(act(x), 2), act(F.max_pool2d(x, 2)))
    gelu = nn.GELU()
    assert not torch.equal(F.max_pool2d(gelu(x), 2), gelu(F.max_pool2d(x, 2))), "not monotone"
    for net in (SEARCH["residual:L1+L3"], SEARCH["extra:L2"], BACKBONES["maxpool"]):
        a, b, c = (
            randomised(net.replace(width=2, act=f, celu_alpha=0.075, order=order).build().double())(images())
            for order in ("norm-act-pool", "norm-pool-act", "pool-norm-act")
        )
        assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-6)


def frozen_scale_run(
    *, quarter: bool, steps: int = 25, bias_lr: float = 16.0, logit_scale: float = 1 / 32, norm: str = "batch"
) -> tuple[nn.Module, list[torch.Tensor]]:
    """Train a net by hand in float64: with scales of 1/4 and alpha 0.075, or with scales of 1 and what B13 asks for."""
    given = {"act": "celu", "norm": norm, "ghost_splits": 2, "order": "pool-norm-act", "eps": 1e-3}
    if quarter:
        net = dyn.Net("resnet9", width=2, celu_alpha=0.075, logit_scale=1 / 8, **given).build().double()
        for m in net.modules():
            if isinstance(m, BatchNorm):
                m.weight.detach().fill_(0.25)
    else:
        net = dyn.Net("resnet9", width=2, celu_alpha=0.3, logit_scale=logit_scale, norm_scale=False, **given)
        net = net.build().double()
        for name, m in net.named_modules():
            if isinstance(m, BatchNorm) and name != "prep.norm":
                # its inputs are four times as large; the first norm sees the same images
                m.eps *= 16
                m.running_var *= 16
    draw = torch.Generator().manual_seed(1)
    biases = [p for k, p in net.named_parameters() if k.endswith("norm.bias")]
    for bias in biases:
        with torch.no_grad():
            bias.copy_(torch.randn(bias.shape, generator=draw, dtype=torch.float64) * (0.1 if quarter else 0.4))
    weights = [p for p in net.parameters() if p.ndim >= 2]
    times = 1.0 if quarter else bias_lr
    groups = [
        {"params": weights, "lr": 0.1, "weight_decay": 5e-2},
        {"params": biases, "lr": 0.1 * times, "weight_decay": 5e-2 / times},
    ]
    sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    logits = []
    for step in range(steps):
        for group, base in zip(sgd.param_groups, (0.1, 0.1 * times), strict=True):
            group["lr"] = base * (step + 1) / steps
        x = images(8, seed=100 + step)
        sgd.zero_grad()
        out = net(x)
        F.cross_entropy(out, torch.arange(8) % 4).backward()
        sgd.step()
        logits.append(out.detach())
    return net, logits


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_P8_12_scales_of_a_quarter_are_scales_of_1_with_four_times_alpha(norm):
    """B13: with bias lr x16, bias decay /16, logits and eps scaled as well, the trajectory is the same."""
    a, logits = frozen_scale_run(quarter=True, norm=norm)
    b, twins = frozen_scale_run(quarter=False, norm=norm)
    torch.testing.assert_close(torch.stack(twins), torch.stack(logits), rtol=1e-9, atol=1e-10)
    assert float((logits[-1] - logits[0]).abs().max()) > 0.01, "the nets must have moved"
    theirs = dict(b.named_parameters())
    for name, p in a.named_parameters():
        if name.endswith("norm.bias"):
            torch.testing.assert_close(theirs[name], 4 * p, rtol=1e-9, atol=1e-10)
        elif p.ndim >= 2:
            torch.testing.assert_close(theirs[name], p, rtol=1e-9, atol=1e-10)
    x = images(5, seed=9)
    torch.testing.assert_close(b.eval()(x), a.eval()(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("left_out", [{"bias_lr": 1.0}, {"bias_lr": 64.0}, {"logit_scale": 1 / 16}])
def test_P8_12_needs_the_bias_lr_and_the_logits(left_out):
    """Bias lr x64 and logits of 1/16, which Page's code has, are changes of tuning and not identities."""
    _, logits = frozen_scale_run(quarter=True)
    _, others = frozen_scale_run(quarter=False, **left_out)
    assert float((logits[-1] - others[-1]).abs().max()) > 1e-3


# bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dyn.Net("stagde"), "unknown net 'stagde': did you mean 'staged'"),
        (lambda: dyn.Net("resnet81"), "did you mean"),
        (lambda: dyn.Net("staged").build(), "stages must be one Stage or more, as in stages=(Stage(128), Stage(256))"),
        (lambda: dyn.Net("staged", stages=()).build(), "stages must be one Stage or more"),
        (lambda: dyn.Net("staged", stages=(128, 256)).build(), "stages must be one Stage or more"),
        (lambda: dyn.Net("staged", stages=dyn.Stage(4)).build(), "stages must be one Stage or more"),
        (lambda: dyn.Net("staged", stages="residual").build(), "stages must be one Stage or more"),
        (lambda: dyn.Stage(0), "a stage's channels must be a whole number from 1 to 65536, got 0"),
        (lambda: dyn.Stage("128"), "a stage's channels must be a whole number"),
        (lambda: dyn.Stage(4, pool="max"), "a stage's pool must be True or False, got 'max'"),
        (lambda: dyn.Stage(4, branch="residaul"), "unknown branch 'residaul': did you mean 'residual'?"),
        (lambda: dyn.Stage(4, down="stride2"), "unknown down 'stride2': did you mean 'stride'"),
        (lambda: SMALL["staged"].replace(head="mean").build(), "unknown head 'mean': did you mean 'max'?"),
        (lambda: SMALL["staged"].replace(norm_init="unifrom").build(), "unknown norm_init 'unifrom': did you mean"),
        (lambda: SMALL["staged"].replace(celu_alpha=0).build(), "celu_alpha must be above 0, got 0"),
        (lambda: SMALL["staged"].replace(celu_alpha="0.3").build(), "celu_alpha must be a finite number, got '0.3'"),
        (lambda: SMALL["staged"].replace(whiten=1).build(), "whiten must be True or False, got 1"),
        (lambda: SMALL["staged"].replace(repeats=(2,)).build(), "repeats must be 4 whole numbers, for prep and each"),
        (lambda: SMALL["staged"].replace(repeats=(1, 1, 1, 0)).build(), "each of repeats must be a whole number"),
        (lambda: SMALL["staged"].replace(repeats=2).build(), "repeats must be 4 whole numbers"),
        (lambda: SMALL["staged"].replace(stages_at=0).build(), "stages_at must be a whole number from 1 to 4096"),
        (lambda: SMALL["staged"].replace(classifier_gain=0).build(), "classifier_gain must be above 0"),
        (lambda: SMALL["staged"].replace(linear_bias=None).build(), "linear_bias must be True or False"),
        (
            lambda: dyn.Net("staged", width=3, stages=(dyn.Stage(96),), stages_at=64).build(),
            "96 channels at width 64 are no whole number at width 3: take a multiple of 2",
        ),
        (lambda: dyn.Net("resnet18", width=0).build(), "width must be a whole number from 1 to 4096, got 0"),
        (lambda: dyn.Net("resnet18", duplicate="yes").build(), "duplicate must be True or False, got 'yes'"),
        (lambda: dyn.Net("resnet18", norm_init="ones").build(), "unknown norm_init 'ones': did you mean 'one'?"),
        (lambda: dyn.Net("resnet18", order="norm-act-pool"), "unknown argument of resnet18 'order'"),
        (lambda: dyn.Net("resnet18", act="sleu").build(), "unknown act 'sleu': did you mean"),
        (
            lambda: initial_state(toy_recipe(net=SMALL["extra:L1"]), toy_split(side=4)),
            "cannot take images of 4x4",
        ),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_width_that_fits_the_stages_is_scaled():
    net = dyn.Net("staged", width=2, stages=(dyn.Stage(96),), stages_at=64).build()
    assert net.layer1.conv.out_channels == 3
