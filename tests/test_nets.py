from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import TwoMatrices, assert_same, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets import (
    ACTIVATIONS,
    NETS,
    BatchNorm,
    FrozenNorm,
    GhostNorm,
    capture_statistics,
    conv_block,
    count_macs,
    count_weights,
    norm_of,
    staged,
)
from dynamics.training import initial_state

WEIGHTS = {4: 26060, 8: 103384, 16: 411824, 64: 6568640}
PLAIN8_WEIGHTS = {8: 73432, 16: 292016, 64: 4651712}
PLAIN8_MACS = {8: 5529600, 16: 21676032, 64: 341508096}
MACS = {4: 1585472, 8: 6120064, 16: 24036608, 64: 379261952}


@pytest.mark.parametrize("width", WEIGHTS)
def test_published_sizes(width):
    """Page's Residual:L1+L3 at width 64 and its narrow copies: weights of convolutions and the classifier, and MACs."""
    net = dyn.Net("resnet9", width=width).build()
    assert count_weights(net) == WEIGHTS[width]
    assert count_macs(net) == MACS[width]
    # scales and biases of eight norms: 70 a unit of width
    assert sum(p.numel() for p in net.parameters()) == WEIGHTS[width] + 70 * width


@pytest.mark.parametrize("width", PLAIN8_WEIGHTS)
def test_published_sizes_of_plain8(width):
    net = dyn.Net("plain8", width=width).build()
    # post 7's nets have no other parameters: the norms' scales and biases are fixed
    assert count_weights(net) == sum(p.numel() for p in net.parameters()) == PLAIN8_WEIGHTS[width]
    # the published count is of convolutions alone
    assert count_macs(net) == PLAIN8_MACS[width] + 8 * width * 10


def test_sizes_of_an_mlp():
    net = dyn.Net("mlp", depth=3, width=5, inputs=7, norm="batch").build(classes=4)
    assert count_weights(net) == count_macs(net, (7,)) == 7 * 5 + 5 * 5 + 5 * 5 + 5 * 4
    assert sum(p.numel() for p in net.parameters()) == count_weights(net) + 3 * 2 * 5


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


@pytest.mark.parametrize("order", ["norm-act-pool", "act-norm-pool"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_plain8_equals_plain_functions(order, norm):
    """Post 7's net written out by hand in float64, with the norm before or after the activation, or without."""
    net = dyn.Net("plain8", width=3, order=order, norm=norm, act="softplus").build(classes=5, seed=1).double()
    p = dict(net.named_parameters())
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)

    def normalised(x):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() if norm == "batch" else x

    def softplus(x):
        return torch.logaddexp(10 * x, torch.zeros_like(x)) / 10

    def block(x, name, pool):
        x = F.conv2d(x, p[f"{name}.conv.weight"], padding=1)
        x = softplus(normalised(x)) if order == "norm-act-pool" else normalised(softplus(x))
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)) if pool else x

    y = block(x / 2**0.5, "prep", False)
    for name in ("layer1", "layer2", "layer3"):
        y = block(block(y, name, True), f"{name}x", False)
    expected = 0.125 / 6**0.5 * y.amax((2, 3)) @ p["linear.weight"].T
    # torch's softplus is linear above 20 / beta, which is 2e-10 off
    torch.testing.assert_close(net(x), expected, rtol=1e-8, atol=1e-8)
    assert len(p) == 8


def test_plain8s_nets_share_their_parameters():
    """Post 7 compares nets with and without norm at the same point of the same space."""
    nets = {norm: dyn.Net("plain8", width=2, norm=norm).build(seed=1) for norm in ("batch", "frozen", "ghost", "none")}
    for net in nets.values():
        assert_same(dict(net.named_parameters()), dict(nets["batch"].named_parameters()))
    assert [k for k, _ in nets["batch"].named_children()] == [
        "input", "prep", "layer1", "layer1x", "layer2", "layer2x", "layer3", "layer3x", "pool", "linear", "logits",
    ]  # fmt: skip


