from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import TwoMatrices, assert_same, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets import FrozenNorm, capture_statistics, conv_block, count_macs, count_weights, norm_of, staged
from dynamics.training import initial_state

WEIGHTS = {4: 26060, 8: 103384, 16: 411824, 64: 6568640}
MACS = {4: 1585472, 8: 6120064, 16: 24036608, 64: 379261952}


@pytest.mark.parametrize("width", WEIGHTS)
def test_published_sizes(width):
    """Page's Residual:L1+L3 at width 64 and its narrow copies: weights of convolutions and the classifier, and MACs."""
    net = dyn.Net("resnet9", width=width).build()
    assert count_weights(net) == WEIGHTS[width]
    assert count_macs(net) == MACS[width]
    # scales and biases of eight norms: 70 a unit of width
    assert sum(p.numel() for p in net.parameters()) == WEIGHTS[width] + 70 * width


def test_counting_leaves_the_net_as_it_is():
    net = dyn.Net("resnet9", width=2).build()
    before = copy.deepcopy(net.state_dict())
    count_macs(net)
    assert net.training and not any(m._forward_hooks for m in net.modules())
    assert_same(net.state_dict(), before)


def test_forward_equals_plain_functions():
    """The whole net written out by hand in float64."""
    net = dyn.Net("resnet9", width=3).build(classes=5, seed=1).double()
    p = dict(net.named_parameters())
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)

    def block(x, name, pool):
        x = F.conv2d(x, p[f"{name}.conv.weight"], padding=1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
        x = (x * p[f"{name}.norm.weight"].view(-1, 1, 1) + p[f"{name}.norm.bias"].view(-1, 1, 1)).clamp_min(0)
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)) if pool else x

    y = block(block(x, "prep", False), "layer1", True)
    y = y + block(block(y, "layer1.residual.res1", False), "layer1.residual.res2", False)
    y = block(block(y, "layer2", True), "layer3", True)
    y = y + block(block(y, "layer3.residual.res1", False), "layer3.residual.res2", False)
    expected = 0.125 * y.amax((2, 3)) @ p["linear.weight"].T
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def outputs(order: str, act: str) -> torch.Tensor:
    net = dyn.Net("resnet9", width=2, order=order, act=act).build()
    with torch.no_grad():  # scales of either sign, so that the order matters where it can
        for name, p in net.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return net(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def test_pooling_and_relu_commute_exactly():
    """P8-5: max(f(x)) = f(max(x)) for a monotone f; pooling before the norm is another net."""
    assert torch.equal(outputs("norm-act-pool", "relu"), outputs("norm-pool-act", "relu"))
    assert torch.equal(outputs("norm-act-pool", "celu"), outputs("norm-pool-act", "celu"))
    assert not torch.allclose(outputs("norm-act-pool", "relu"), outputs("pool-norm-act", "relu"), atol=1e-3)
    # GELU is not monotone
    assert not torch.equal(outputs("norm-act-pool", "gelu"), outputs("norm-pool-act", "gelu"))


@pytest.mark.parametrize("order", ["norm-act-pool", "norm-pool-act", "pool-norm-act"])
def test_order_is_the_order_of_modules(order):
    block = conv_block(3, 4, pool=True, norm="batch", act="relu", order=order, eps=1e-5)
    assert [name for name, _ in block.named_children()] == ["conv", *order.split("-")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_frozen_norm_equals_batch_norm_on_the_capturing_batch(dtype, tolerance):
    x = toy_split().padded().permute(0, 3, 1, 2).to(dtype)
    batch, frozen = (dyn.Net("resnet9", width=3, norm=n).build().to(dtype) for n in ("batch", "frozen"))
    capture_statistics(frozen, x)
    expected = batch(x)
    torch.testing.assert_close(frozen(x), expected, rtol=tolerance, atol=tolerance)
    other = x[:20].flip(2) * 1.5
    assert not torch.allclose(frozen(other), batch(other), atol=1e-3)
    # frozen is frozen: neither training nor forward passes move the statistics
    before = copy.deepcopy(dict(frozen.named_buffers()))
    frozen.train()(other)
    assert_same(dict(frozen.named_buffers()), before)


def test_capturing_leaves_a_net_without_frozen_norms_alone():
    net = dyn.Net("resnet9", width=2).build()
    before = copy.deepcopy(dict(net.named_buffers()))
    capture_statistics(net, torch.randn(4, 3, 16, 16))
    assert_same(dict(net.named_buffers()), before)


def test_initial_state_captures_frozen_statistics():
    split = toy_split()
    state = initial_state(toy_recipe(net=dyn.Net("resnet9", width=2, norm="frozen")), split)
    x = split.padded().permute(0, 3, 1, 2).double()
    y = F.conv2d(x, state.params["prep.conv.weight"].double(), padding=1)
    torch.testing.assert_close(
        state.buffers["prep.norm.running_mean"].double(), y.mean((0, 2, 3)), rtol=1e-5, atol=1e-6
    )
    var = y.var((0, 2, 3), correction=0)
    torch.testing.assert_close(state.buffers["prep.norm.running_var"].double(), var, rtol=1e-5, atol=1e-6)


def test_without_norm():
    net = dyn.Net("resnet9", width=4, norm="none").build()
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenNorm) for m in net.modules())
    assert all(m.bias is not None and not m.bias.any() for m in net.modules() if isinstance(m, nn.Conv2d))
    assert dict(net.named_buffers()) == {}


