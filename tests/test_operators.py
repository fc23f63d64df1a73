"""The Hessian and Gauss-Newton operators against dense float64 twins made of torch's own layers, and their manners."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import bits
from torch import nn
from torch.func import functional_call

from dynamics.curvature.evaluate import nodes
from dynamics.curvature.operators import GaussNewton, Hessian
from dynamics.errors import DynamicsError
from dynamics.nets import FrozenNorm, GhostNorm, Net, Residual, capture_statistics

Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def smoothed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.2)


def batches(*sizes: int, side: int = 4) -> Batches:
    return [(torch.randn(n, 2, side, side), torch.randint(3, (n,))) for n in sizes or (6, 10)]


def conv_net(*between: nn.Module, bias: bool = False, channels: int = 4) -> nn.Sequential:
    """A convolution, what follows it, a second one of stride 2, and a linear layer for three classes."""
    parts = {"conv": nn.Conv2d(2, channels, 3, padding=1, bias=bias), **{f"part{i}": m for i, m in enumerate(between)}}
    return nn.Sequential(
        OrderedDict(
            parts,
            conv2=nn.Conv2d(channels, 3, 3, stride=2, padding=1, bias=bias),
            act=nn.Softplus(2),
            flat=nn.Flatten(),
            out=nn.LazyLinear(3),
        )
    )


def made(net: nn.Module, data: Batches) -> nn.Module:
    """With weights for lazy layers, and norms whose scale, bias and statistics are not trivial."""
    net.eval()(data[0][0])
    for module in net.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            for p in module.parameters():
                with torch.no_grad():
                    p.add_(0.3 * torch.randn_like(p))
    return net.train()


NETS: dict[str, Callable[[], nn.Module]] = {
    "batch norm and softplus": lambda: conv_net(nn.BatchNorm2d(4), nn.Softplus(10)),
    "batch norm without scale, GELU, max-pool": lambda: conv_net(
        nn.BatchNorm2d(4, affine=False), nn.GELU(), nn.MaxPool2d(2)
    ),
    "ReLU in place after a norm": lambda: conv_net(nn.BatchNorm2d(4), nn.ReLU(inplace=True), bias=True),
    "ghost norm and overlapping max-pool": lambda: conv_net(
        GhostNorm(4, 2), nn.CELU(0.3), nn.MaxPool2d(3, 2, padding=1)
    ),
    "no norm, groups, tanh": lambda: conv_net(
        nn.Softplus(), nn.Conv2d(4, 2, 3, padding=2, groups=2, dilation=2), nn.Conv2d(2, 4, 1), nn.Tanh()
    ),
    "max-pool before the norm, residual": lambda: conv_net(
        nn.MaxPool2d(2),
        nn.BatchNorm2d(4),
        Residual(nn.Conv2d(4, 4, 3, padding="same", groups=4), nn.BatchNorm2d(4), nn.Softplus()),
        bias=True,
    ),
    "layer norm and one-dimensional norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(32, 4), nn.BatchNorm1d(4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 3)
    ),
}


def twin_gradient(net: nn.Module, loss: Any, data: Batches, bn: str, flat: torch.Tensor, graph: bool) -> torch.Tensor:
    """The flat gradient at `flat` by torch's layers in the net's own modes, for each batch on a copy of the net."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.training = bn == "batch"
    named = dict(net.named_parameters())
    flat = flat.detach().requires_grad_()
    parts = flat.split([p.numel() for p in named.values()])
    weights = {name: part.view(p.shape) for part, (name, p) in zip(parts, named.items(), strict=True)}
    total = sum(len(x) for x, _ in data)
    value = sum(loss(functional_call(net, weights, (x,)), y) * (len(x) / total) for x, y in data)
    (gradient,) = torch.autograd.grad(value, flat, create_graph=graph)
    if not graph:
        return gradient
    rows = [
        torch.autograd.grad(g, flat, retain_graph=True, allow_unused=True, materialize_grads=True)[0] for g in gradient
    ]
    return torch.stack(rows)