def test_plain8_keeps_the_scale_of_its_signal():
    """He's rule on images scaled by 1/sqrt(2): a convolution of images of second moment 1 has outputs of variance 1."""
    net = dyn.Net("plain8", width=64, norm="none").build()
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = F.conv2d(net.input(x), net.prep.conv.weight)
        z = F.conv2d(y.relu(), net.layer1.conv.weight)
    assert float(y.square().mean()) == pytest.approx(1, rel=0.1)
    assert float(z.square().mean()) == pytest.approx(1, rel=0.2)
    # the classifier is drawn by the same rule, so the squared norm of all weights is twice the number of filters
    assert float(net.linear.weight.detach().var()) == pytest.approx(2 / 512, rel=6 * (2 / 5120) ** 0.5)
    assert torch.cat([p.flatten() for p in net.parameters()]).norm().item() == pytest.approx(3732**0.5, rel=1e-2)


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


@pytest.mark.parametrize("order", ["norm-act-pool", "norm-pool-act", "pool-norm-act", "act-norm-pool"])
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


@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 5), (9, 4, 5, 6), (9, 4, 3, 4, 5)])
def test_statistics_are_captured_from_inputs_of_any_shape(shape):
    x = 3 + 2 * torch.randn(shape, dtype=torch.float64)
    frozen, batch = FrozenNorm(4).double(), BatchNorm(4).double()
    capture_statistics(frozen, x)
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(frozen.running_mean, rows.mean(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(frozen.running_var, rows.var(1, correction=0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(frozen(x), batch(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_statistics_are_exact_in_any_layout(dtype):
    """Batch norm's own sums over channels_last memory are 1e-5 off in float32, and sums in bfloat16 4e-3."""
    x = (1 + torch.randn(128, 8, 32, 32, generator=torch.Generator().manual_seed(0))).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    frozen = FrozenNorm(8)
    capture_statistics(frozen, x)
    expected = x.double().var((0, 2, 3), correction=0), x.double().mean((0, 2, 3))
    torch.testing.assert_close(frozen.running_var.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(frozen.running_mean.double(), expected[1], rtol=1e-6, atol=0)


def test_scale_and_bias_of_a_norm_may_be_fixed():
    for norm in ("batch", "frozen", "ghost"):
        net = dyn.Net("resnet9", width=2, norm=norm, norm_scale=False).build()
        names = {name for name, p in net.named_parameters() if p.ndim == 1}
        assert len(names) == 8 and all(name.endswith("norm.bias") for name in names)
    x = torch.randn(6, 3, 16, 16)
    learned, fixed = (dyn.Net("resnet9", width=2, norm_scale=b, norm_bias=b).build() for b in (True, False))
    torch.testing.assert_close(fixed(x), learned(x))
    # without a norm, the bias is the convolution's
    assert all(p.ndim > 1 for p in dyn.Net("resnet9", width=2, norm="none", norm_bias=False).build().parameters())


def per_split(x: torch.Tensor, norm: nn.Module, norms: list[nn.BatchNorm2d]) -> torch.Tensor:
    """Ghost norm by hand: torch's batch norm, one for each strided shard, all with the scale and bias of `norm`."""
    y = torch.empty_like(x)
    for j, own in enumerate(norms):
        shard = F.batch_norm(x[j :: len(norms)], own.running_mean, own.running_var, None, None, True, 0.1, norm.eps)
        y[j :: len(norms)] = shard * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return y


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ghost_norm_is_batch_norm_of_each_strided_shard(splits, layout):
    """B12: outputs, gradients, and running statistics, which are the mean over shards of each shard's own average."""
    draw = torch.Generator().manual_seed(splits)
    ghost = GhostNorm(3, splits).double()
    with torch.no_grad():
        for p in ghost.parameters():
            p.normal_(generator=draw)
    twin = copy.deepcopy(ghost)
    norms = [nn.BatchNorm2d(3).double() for _ in range(splits)]
    for _ in range(3):  # the statistics are averaged over steps as well
        x = 1 + 2 * torch.randn(8, 3, 4, 5, dtype=torch.float64, generator=draw)
        weights = torch.randn(x.shape, dtype=x.dtype, generator=draw)
        a, b = x.to(memory_format=layout, copy=True).requires_grad_(), x.clone().requires_grad_()
        y, expected = ghost(a), per_split(b, twin, norms)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        assert y.is_contiguous(memory_format=layout)
        grads = torch.autograd.grad((y * weights).sum(), (a, *ghost.parameters()))
        twins = torch.autograd.grad((expected * weights).sum(), (b, *twin.parameters()))
        torch.testing.assert_close(grads, twins, rtol=1e-12, atol=1e-12)
    mean, var = (torch.stack([getattr(n, k) for n in norms]).mean(0) for k in ("running_mean", "running_var"))
    torch.testing.assert_close(ghost.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ghost.running_var, var, rtol=1e-12, atol=1e-12)
    # evaluation: these statistics, for any number of images
    x = torch.randn(7, 3, 4, 5, dtype=torch.float64, generator=draw).to(memory_format=layout)
    expected = F.batch_norm(x, mean, var, twin.weight, twin.bias, False, 0.0, twin.eps)
    before = copy.deepcopy(dict(ghost.named_buffers()))
    torch.testing.assert_close(ghost.eval()(x), expected, rtol=1e-12, atol=1e-12)
    assert_same(dict(ghost.named_buffers()), before)


def test_a_shift_of_one_ghost_part_is_not_seen():
    """The parts are the images of equal index modulo the splits; blocks of consecutive images are other parts."""
    ghost, x = GhostNorm(2, 4).double(), torch.randn(12, 2, 3, 3, dtype=torch.float64)
    index = torch.arange(12).view(-1, 1, 1, 1)
    torch.testing.assert_close(ghost(x + 10 * (index % 4)), ghost(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ghost(x + 10 * (index // 3)), ghost(x), atol=0.1)


def test_ghost_norm_of_vectors():
    ghost, x = GhostNorm(5, 3).double(), torch.randn(12, 5, dtype=torch.float64)
    expected = per_split(x[..., None, None], ghost, [nn.BatchNorm2d(5).double() for _ in range(3)])
    torch.testing.assert_close(ghost(x), expected[..., 0, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_ghost_norm_in_low_precision(layout, dtype, tolerance):
    x = torch.randn(32, 6, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    ghost, exact = GhostNorm(6, 4), GhostNorm(6, 4).double()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = ghost(x.to(memory_format=layout))
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    # a value of 4 has a spacing of 2^-6 in bfloat16
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=0, atol=tolerance)
    torch.testing.assert_close(ghost.running_var.double(), exact.running_var, rtol=1e-5, atol=0)


def test_one_ghost_split_is_batch_norm():
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    ghost, batch = (dyn.Net("resnet9", width=2, norm=n, ghost_splits=1).build().double() for n in ("ghost", "batch"))
    torch.testing.assert_close(ghost(x), batch(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(ghost.named_buffers()), dict(batch.named_buffers()), rtol=1e-12, atol=1e-12)


def test_the_loss_of_a_ghost_net_is_scale_invariant():
    """B1: a convolution's weights are orthogonal to their gradient, filter by filter."""
    net = dyn.Net("plain8", width=2, norm="ghost", ghost_splits=4, eps=1e-14).build().double()
    x = torch.randn(16, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(net(x), torch.arange(16) % 10).backward()
    for name, p in net.named_parameters():
        w, g = p.detach().flatten(1), p.grad.flatten(1)
        cosine = (w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1)).clamp_min(1e-30)
        assert (float(cosine.abs().max()) < 1e-10) == (name != "linear.weight"), name


def test_curvature_goes_through_ghost_norm():
    """A Hessian-vector product of the ghost net by forward over reverse equals a finite difference of gradients."""
    net = dyn.Net("plain8", width=2, norm="ghost", ghost_splits=2, act="softplus").build().double()
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=draw), torch.arange(8)
    params = {k: p.detach() for k, p in net.named_parameters()}
    v = {k: torch.randn(p.shape, dtype=p.dtype, generator=draw) for k, p in params.items()}
    buffers = {k: b.clone() for k, b in net.named_buffers()}

    def loss(params):
        return F.cross_entropy(torch.func.functional_call(net, {**params, **buffers}, (x,)), y)

    gradient = torch.func.grad(loss)
    _, product = torch.func.jvp(gradient, (params,), (v,))
    # inside the transforms too, each forward pass moves the running statistics
    net.load_state_dict({**params, **dict(net.named_buffers())})
    net(x)
    torch.testing.assert_close(dict(net.named_buffers()), buffers, rtol=1e-12, atol=1e-12)
    ahead, behind = (gradient({k: p + h * v[k] for k, p in params.items()}) for h in (1e-6, -1e-6))
    for k, expected in product.items():
        difference = (ahead[k] - behind[k]) / 2e-6
        assert float((expected - difference).norm() / difference.norm()) < 1e-6, k


def test_a_ghost_net_trains_as_a_recipe():
    net = dyn.Net("resnet9", width=2, norm="ghost", ghost_splits=4)
    recipe, split = toy_recipe(net=net, epochs=1), toy_split()
    snap = last(dyn.steps(recipe, split))
    assert all(torch.isfinite(p).all() for p in snap.params.values())
    assert snap.buffers["prep.norm.running_var"].shape == (2,) and (snap.buffers["prep.norm.running_var"] != 1).all()
    assert len(dyn.batchnorm(snap)["running_var"][1]) == 70
    with pytest.raises(DynamicsError, match="ghost norm cannot split a batch of 20 images into 8 equal parts"):
        last(dyn.steps(toy_recipe(net=net.replace(ghost_splits=8)), split))


def test_shifted_relu_has_mean_0_and_variance_1():
    """P7-4: integrals over a normal input of variance 2, by the trapezoid rule."""
    x = torch.linspace(-15, 15, 300_001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 4) / (4 * torch.pi) ** 0.5
    y = ACTIVATIONS["shifted_relu"]()(x)
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-12)
    assert torch.trapezoid(y * density, x).item() == pytest.approx(0, abs=1e-8)
    assert torch.trapezoid(y**2 * density, x).item() == pytest.approx(1, abs=1e-8)


def within_channel_fraction(act: str, layers: tuple[int, ...], seeds: int, width: int = 512) -> torch.Tensor:
    """Mean over seeds of a layer's variance within channels over its second moment, before the activation."""
    read = torch.zeros(len(layers), dtype=torch.float64)
    for seed in range(seeds):
        net = dyn.Net("mlp", depth=max(layers), width=width, inputs=width, act=act).build(seed=seed)
        seen = []
        for i in layers:
            net.get_submodule(f"layer{i}.linear").register_forward_hook(
                lambda m, x, z, seen=seen: seen.append(z.double())
            )
        with torch.no_grad():
            net(torch.randn(256, width, generator=torch.Generator().manual_seed(seed)))
        fractions = [z.var(0, correction=0).mean() / z.square().mean() for z in seen]
        read += torch.stack(fractions) / seeds
    return read


def test_deep_relu_nets_collapse_as_the_correlation_map_says():
    """P7-2, B10: at infinite width the fraction is 1 - c, with c -> (sqrt(1 - c^2) + (pi - arccos c) c) / pi."""
    layers, c, theory = (1, 2, 5, 10, 20, 50), torch.zeros((), dtype=torch.float64), []
    for layer in range(1, 51):
        if layer in layers:
            theory.append(1 - c.item())
        c = ((1 - c**2).sqrt() + (torch.pi - c.arccos()) * c) / torch.pi
    assert theory == pytest.approx([1, 0.6817, 0.319, 0.145, 0.0555, 0.0126], abs=5e-4)
    measured = within_channel_fraction("relu", layers, seeds=3)
    torch.testing.assert_close(measured[:4], torch.tensor(theory[:4], dtype=torch.float64), rtol=0.3, atol=0)
    # of finite width, a net keeps more of its spread far down: 0.054 and 0.031 at layers 20 and 50 in one seed
    assert measured[4:].tolist() == pytest.approx([0.066, 0.032], rel=0.4)


@pytest.mark.parametrize(("act", "least"), [("identity", 0.99), ("shifted_relu", 0.9)])
def test_linear_and_shifted_nets_do_not_collapse(act, least):
    """P7-3, P7-4."""
    assert float(within_channel_fraction(act, (1, 10, 50), seeds=1).min()) > least


@pytest.mark.parametrize("norm", ["batch", "frozen", "ghost"])
def test_norms_keep_the_spread_of_a_deep_relu_net(norm):
    net = dyn.Net("mlp", depth=20, width=64, inputs=64, norm=norm, ghost_splits=2).build()
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    capture_statistics(net, x)
    z = net[:-2](x)
    z = net.layer20.norm(net.layer20.linear(z))
    assert float((z.var(0, correction=0).mean() / z.square().mean()).detach()) > 0.99
    assert norm_of(net)["layer7.linear"].path == "layer7.norm" and len(norm_of(net)) == 20


def test_mlp_equals_plain_functions():
    net = dyn.Net("mlp", depth=2, width=4, inputs=3 * 5 * 5, norm="batch", act="shifted_relu").build(classes=3).double()
    p = dict(net.named_parameters())
    x = torch.randn(6, 3, 5, 5, dtype=torch.float64)
    y = x.reshape(6, -1)
    for i in (1, 2):
        z = y @ p[f"layer{i}.linear.weight"].T
        z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
        y = (z.clamp_min(0) - (1 / torch.pi) ** 0.5) / (1 - 1 / torch.pi) ** 0.5
    expected = y @ p["linear.weight"].T
    for inputs in (x, x.to(memory_format=torch.channels_last), x.flatten(1)):
        torch.testing.assert_close(net(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("act", "gain"), [("relu", 2.0), ("shifted_relu", 2.0), ("identity", 1.0)])
def test_initial_variance_of_an_mlp(act, gain):
    net = dyn.Net("mlp", depth=2, width=100, inputs=50, act=act).build()
    for name, expected in {"layer1.linear": gain / 50, "layer2.linear": gain / 100, "linear": 1 / 100}.items():
        w = net.get_submodule(name).weight
        assert float(w.detach().var()) == pytest.approx(expected, rel=6 * (2 / w.numel()) ** 0.5), name


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_data(name):
    """A recipe with it survives JSON, its seeds decide it, and a step of training runs."""
    needed = {"mlp": {"depth": 2, "inputs": 768}, "staged": {"stages": (dyn.Stage(4, branch="residual"),)}}
    net = dyn.Net(name, width=2, **needed.get(name, {}), norm="frozen")
    recipe = toy_recipe(net=net, epochs=1 / 3)
    assert dyn.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert_same(net.build(seed=4).state_dict(), net.build(seed=4).state_dict())
    a, b = net.build(seed=4), net.build(seed=5)
    assert not any(torch.equal(p, b.state_dict()[k]) for k, p in a.named_parameters() if p.ndim >= 2)
    assert last(dyn.steps(recipe, toy_split())).step == 1


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
        dyn.Net("resnet9", width=2, norm="ghost"),
    ):
        b = other.build(seed=1).state_dict()
        assert [k for k in a if k.endswith(("conv.weight", "linear.weight")) and not torch.equal(a[k], b[k])] == []
    plain, he = (dyn.Net(n, width=2, init="he").build(seed=1).state_dict() for n in ("plain8", "resnet9"))
    shared = [k for k in plain.keys() & he.keys() if k.endswith("conv.weight") and plain[k].shape == he[k].shape]
    assert len(shared) == 4 and all(torch.equal(plain[k], he[k]) for k in shared)
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


@pytest.mark.parametrize("norm", ["batch", "frozen", "ghost", "none"])
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
        (lambda: dyn.Net("resnet8"), "unknown net 'resnet8': did you mean 'resnet18' or 'resnet9' or 'resnet20'?"),
        (lambda: dyn.Net("resnet9", widht=3), "unknown argument of resnet9 'widht': did you mean 'width' or 'whiten'?"),
        (lambda: dyn.Net("resnet9", norm="btach").build(), "unknown norm 'btach': did you mean 'batch'?"),
        (lambda: dyn.Net("resnet9", act="rleu").build(), "unknown act 'rleu': did you mean 'relu'"),
        (lambda: dyn.Net("resnet9", order="act-pool-norm").build(), "unknown order 'act-pool-norm': did you mean"),
        (lambda: dyn.Net("resnet9", init="kaiming").build(), "unknown init 'kaiming': choose one of he, torch"),
        (lambda: dyn.Net("resnet9", width=0).build(), "width must be a whole number from 1 to 4096, got 0"),
        (lambda: dyn.Net("resnet9", width=2.0).build(), "width must be a whole number"),
        (lambda: dyn.Net("resnet9", width=None).build(), "width must be a whole number from 1 to 4096, got None"),
        (lambda: dyn.Net("resnet9").build(classes=1), "at least 2 classes, got 1"),
        (
            lambda: dyn.Net("resnet9", norm="ghost", ghost_splits=0).build(),
            "ghost_splits must be a whole number from 1",
        ),
        (lambda: dyn.Net("resnet9", norm_scale=0.25).build(), "norm_scale must be True or False (learned or fixed)"),
        (lambda: dyn.Net("resnet9", eps=0).build(), "eps must be above 0, got 0"),
        (lambda: dyn.Net("resnet9", logit_scale="1/8").build(), "logit_scale must be a finite number, got '1/8'"),
        (lambda: dyn.Net("plain9"), "unknown net 'plain9': did you mean 'plain8'"),
        (lambda: dyn.Net("plain8", depth=3), "unknown argument of plain8 'depth': did you mean 'width'"),
        (lambda: dyn.Net("plain8", width=0).build(), "width must be a whole number from 1 to 4096, got 0"),
        (lambda: dyn.Net("plain8", norm="gost").build(), "unknown norm 'gost': did you mean 'ghost'?"),
        (lambda: dyn.Net("plain8", init="xavier").build(), "unknown init 'xavier': choose one of he, torch"),
        (lambda: dyn.Net("plain8", input_scale=float("nan")).build(), "input_scale must be a finite number, got nan"),
        (lambda: dyn.Net("mlp", act="shifted").build(), "unknown act 'shifted': did you mean 'shifted_relu'?"),
        (lambda: dyn.Net("mlp", depth=0).build(), "depth must be a whole number from 1 to 10000, got 0"),
        (lambda: dyn.Net("mlp", width=0).build(), "width must be a whole number from 1 to 65536, got 0"),
        (lambda: dyn.Net("mlp", inputs=2.5).build(), "inputs must be a whole number from 1 to 100000000, got 2.5"),
        (lambda: dyn.Net("mlp", order="norm-act-pool"), "unknown argument of mlp 'order'"),
        (
            lambda: initial_state(toy_recipe(net=dyn.Net("mlp", depth=1, width=2)), toy_split()),
            "this net takes 3072 inputs, got 3x16x16: build it with inputs=768",
        ),
        (lambda: GhostNorm(2, 4)(torch.ones(6, 2, 3, 3)), "cannot split a batch of 6 into 4 equal parts"),
        (lambda: GhostNorm(2, 4)(torch.ones(4, 2)), "4 parts of a batch of 4 have one value a channel"),
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