@pytest.mark.parametrize("init", ["torch", "he"])
def test_initial_variance(init):
    net = dyn.Net("resnet9", width=32, init=init).build(seed=3)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            w = module.weight.detach().double()
            gain = {"torch": 1 / 3, "he": 2.0 if isinstance(module, nn.Conv2d) else 1.0}[init]
            expected = gain / w[0].numel()
            # six standard errors of a variance of n draws (kurtosis at most that of a normal)
            assert float(w.var()) == pytest.approx(expected, rel=6 * (2 / w.numel()) ** 0.5), name
            if init == "torch":
                assert float(w.abs().max()) <= w[0].numel() ** -0.5


def test_seeds():
    net = dyn.Net("resnet9", width=2)
    assert_same(net.build(seed=4).state_dict(), net.build(seed=4).state_dict())
    a, b = net.build(seed=4), net.build(seed=5)
    assert not any(torch.equal(p, b.state_dict()[k]) for k, p in a.named_parameters() if p.ndim >= 2)


def test_layers_are_drawn_independently():
    weights = [p.detach().flatten() for _, p in dyn.Net("resnet9", width=2).build().named_parameters() if p.ndim >= 2]
    starts = torch.stack([w[:40] / w.std() for w in weights])
    assert float((torch.corrcoef(starts) - torch.eye(len(starts))).abs().max()) < 0.6


def test_nets_that_share_a_layer_share_its_weights():
    a = dyn.Net("resnet9", width=2).build(seed=1).state_dict()
    for other in (
        dyn.Net("resnet9", width=2, act="celu", order="pool-norm-act"),
        dyn.Net("resnet9", width=2, norm="frozen"),
        dyn.Net("resnet9", width=2, norm="none", init="torch"),
    ):
        b = other.build(seed=1).state_dict()
        assert [k for k in a if k.endswith(("conv.weight", "linear.weight")) and not torch.equal(a[k], b[k])] == []
    # fewer classes or a shallower net change only what is changed
    given = dict(norm="batch", act="relu", order="norm-act-pool", logit_scale=1.0, classes=10, eps=1e-5, init=None)
    c = staged(2, (dyn.Stage(4, branch="residual"),), seed=1, **given).state_dict()
    assert torch.equal(a["layer1.residual.res2.conv.weight"], c["layer1.residual.res2.conv.weight"])