def weights_of(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def dense_twin(net: nn.Module, loss: Any, data: Batches, bn: str = "batch") -> torch.Tensor:
    return twin_gradient(net, loss, data, bn, weights_of(net), True)


def dense(op: Any) -> torch.Tensor:
    return op.matmat(torch.eye(op.shape[0], dtype=op.dtype))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("bn", ["batch", "frozen"])
@pytest.mark.parametrize("name", NETS)
def test_products_equal_the_dense_hessian_of_torchs_own_layers(name: str, bn: str) -> None:
    data = batches()
    net = made(NETS[name](), data)
    op, twin = Hessian(net, smoothed, data, bn=bn), dense_twin(net, smoothed, data, bn)
    found = dense(op)
    assert op.shape == twin.shape
    assert distance(found, twin) < 1e-9
    assert distance(found, found.T) < 1e-10
    flat = weights_of(net)
    assert distance(op.gradient(), twin_gradient(net, smoothed, data, bn, flat, False)) < 1e-10
    v = torch.randn(op.shape[0])
    step = 1e-5 / v.norm()
    ahead, behind = (twin_gradient(net, smoothed, data, bn, flat + s * step * v, False) for s in (1, -1))
    assert distance(op.matvec(v), (ahead - behind) / (2 * step)) < 1e-6


def test_a_subset_is_the_diagonal_block_of_the_whole() -> None:
    data = batches()
    net = made(NETS["batch norm and softplus"](), data)
    whole = Hessian(net, smoothed, data)
    places = whole.split(torch.arange(whole.shape[0]).double())
    full = dense(whole)
    chosen = {
        "conv": ["conv.weight"],
        "part*": ["part0.weight", "part0.bias"],
        "out.bias": ["out.bias"],
    }
    for pattern, names in chosen.items():
        rows = torch.cat([places[name].flatten().long() for name in names])
        block = Hessian(net, smoothed, data, params=pattern)
        assert list(block.names) == names
        assert distance(dense(block), full[rows][:, rows]) < 1e-12
    both = Hessian(net, smoothed, data, params=["out", "conv.weight"])
    assert both.names == ("conv.weight", "out.weight", "out.bias")
    matrices = Hessian(net, smoothed, data, params=lambda name, p: p.ndim > 1)
    assert matrices.names == ("conv.weight", "conv2.weight", "out.weight")
    assert GaussNewton(net, smoothed, data, params="conv").shape == (72, 72)


def test_batch_and_frozen_are_two_matrices_and_given_statistics_a_third() -> None:
    data = batches(8)
    net = made(NETS["batch norm and softplus"](), data)
    batch, frozen = (dense(Hessian(net, smoothed, data, bn=bn)) for bn in ("batch", "frozen"))
    assert distance(batch, frozen) > 0.1
    with torch.no_grad():
        convolved = net.conv(data[0][0])
    variance, mean = torch.var_mean(convolved, (0, 2, 3), correction=0)
    given = {"part0.running_mean": mean, "part0.running_var": variance}
    captured = Hessian(net, smoothed, data, bn="frozen", statistics=given)
    assert captured.loss() == pytest.approx(Hessian(net, smoothed, data).loss(), rel=1e-12)
    net.part0.running_mean.copy_(mean)
    net.part0.running_var.copy_(variance)
    assert distance(dense(captured), dense_twin(net, smoothed, data, "frozen")) < 1e-9
    assert distance(dense(captured), batch) > 0.1


def test_a_frozen_norm_stays_frozen_in_both_modes() -> None:
    data = batches(8)
    net = made(conv_net(FrozenNorm(4), nn.GELU()), data)
    capture_statistics(net, data[0][0])
    v = torch.randn(sum(p.numel() for p in net.parameters()))
    products = [Hessian(net, smoothed, data, bn=bn).matvec(v) for bn in ("batch", "frozen")]
    assert torch.equal(*products)


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_gauss_newton_is_the_jacobian_around_the_hessian_of_the_loss(bn: str) -> None:
    data = batches()
    net = made(NETS["batch norm without scale, GELU, max-pool"](), data)
    op = GaussNewton(net, smoothed, data, bn=bn)
    copied = copy.deepcopy(net)
    copied.part0.training = bn == "batch"
    total = 0
    for x, y in data:
        outputs = copied(x)
        j = torch.stack([
            torch.cat([g.flatten() for g in torch.autograd.grad(o, list(copied.parameters()), retain_graph=True)])
            for o in outputs.flatten()
        ])  # fmt: skip
        h = torch.func.hessian(lambda o, y=y: smoothed(o.view(-1, 3), y))(outputs.detach().flatten())
        total = total + (len(x) / 16) * j.T @ h @ j
    found = dense(op)
    assert distance(found, total) < 1e-9
    assert torch.linalg.eigvalsh(found).min() > -1e-10
    hessian = Hessian(net, smoothed, data, bn=bn)
    assert distance(op.gradient(), hessian.gradient()) < 1e-12
    assert op.loss() == pytest.approx(hessian.loss(), rel=1e-14)


def test_gauss_newton_goes_through_relus_norms_and_biases() -> None:
    data = batches()
    for name in ("ReLU in place after a norm", "max-pool before the norm, residual"):
        net = made(NETS[name](), data)
        op = GaussNewton(net, lambda o, y: (o - y[:, None]).square().sum(1).mean() / 2, data)
        flat, v = weights_of(net), torch.randn(op.shape[0])
        pushed = 0.0
        for x, _ in data:  # v' G v is the mean squared length of J v, here by finite differences
            step = 1e-6
            ahead, behind = (_outputs(net, x, flat + s * step * v) for s in (1, -1))
            pushed += float(((ahead - behind) / (2 * step)).square().sum()) / 16
        assert float(v @ op.matvec(v)) == pytest.approx(pushed, rel=1e-6)


def _outputs(net: nn.Module, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    net = copy.deepcopy(net)
    nn.utils.vector_to_parameters(flat, net.parameters())
    return net(x).detach()


def test_what_memory_keeps_changes_no_product() -> None:
    data = batches(6, 10, 6)
    net = made(NETS["ReLU in place after a norm"](), data)
    v = torch.randn(sum(p.numel() for p in net.parameters()), 3)
    all_kept, none_kept = Hessian(net, smoothed, data, memory=None), Hessian(net, smoothed, data, memory=0)
    expected = all_kept.matmat(v)
    sizes = [graph.nbytes() for graph in all_kept._graphs.values()]
    some = Hessian(net, smoothed, data, memory=sum(sizes[:2]))
    for op in (all_kept, none_kept, some):
        for _ in range(2):
            assert torch.equal(op.matmat(v), expected)
        assert torch.equal(op.matvec(v[:, 1]), expected[:, 1])
    assert [len(op._graphs) for op in (all_kept, none_kept, some)] == [3, 0, 2]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("act", ["relu", "softplus"])
def test_float32_products_are_accurate_in_the_layout_in_which_they_run(act: str, layout: torch.memory_format) -> None:
    torch.set_default_dtype(torch.float32)
    net = Net("plain8", width=4, act=act).build(seed=0)
    x, y = torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    # a mean beside which the spread is small, as real layers have it
    x = x + 3
    exact = Hessian(copy.deepcopy(net).double(), smoothed, [(x.double(), y)])
    op = Hessian(net.to(memory_format=layout), smoothed, [(x.to(memory_format=layout), y)])
    v = torch.randn(op.shape[0])
    assert distance(op.gradient(), exact.gradient()) < 1e-4
    assert distance(op.matvec(v), exact.matvec(v.double())) < 1e-4
    gauss, exactly = (
        GaussNewton(n, smoothed, [(x.to(v), y)]) for n, v in ((net, v), (copy.deepcopy(net).double(), v.double()))
    )
    assert distance(gauss.matvec(v), exactly.matvec(v.double())) < 1e-4


def test_near_ties_are_decided_in_float64() -> None:
    torch.set_default_dtype(torch.float32)
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.fill_(1 / 3)
    # neighbours in float32 whose thirds round to the same number, the larger one second
    steps = torch.full((20,), 3.2)
    for i in range(1, 20):
        steps[i] = torch.nextafter(steps[i - 1], torch.tensor(4.0))
    thirds = steps * net[0].weight.detach().flatten()
    i = int((thirds[1:] == thirds[:-1]).nonzero()[0])
    x = torch.rand(8, 1, 4, 4)
    x[:, :, 0, 0], x[:, :, 0, 1] = steps[i], steps[i + 1]
    y, v = torch.randint(3, (8,)), torch.randn(16)
    for exact_pieces, place in ((True, 1), (False, 0)):
        op = Hessian(net, smoothed, [(x, y)], exact_pieces=exact_pieces)
        op.matvec(v)
        (graph,) = op._graphs.values()
        pooled = next(node for node in nodes(graph.roots) if type(node).__name__ == "_MaxPoolBackward")
        assert (pooled.saved_tensors[1][:, 0, 0, 0] == place).all()


def test_flat_vectors_are_in_logical_order_whatever_the_memory_format() -> None:
    data = batches()
    net = made(NETS["batch norm and softplus"](), data)
    v = torch.randn(sum(p.numel() for p in net.parameters()))
    plain = Hessian(net, smoothed, data)
    expected, gradient = plain.matvec(v), plain.gradient()
    net.to(memory_format=torch.channels_last)
    op = Hessian(net, smoothed, [(x.to(memory_format=torch.channels_last), y) for x, y in data])
    assert distance(op.matvec(v), expected) < 1e-12
    assert distance(op.gradient(), gradient) < 1e-12
    parts = op.split(v)
    assert parts["conv.weight"].shape == (4, 2, 3, 3)
    assert torch.equal(op.flatten(parts), v)
    assert list(parts) == list(op.names)


def test_scipy_sees_the_same_matrix() -> None:
    data = batches(4)
    net = made(NETS["layer norm and one-dimensional norm"](), data)
    op = Hessian(net, smoothed, data, params="5")
    matrix = dense(op).numpy()
    sci = op.to_scipy()
    assert sci.dtype == np.float64
    assert np.allclose(sci @ np.eye(op.shape[0]), matrix, rtol=0, atol=1e-14)
    assert np.allclose(sci @ np.ones(op.shape[0]), matrix.sum(1), rtol=0, atol=1e-13)
    assert np.allclose(sci.T @ np.ones((op.shape[0], 1)), matrix.sum(1)[:, None], rtol=0, atol=1e-13)


class Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.linear = nn.Linear(32, 3), nn.Linear(2, 2), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1)).tanh()