@pytest.mark.parametrize("net", [dyn.Net("resnet9", width=2), dyn.Net("helpers:dropout_net")])
def test_building_leaves_the_global_generator_alone(net):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = net.build(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert_same(first, net.build(seed=1).state_dict())


@pytest.mark.parametrize("norm", ["batch", "frozen", "none"])
def test_a_state_loads_into_the_module_by_torchs_own_way(norm):
    """A run's weights and buffers, as plain tensors by name, are what load_state_dict takes."""
    net = dyn.Net("resnet9", width=2, norm=norm)
    state = initial_state(toy_recipe(net=net), toy_split(classes=4))
    module = net.build(classes=4, seed=5)
    module.load_state_dict({**state.params, **state.buffers})
    assert_same({k: p.detach() for k, p in module.named_parameters()}, state.params)
    module.load_state_dict(net.build(classes=4, seed=6).state_dict())


def test_import_path_nets():
    net = dyn.Net("helpers:told_net", widths=(1, 2))
    assert net.build(classes=7, seed=9).told == (7, 9, (1, 2))
    assert isinstance(dyn.Net("helpers:plain_net").build(classes=7, seed=9), nn.Module)
    a, b = (dyn.Net("helpers:dropout_net").build(seed=s).state_dict() for s in (1, 2))
    assert not torch.equal(a["0.weight"], b["0.weight"])
    with pytest.raises(DynamicsError, match=r"cannot import the net 'helpers:nothing'.*write package.module:function"):
        dyn.Net("helpers:nothing").build()
    with pytest.raises(DynamicsError, match="cannot import the net 'no_such_module:net'"):
        dyn.Net("no_such_module:net").build()


def test_net_is_a_value():
    net = dyn.Net("resnet9", width=8, act="celu")
    assert net == dyn.Net("resnet9", act="celu", width=8) != dyn.Net("resnet9", width=8)
    assert hash(net) == hash(dyn.Net("resnet9", act="celu", width=8))
    assert repr(net) == "Net('resnet9', act='celu', width=8)"
    assert eval(repr(net), {"Net": dyn.Net}) == net
    assert net.replace(width=4) == dyn.Net("resnet9", act="celu", width=4)
    assert net == dyn.Net("resnet9", width=8, act="celu"), "replace must not change the original"


def test_lists_among_a_nets_arguments():
    """A recipe with a list in it is a value too: hashable, and equal after JSON."""
    net = dyn.Net("helpers:told_net", widths=[3, 4])
    assert hash(net) == hash(dyn.Net("helpers:told_net", widths=[3, 4]))
    recipe = toy_recipe(net=net)
    assert dyn.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dyn.Net("resnet8"), "unknown net 'resnet8': did you mean 'resnet9'?"),
        (lambda: dyn.Net("resnet9", widht=3), "unknown argument of resnet9 'widht': did you mean 'width'?"),
        (lambda: dyn.Net("resnet9", norm="btach").build(), "unknown norm 'btach': did you mean 'batch'?"),
        (lambda: dyn.Net("resnet9", act="rleu").build(), "unknown act 'rleu': did you mean 'relu'"),
        (lambda: dyn.Net("resnet9", order="act-norm-pool").build(), "unknown order 'act-norm-pool': did you mean"),
        (lambda: dyn.Net("resnet9", init="kaiming").build(), "unknown init 'kaiming': choose one of he, torch"),
        (lambda: dyn.Net("resnet9", width=0).build(), "width must be a whole number from 1 to 4096, got 0"),
        (lambda: dyn.Net("resnet9", width=2.0).build(), "width must be a whole number"),
        (lambda: dyn.Net("resnet9").build(classes=1), "at least 2 classes, got 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_norms_are_matched_to_the_convolutions_they_follow():
    pairs = norm_of(dyn.Net("resnet9", width=2).build())
    assert len(pairs) == 8
    assert all(norm.path == conv.removesuffix("conv") + "norm" and norm.eps == 1e-5 for conv, norm in pairs.items())
    assert norm_of(dyn.Net("resnet9", width=2, norm="none").build()) == {}
    assert len(norm_of(dyn.Net("resnet9", width=2, norm="frozen", order="pool-norm-act").build())) == 8
    assert norm_of(TwoMatrices()) == {}


def test_a_norm_of_other_features_ends_the_search():
    """DenseNet's order: a convolution's output is concatenated, and the next norm sees more channels than it made."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(4))
    assert norm_of(net) == {}