def test_unused_parameters_have_zero_rows() -> None:
    data, net = batches(5), Partly()
    for op in (Hessian(net, smoothed, data), GaussNewton(net, smoothed, data)):
        product = op.split(op.matvec(torch.randn(op.shape[0])))
        assert {name for name, part in product.items() if not part.any()} == {"unused.weight", "unused.bias", "linear"}
    for kind in (Hessian, GaussNewton):
        assert not kind(net, smoothed, data, params="unused").matvec(torch.ones(6)).any()
        assert not kind(net, smoothed, data, params="unused").gradient().any()


def test_attention_has_a_second_derivative() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1, 2)
            return self.out(F.scaled_dot_product_attention(self.q(x), x, x).mean(1))

    data, net = batches(4), Attends()
    op = Hessian(net, smoothed, data)
    flat, v = weights_of(net), torch.randn(op.shape[0])
    ahead, behind = (twin_gradient(net, smoothed, data, "batch", flat + s * 1e-6 * v, False) for s in (1, -1))
    assert distance(op.matvec(v), (ahead - behind) / 2e-6) < 1e-6


# what is left behind


def state(net: nn.Module) -> list[Any]:
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    return [
        *(bits(t.detach()).clone() for t in tensors),
        *(t._version for t in tensors),
        *(p.requires_grad for p in net.parameters()),
        *(m.training for m in net.modules()),
        *(len(m._forward_hooks) for m in net.modules()),
        torch.get_rng_state(),
        torch.tensor(np.random.get_state()[1].astype(np.int64)),
        np.random.get_state()[2],
        random.getstate(),
    ]


def assert_same_state(before: list[Any], after: list[Any]) -> None:
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("from the net")


@pytest.mark.parametrize("last", [nn.Identity, lambda: nn.Dropout(0.5), Raises], ids=["well", "dropout", "raises"])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_the_net_and_the_random_states_are_left_as_found(bn: str, kind: Any, last: Callable[[], nn.Module]) -> None:
    data = batches(8)
    net = made(conv_net(nn.BatchNorm2d(4), nn.ReLU(inplace=True), GhostNorm(4, 2)), data)
    net.add_module("last", last())
    net.part2.eval()
    net.conv.requires_grad_(False)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = state(net)
    op = kind(net, smoothed, data, bn=bn)
    try:
        op.matmat(torch.randn(op.shape[0], 2, generator=torch.Generator().manual_seed(0)))
        op.gradient()
    except (DynamicsError, KeyError):
        assert last is not nn.Identity
    else:
        assert last is nn.Identity
    assert_same_state(before, state(net))


def test_the_operator_stays_at_the_weights_of_its_making() -> None:
    data = batches(6)
    net = made(NETS["batch norm and softplus"](), data)
    op, v = Hessian(net, smoothed, data, memory=0), torch.randn(sum(p.numel() for p in net.parameters()))
    before = op.matvec(v)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    assert torch.equal(op.matvec(v), before)
    assert distance(Hessian(net, smoothed, data).matvec(v), before) > 0.1


# bad input


class Augment(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(random.randrange(1000), 3) + torch.from_numpy(np.random.randn(*x.shape))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


class Calls(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def product(net: nn.Module, data: Batches, loss: Any = smoothed, kind: Any = Hessian, **arguments: Any) -> torch.Tensor:
    op = kind(net, loss, data, **arguments)
    return op.matvec(torch.ones(op.shape[0]))


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda: [nn.Dropout(0.3)], r"first after 'part0' \(Dropout\).*net.get_submodule\('part0'\).eval\(\)"),
        (lambda: [nn.ReLU(), Augment(), nn.Dropout()], r"first after 'part1' \(Augment\)"),
        (lambda: [nn.BatchNorm2d(4), Calls(lambda x: x / 0)], r"the loss of batch 0 .*'part1' \(Calls\) is the first"),
        (lambda: [Calls(Once.apply)], r"^Once has no second derivative"),
        (lambda: [Calls(lambda x: (0 * x).sqrt())], r"the gradient of batch 0 .* rows of 'conv.weight'.*roots of 0"),
    ],
    ids=["dropout", "augmentation", "infinite", "once", "root"],
)
def test_a_bad_layer_is_named(between: Any, message: str, kind: Any) -> None:
    net, data = conv_net(*between()), batches(4)
    net.train()(data[0][0])
    with pytest.raises(DynamicsError, match=message) as error:
        product(net, data, kind=kind)
    assert "\n" not in str(error.value)


class Sometimes(nn.Module):
    """A block that is skipped in one of four passes, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training and torch.rand(()) < 0.25 else x + self.conv(x).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_blocks_that_are_skipped_at_random_are_named_even_where_draws_agree(kind: Any, dtype: torch.dtype) -> None:
    data = [(x.to(dtype), y) for x, y in batches(4)]
    for _ in range(4):
        net = conv_net(nn.ReLU(), Sometimes()).train()
        net(batches(4)[0][0])
        net.to(dtype)
        with pytest.raises(DynamicsError, match=r"'part1' \(Sometimes\).*eval"):
            product(net, data, kind=kind)
    net.eval()
    assert product(net, data, kind=kind).isfinite().all()


def test_a_net_that_draws_and_does_not_use_what_it_draws_is_accepted() -> None:
    net = conv_net(Calls(lambda x: x + 0 * torch.rand(())))
    net(batches(4)[0][0])
    assert product(net, batches(4)).isfinite().all()


def test_an_operation_without_second_derivative_is_named() -> None:
    apart = Calls(lambda x: torch.cdist(x, x))
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), apart, nn.Linear(4, 3))
    with pytest.raises(DynamicsError, match=r"^_cdist_backward has no second derivative"):
        product(net, batches(4))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: F.cross_entropy(o, y, reduction="none"), r"of shape \[4\]: .*mean"),
        (lambda o, y: 1.0, "a float"),
        (lambda o, y: smoothed(o, y).detach(), "depends on no parameter"),
        (lambda o, y: smoothed(o, y) * torch.nan, "though all outputs are: look for a logarithm"),
        (lambda o, y: smoothed(o, y) * torch.rand(()), "give a loss that draws nothing"),
    ],
)
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_a_bad_loss_is_told_what_to_do(loss: Any, message: str, kind: Any) -> None:
    net, data = NETS["batch norm and softplus"](), batches(4)
    net(data[0][0])
    with pytest.raises(DynamicsError, match=message) as error:
        product(net, data, loss, kind)
    assert "\n" not in str(error.value)


def test_bad_arguments_are_told_what_to_do() -> None:
    data = batches(4)
    net = made(NETS["batch norm and softplus"](), data)
    x, y = data[0]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("unknown bn mode 'eval'", dict(bn="eval")),
        ("unknown parameter 'con.weight': did you mean 'conv.weight'", dict(params="con.weight")),
        ("no parameters are chosen", dict(params=[])),
        ("no parameters are chosen", dict(params=lambda name, p: False)),
        ("no batches", dict(batches=[])),
        (r"write \[\(x, y\)\]", dict(batches=(x, y))),
        ("batch 1 is not a pair", dict(batches=[(x, y), x])),
        ("batch 0 has no images", dict(batches=[(x[:0], y[:0])])),
        ("batch 0 has 4 images and 3 targets", dict(batches=[(x, y[:3])])),
        ("batch 0 is on meta and the parameters on cpu", dict(batches=[(x.to("meta"), y)])),
        ("batch 0 is torch.float32 and the parameters torch.float64", dict(batches=[(x.float(), y)])),
        ("batches have their own statistics", dict(statistics={})),
        ("unknown buffer 'part0.mean'", dict(bn="frozen", statistics={"part0.mean": torch.ones(4)})),
        ("must be of shape", dict(bn="frozen", statistics={"part0.running_mean": torch.ones(3)})),
        ("take a larger batch", dict(batches=[(torch.randn(1, 2, 1, 1), y[:1])], net=_one_pixel())),
        ("batch 0 is not finite: its images", dict(batches=[(x / 0, y)])),
        ("several dtypes", dict(net=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).float()))),
        ("net.float\\(\\) or net.double", dict(net=nn.Linear(2, 2).half())),
        ("has no running statistics", dict(net=_one_pixel(track_running_stats=False), bn="frozen")),
        ("run a batch through it first", dict(net=conv_net())),
    ]
    for message, changes in wrong:
        arguments = {"net": net, "batches": data, **changes}
        with pytest.raises(DynamicsError, match=message) as error:
            product(arguments.pop("net"), arguments.pop("batches"), **arguments)
        assert "\n" not in str(error.value)
    with torch.no_grad():
        net.part0.weight[0] = torch.inf
    with pytest.raises(DynamicsError, match=r"'part0.weight' has entries that are not"):
        product(net, data)


def _one_pixel(**norm: Any) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(2, **norm), nn.Flatten(), nn.Linear(2, 3))


def test_bad_vectors_are_told_what_fits() -> None:
    data = batches(4)
    net = made(NETS["batch norm and softplus"](), data)
    op = Hessian(net, smoothed, data, params="out.bias")
    for call in (lambda: op.matvec(torch.ones(4)), lambda: op.split(torch.ones(2)), lambda: op.matmat(torch.ones(3))):
        with pytest.raises(DynamicsError, match=r"\[3"):
            call()
    with pytest.raises(DynamicsError, match=r"not finite"):
        op.matvec(torch.tensor([1.0, torch.nan, 0]))
    with pytest.raises(DynamicsError, match=r"'out.bias'"):
        op.flatten({"out.bias": torch.ones(4)})
