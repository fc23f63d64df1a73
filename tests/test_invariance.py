"""The table of scale invariance: what it says of each kind of norm, against finite differences, and its manners."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import bits
from torch import nn
from torch.nn.utils import parametrizations

from dynamics.errors import DynamicsError
from dynamics.invariance import Invariance, TensorInvariance, invariance
from dynamics.nets import Net

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(n: int = 8, side: int = 16, classes: int = 10) -> Batch:
    return torch.randn(n, 3, side, side), torch.arange(n) % classes


def vectors(n: int = 16, width: int = 12, classes: int = 5) -> Batch:
    return torch.randn(n, width), torch.arange(n) % classes


def tokens(n: int = 4, length: int = 9) -> Batch:
    """Every one of the 11 is seen, so that none has no gradient."""
    return (torch.randperm(n * length) % 11).reshape(n, length), torch.randint(11, (n, length))


def next_token(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def per(table: Invariance) -> dict[str, str]:
    return {row.name: row.per for row in table}


def conv_net(*between: nn.Module, bias: bool = False) -> nn.Sequential:
    """One convolution of 8 filters on `images(side=8)`, what follows it, and a classifier."""
    parts = {"conv": nn.Conv2d(3, 8, 3, bias=bias), **{f"part{i}": m for i, m in enumerate(between)}}
    return nn.Sequential(
        OrderedDict(parts, act=nn.Softplus(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), out=nn.Linear(8, 10))
    )


class Attention(nn.Module):
    """A causal block of 2 heads of 4 with a norm on queries and keys, from one fused weight or three."""

    def __init__(self, *, fused: bool, norm: Callable[[int], nn.Module], bias: bool = False) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.names = ("qkv",) if fused else ("q", "k", "v")
        for name in self.names:
            self.add_module(name, nn.Linear(8, 24 if fused else 8, bias=bias))
        self.norms = nn.ModuleList([norm(4), norm(4)])
        self.out, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 11, bias=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        x = self.tokens(t)
        parts = torch.cat([getattr(self, name)(self.norm(x)) for name in self.names], dim=-1).chunk(3, dim=-1)
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(self.norms[0](q), self.norms[1](k), v, is_causal=True)
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


# what the table says of each kind of norm


@pytest.mark.parametrize("order", ["norm-act-pool", "norm-pool-act", "pool-norm-act"])
def test_every_convolution_that_a_batch_norm_follows_is_invariant_per_filter(order: str) -> None:
    table = invariance(Net("resnet9", width=2, order=order).build(), F.cross_entropy, images())
    convs = tuple(row.name for row in table if "conv" in row.name)
    assert len(convs) == 8 and table.invariant == convs
    for row in table:
        assert row.per == ("filter" if row.name in convs else "none")
        assert row.layer == row.name.removesuffix(".weight")
        if row.name in convs:
            assert row.block == 1 and row.mask.all() and row.no_gradient == 0 and row.covered == 1.0
            assert 0 < row.cosine < 1e-3 and row.loss_change < 1e-3 and row.gradient_change < 0.05


def test_the_cosine_is_that_of_eps_and_goes_to_rounding_without_it() -> None:
    batch = images()
    tables = [invariance(Net("resnet9", width=2, eps=eps).build(), F.cross_entropy, batch) for eps in (1e-5, 1e-14)]
    worst = [max(row.cosine for row in table if row.block) for table in tables]
    assert 1e-7 < worst[0] < 1e-3 and worst[1] < 1e-10


@pytest.mark.parametrize("norm", ["frozen", "none"])
def test_nothing_is_invariant_without_a_norm_that_normalises(norm: str) -> None:
    table = invariance(Net("resnet9", width=4, norm=norm).build(), F.cross_entropy, images())
    assert set(per(table).values()) == {"none"} and table.invariant == ()
    assert all(not row.mask.any() and row.gradient_change > 0.05 for row in table)


def test_batch_norm_in_evaluation_mode_does_not_normalise_and_the_table_says_so() -> None:
    table = invariance(Net("resnet9", width=2).build().eval(), F.cross_entropy, images())
    assert table.invariant == () and not table.training
    assert "net.train()" in str(table)


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ((nn.ReLU(), nn.BatchNorm2d(8)), "filter"),  # ReLU(a x) = a ReLU(x), so a norm after it still forgets a
        ((nn.GELU(), nn.BatchNorm2d(8)), "none"),
        ((nn.BatchNorm2d(8), nn.GELU()), "filter"),
        ((nn.InstanceNorm2d(8),), "filter"),
        ((nn.GroupNorm(8, 8),), "filter"),
        ((nn.GroupNorm(4, 8),), "block of 2"),
        ((nn.GroupNorm(2, 8),), "block of 4"),
        ((nn.GroupNorm(1, 8),), "tensor"),
        ((nn.LayerNorm((8, 6, 6), elementwise_affine=False),), "tensor"),
    ],
    ids=str,
)
def test_the_norm_after_a_convolution_decides_what_is_invariant(between: tuple[nn.Module, ...], expected: str) -> None:
    table = invariance(conv_net(*between), F.cross_entropy, images(side=8))
    assert per(table) == {"conv.weight": expected, "out.weight": "none"}
    assert table["conv"].mask.all() == (expected != "none")


def test_a_bias_before_batch_norm_changes_nothing_and_one_before_group_norm_belongs_to_the_block() -> None:
    batch = images(side=8)
    assert invariance(conv_net(nn.BatchNorm2d(8), bias=True), F.cross_entropy, batch)["conv"].per == "filter"
    row = invariance(conv_net(nn.GroupNorm(4, 8), bias=True), F.cross_entropy, batch)["conv"]
    assert row.per == "block of 2, with its bias" and row.with_bias and row.invariant


@pytest.mark.parametrize("start", ["drawn", "zero"])
def test_a_matrix_before_layer_norm_is_invariant_with_its_bias_also_where_that_is_zero(start: str) -> None:
    net = nn.Sequential(
        nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.LayerNorm(16), nn.GELU(),
        nn.Linear(16, 5),
    )  # fmt: skip
    if start == "zero":
        nn.init.zeros_(net[0].bias)
    table = invariance(net, F.cross_entropy, vectors())
    assert per(table) == {"0.weight": "tensor, with its bias", "3.weight": "tensor", "6.weight": "none"}
    assert table.invariant == ("0.weight", "3.weight")
    if start == "drawn":
        assert abs(table["0"].whole) > 1e-3 > table["0"].cosine, "alone the matrix is not invariant"


def test_weight_norm_frees_directions_per_filter_and_spectral_norm_the_tensor() -> None:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(12, 16)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip
    assert per(invariance(net, F.cross_entropy, vectors())) == {
        "0.parametrizations.weight.original0": "none",
        "0.parametrizations.weight.original1": "filter",
        "2.parametrizations.weight.original": "tensor",
        "4.weight": "none",
    }


def test_the_weight_norm_of_old_works_too_after_a_forward_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(12, 5)))
    batch = vectors()
    net(batch[0])  # leaves the weight, which is not a leaf, on the module
    assert per(invariance(net, F.cross_entropy, batch)) == {"0.weight_g": "none", "0.weight_v": "filter"}


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm], ids=["rms", "layer"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_query_and_key_projections_are_invariant_per_head(norm: Callable[[int], nn.Module], bias: bool) -> None:
    table = invariance(Attention(fused=False, norm=norm, bias=bias), next_token, tokens())
    joint = ", with its bias" if bias else ""
    assert {r.layer: r.per for r in table} == {
        "tokens": "none", "q": f"block of 4{joint}", "k": f"block of 4{joint}", "v": "none", "out": "none",
        "head": "none",
    }  # fmt: skip
    assert table.invariant == ("q.weight", "k.weight")


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_of_a_fused_projection_the_rows_of_queries_and_keys_are_invariant(bias: bool) -> None:
    table = invariance(Attention(fused=True, norm=nn.RMSNorm, bias=bias), next_token, tokens())
    row = table["qkv"]
    assert row.per == "block of 4" + bias * ", with its bias"
    assert row.mask.tolist() == [True] * 16 + [False] * 8 and row.covered == pytest.approx(2 / 3)
    assert table.invariant == (), "a third of its rows are not invariant"


def test_attention_without_query_key_norm_has_no_invariant_weight() -> None:
    table = invariance(Attention(fused=False, norm=lambda width: nn.Identity()), next_token, tokens())
    assert set(per(table).values()) == {"none"}


def test_rows_of_an_embedding_before_a_norm_are_invariant_and_tokens_that_are_not_seen_have_no_gradient() -> None:
    net = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11))
    x = torch.tensor([[0, 1, 2, 5]])
    row = invariance(net, next_token, (x, x))["0"]
    assert row.per == "filter" and row.invariant and row.no_gradient == 7
    assert row.mask.nonzero().flatten().tolist() == [0, 1, 2, 5]


# unused, dead and tied tensors


def test_a_tensor_that_the_loss_does_not_use_is_said_to_be_unused() -> None:
    net = Attention(fused=False, norm=nn.RMSNorm)
    net.spare = nn.Linear(3, 2)
    table = invariance(net, next_token, tokens())
    row = table["spare"]
    assert (row.per, row.note, row.no_gradient) == ("none", "unused", 2) and "none (unused)" in str(table)
    assert (row.cosine, row.whole, row.loss_change, row.gradient_change) == (None,) * 4


def test_dead_filters_are_counted_apart_and_do_not_decide() -> None:
    batch = images(side=8)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        norm.weight[:3] = 0  # no gradient comes back through these channels
    row = invariance(conv_net(norm), F.cross_entropy, batch)["conv"]
    assert row.per == "filter" and row.no_gradient == 3 and row.invariant
    assert row.mask.tolist() == [False] * 3 + [True] * 5
    plain = conv_net()
    with torch.no_grad():
        plain.conv.weight[2:] = 0  # six of eight pass trivially; the two that live do not
    row = invariance(plain, F.cross_entropy, batch)["conv"]
    assert row.per == "none" and row.no_gradient == 6 and not row.mask.any()


def test_a_tensor_whose_every_filter_is_dead_is_not_called_invariant() -> None:
    net = conv_net(nn.BatchNorm2d(8))
    nn.init.zeros_(net.part0.weight)
    row = invariance(net, F.cross_entropy, images(side=8))["conv"]
    assert (row.per, row.note, row.invariant) == ("none", "no gradient", False)


def test_tied_weights_are_one_row_that_is_tested_in_both_places() -> None:
    net = nn.Sequential(
        OrderedDict(tokens=nn.Embedding(11, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 11, bias=False))
    )
    assert invariance(net, next_token, tokens())["tokens"].per == "filter"
    net.head.weight = net.tokens.weight
    table = invariance(net, next_token, tokens())
    assert per(table) == {"tokens.weight": "none"}
    assert table["head.weight"] is table["tokens"] and table["tokens"].tied == ("head.weight",)
    assert "tokens.weight is also head.weight" in str(table)


# two tests, since one can be fooled


def at_its_best_scale(batch: Batch) -> nn.Linear:
    """A matrix of one row at the scale of least squared error, so that ⟨w,g⟩ = 0 and nothing is invariant."""
    net = nn.Linear(12, 1, bias=False)
    with torch.no_grad():
        out = net.double()(batch[0])
        net.weight *= (out * batch[1]).sum() / out.square().sum()
    return net


def test_a_cosine_that_is_zero_by_luck_does_not_pass_the_rescaling() -> None:
    batch = torch.randn(16, 12).double(), torch.randn(16, 1).double()
    row = invariance(at_its_best_scale(batch), F.mse_loss, batch)["weight"]
    assert abs(row.whole) < 1e-12 and row.loss_change > 1e-3 and row.per == "none"


def test_a_loss_that_hardly_feels_a_tensor_does_not_pass_for_one_that_is_invariant_to_it() -> None:
    batch = torch.randn(16, 12).double(), torch.randn(16, 1).double()
    row = invariance(at_its_best_scale(batch), lambda out, y: 1.0 + 1e-6 * F.mse_loss(out, y), batch)["weight"]
    assert abs(row.whole) < 1e-9 and row.loss_change < 1e-5, "both would pass: only the gradient tells"
    assert row.gradient_change > 0.2 and row.per == "none"


def test_tolerance_decides_how_much_eps_may_weigh() -> None:
    batch, net = images(side=8), conv_net(nn.BatchNorm2d(8, eps=1e-4))
    row = invariance(net, F.cross_entropy, batch)["conv"]
    assert row.per == "filter" and row.cosine > 1e-7
    assert invariance(net, F.cross_entropy, batch, tolerance=1e-10)["conv"].per == "none"


def test_filters_whose_variance_is_near_eps_fail_one_by_one() -> None:
    net = conv_net(nn.BatchNorm2d(8))
    with torch.no_grad():
        net.conv.weight[:3] *= 1e-3 / net.conv.weight[:3].flatten(1).norm(dim=1)[:, None, None, None]
    row = invariance(net, F.cross_entropy, images(side=8))["conv"]
    assert row.per == "filter" and row.mask.tolist() == [False] * 3 + [True] * 5
    assert not row.invariant and row.covered == pytest.approx(5 / 8)


def test_a_filter_that_fails_by_eps_is_not_lumped_with_others_until_it_passes() -> None:
    net, batch = conv_net(nn.BatchNorm2d(8, eps=1e-4)).double(), images(side=8)
    batch = batch[0].double(), batch[1]
    with torch.no_grad():
        net.conv.weight[0] *= 0.2
    F.cross_entropy(net(batch[0]), batch[1]).backward()
    w, g = net.conv.weight.detach().flatten(1), net.conv.weight.grad.flatten(1)
    cosines = (torch.linalg.vecdot(w, g) / (w.norm(dim=1) * g.norm(dim=1))).abs()
    tolerance = 0.7 * float(cosines[0])
    assert cosines[1:].max() < tolerance and abs((w * g).sum() / (w.norm() * g.norm())) < tolerance
    row = invariance(net, F.cross_entropy, batch, tolerance=tolerance)["conv"]
    assert row.per == "filter" and row.mask.tolist() == [False] + [True] * 7


class Halves(nn.Module):
    """The first four filters are normalised together; of the other four, which are not, the sum is added."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 12, dtype=torch.float64))
        self.mix = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x @ self.weight.T
        return F.layer_norm(z[:, :4], (4,)) @ self.mix + z[:, 4:].sum(1)


def test_a_block_with_a_lucky_cosine_does_not_take_the_invariant_ones_down_with_it() -> None:
    net, (x, y) = Halves(), (torch.randn(16, 12).double(), torch.randn(16).double())
    with torch.no_grad():
        both, second = net(x), (x @ net.weight[4:].T).sum(1)
        net.weight[4:] *= ((y - both + second) * second).sum() / second.square().sum()  # its best scale
    row = invariance(net, F.mse_loss, (x, y))["weight"]
    assert row.per == "block of 4" and row.mask.tolist() == [True] * 4 + [False] * 4


class Detached(nn.Module):
    """Its second output feels the scale of the weight, but no gradient says so."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 12))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.layer_norm(x @ self.weight.T, (6,)), self.weight.norm().detach()


def test_a_dependence_that_is_hidden_from_the_gradient_shows_in_the_loss() -> None:
    batch = torch.randn(16, 12), torch.randn(16, 6)
    row = invariance(Detached(), lambda out, y: F.mse_loss(out[0], y), batch)["weight"]
    assert row.per == "tensor"
    row = invariance(Detached(), lambda out, y: F.mse_loss(out[0], y) + 0.1 * out[1], batch)["weight"]
    assert row.per == "none" and abs(row.whole) < 1e-3 and row.gradient_change < 1e-3 and row.loss_change > 1e-3


def test_few_evaluations_do_where_the_cosines_leave_little_in_question() -> None:
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets)

    table = invariance(Net("resnet9", width=2).build(), loss, images())
    assert calls <= 2 * len(table), "two for all, then one for each tensor that is invariant per filter"
    calls = 0
    net = nn.Sequential(nn.Linear(12, 720), nn.Tanh(), nn.Linear(720, 5))
    assert set(per(invariance(net, loss, vectors())).values()) == {"none"}
    assert calls <= 20, "a few filters of many have a small cosine by luck, and are not worth a try at every size"


# the brute-force twin


def slopes(net: nn.Module, loss: Loss, batch: Batch, names: tuple[str, ...], size: int, at: float) -> torch.Tensor:
    """dL/dlog a of every block of `size` rows scaled by a alone, at a = `at`: central differences, float64."""
    net = deepcopy(net).double()
    x, y = (t.double() if t.is_floating_point() else t for t in batch)
    params = [dict(net.named_parameters())[name] for name in names]
    whole = [p.detach().clone() for p in params]
    out = []
    for start in range(0, len(whole[0]), size):
        rows, values = slice(start, start + size), []
        for a in (at * (1 + 1e-4), at * (1 - 1e-4)):
            with torch.no_grad():
                for p, w in zip(params, whole, strict=True):
                    p.copy_(w)
                    p[rows] *= a
                values.append(loss(net(x), y).item())
        for p, w in zip(params, whole, strict=True):
            p.data.copy_(w)
        out.append((values[0] - values[1]) / 2e-4)
    return torch.tensor(out, dtype=torch.float64)


def twin(net: nn.Module, loss: Loss, batch: Batch, names: tuple[str, ...]) -> tuple[int, list[bool]]:
    """The finest block size that covers the most rows, and the rows, from the loss alone: every block by itself, at
    three scales, its slope small beside the largest of any single row."""
    rows = len(dict(net.named_parameters())[names[0]])
    largest = slopes(net, loss, batch, names, 1, 1.0).abs().max().item()
    best: tuple[int, list[bool]] = (0, [False] * rows)
    for size in (s for s in range(1, rows + 1) if rows % s == 0):
        worst = torch.stack([slopes(net, loss, batch, names, size, a).abs() for a in (0.6, 1.0, 1.7)]).amax(0)
        scale = LARGEST if largest < 1e-4 else largest
        mask = (worst < 2e-3 * scale).repeat_interleave(size).tolist()
        if sum(mask) > sum(best[1]):
            best = size, mask
    return best


LARGEST = 1e-2
"""What a slope is compared with where no row has one: in these nets a row that the loss feels has more."""

TWINS: dict[str, tuple[Callable[[], nn.Module], Loss, Callable[[], Batch]]] = {
    "batch norm": (lambda: conv_net(nn.BatchNorm2d(8)), F.cross_entropy, lambda: images(side=8)),
    "group norm": (lambda: conv_net(nn.GroupNorm(4, 8), bias=True), F.cross_entropy, lambda: images(side=8)),
    "no norm": (lambda: conv_net(bias=True), F.cross_entropy, lambda: images(side=8)),
    "separate": (lambda: Attention(fused=False, norm=nn.LayerNorm), next_token, tokens),
    "fused": (lambda: Attention(fused=True, norm=nn.RMSNorm, bias=True), next_token, tokens),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(12, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5)), F.cross_entropy, vectors,
    ),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 5))), F.cross_entropy, vectors),
}  # fmt: skip


@pytest.mark.parametrize("kind", TWINS)
def test_the_table_equals_finite_differences_of_the_loss_along_every_block(kind: str) -> None:
    make, loss, draw = TWINS[kind]
    net, batch = make(), draw()
    for row in invariance(net, loss, batch):
        names = (row.name, row.name.replace("weight", "bias")) if row.with_bias else (row.name,)
        assert twin(net, loss, batch, names) == (row.block, row.mask.tolist()), row.name


def test_the_cosine_of_the_tensor_is_the_slope_of_the_loss_along_its_scale() -> None:
    net, batch = conv_net(bias=True), images(side=8)
    table = invariance(net, F.cross_entropy, batch)
    exact = deepcopy(net).double()
    F.cross_entropy(exact(batch[0].double()), batch[1]).backward()
    for name, p in exact.named_parameters():
        if p.ndim >= 2:
            slope = slopes(net, F.cross_entropy, batch, (name,), len(p), 1.0).item()
            assert table[name].whole == pytest.approx(slope / (p.norm() * p.grad.norm()).item(), rel=1e-5)


# manners


def state_of(net: nn.Module, batch: Batch) -> list[Any]:
    named = [*net.named_parameters(), *net.named_buffers()]
    return [
        [(k, t.data_ptr(), bits(t.detach()).tolist(), t.requires_grad) for k, t in named],
        [None if t.grad is None else bits(t.grad).tolist() for _, t in named],
        [m.training for m in net.modules()],
        [bits(t).tolist() for t in batch],
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("end", ["returns", "raises"])
def test_the_callers_net_batch_and_random_state_stay_bit_for_bit(end: str) -> None:
    net = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(144, 10),
    ).double()  # fmt: skip
    x, y = images(side=8)
    batch = x.double(), y
    F.cross_entropy(net(batch[0].clone()), batch[1]).backward()
    net[1].weight.requires_grad_(False)
    net[4].eval()
    before = state_of(net, batch)
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if end == "raises" and calls == 4:
            raise KeyError("a bug of the caller's")
        return F.cross_entropy(outputs, targets)

    if end == "raises":
        with pytest.raises(KeyError, match="bug of the caller"):
            invariance(net, loss, batch)
    else:
        assert per(invariance(net, loss, batch)) == {"1.weight": "filter", "6.weight": "none"}
    assert state_of(net, batch) == before


def test_dropout_is_the_same_in_every_evaluation_and_a_seed_fixes_the_table() -> None:
    net, batch = conv_net(nn.BatchNorm2d(8), nn.Dropout(0.5)), images(side=8)
    first, again, other = (invariance(net, F.cross_entropy, batch, seed=s) for s in (1, 1, 2))
    assert per(first) == per(other) == {"conv.weight": "filter", "out.weight": "none"}
    assert first.to_json() == again.to_json() and first.loss != other.loss


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off_and_when_weights_are_frozen(context: Callable[[], Any]) -> None:
    net, batch = conv_net(nn.BatchNorm2d(8)).requires_grad_(False), images(side=8)
    with context():
        assert invariance(net, F.cross_entropy, batch)["conv"].per == "filter"


def test_a_loss_module_with_weights_of_its_own_and_constants_in_the_net_follow_into_float64() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_net(nn.BatchNorm2d(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) @ torch.eye(10)

    table = invariance(Shifted(), nn.CrossEntropyLoss(weight=torch.rand(10)), images(side=8))
    assert table["inner.conv"].per == "filter"


def test_the_table_survives_json() -> None:
    net = Attention(fused=True, norm=nn.RMSNorm)
    net.spare = nn.Linear(2, 2)
    table = invariance(net, next_token, tokens())
    again = Invariance.from_json(json.loads(json.dumps(table.to_json(), allow_nan=False)))
    assert again.to_json() == table.to_json() and str(again) == str(table) and again.invariant == table.invariant
    assert torch.equal(again["qkv"].mask, table["qkv"].mask)
    assert table["qkv"].to_json()["mask"] == [[0, 16]]
    with pytest.raises(DynamicsError, match="not a table of invariance"):
        Invariance.from_json({"rows": []})


@pytest.mark.parametrize("mask", [[1, 0, 0, 1, 1], [0, 0], [1, 1, 1], [0, 1, 0]])
def test_any_mask_survives_as_ranges(mask: list[int]) -> None:
    kept = torch.tensor(mask, dtype=torch.bool)
    row = TensorInvariance("a.weight", "a", len(mask), "filter", 1, kept, 0, 0.5, 1e-5, 0.0, 1e-6, 1e-4)
    assert torch.equal(TensorInvariance.from_json(row.to_json()).mask, kept)


def test_the_table_prints_within_120_columns() -> None:
    row = TensorInvariance(
        "transformer.layers.11.attention.projection.in_proj_weight", "x", 50304, "block of 1024, with its bias", 1024,
        torch.ones(50304, dtype=torch.bool), 12345, 1.0, -1.2345e-10, -0.00012345, 1.2345e-10, 1.2345e-10,
        tied=tuple(f"module{i}.weight" for i in range(20)),
    )  # fmt: skip
    table = Invariance((row, row), 2.3, False, 1e-3, 0)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 120 and "50304/50304" in lines[1] and "in_proj_weight" in lines[1]
    page = table._repr_html_()
    assert page.count("<tr>") == 3 and "transformer.layers.11" in page and "max |cos|" in page


def test_a_row_is_found_by_parameter_or_layer_and_an_unknown_name_names_the_nearest() -> None:
    table = invariance(conv_net(nn.BatchNorm2d(8)), F.cross_entropy, images(side=8))
    assert table["conv"] is table["conv.weight"] and len(table) == 2
    with pytest.raises(DynamicsError, match=r"did you mean 'conv\.weight'"):
        table["conv.wieght"]


# bad input


def refused(match: str, *arguments: Any, **named: Any) -> None:
    with pytest.raises(DynamicsError, match=match) as caught:
        invariance(*arguments, **named)
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused_in_one_line() -> None:
    net, batch = conv_net(), images(side=8)
    x, y = batch
    refused("no parameters", nn.Flatten(), F.cross_entropy, batch)
    refused("pair", net, F.cross_entropy, x)
    refused("batch is on meta, net on cpu", net, F.cross_entropy, (x, y.to("meta")))
    refused(r"scalar.*shape \(8,\)", net, lambda out, t: F.cross_entropy(out, t, reduction="none"), batch)
    refused("scalar.*float", net, lambda out, t: 1.0, batch)
    refused("the loss is nan", net, lambda out, t: out.mean() * float("nan"), batch)
    refused("the loss is inf", net, lambda out, t: out.mean() + float("inf"), batch)
    refused("does not depend", net, lambda out, t: out.detach().mean(), batch)
    refused("float64", net, lambda out, t: (out @ torch.ones(10, 2, dtype=torch.float32)).mean(), batch)
    refused("tolerance", net, F.cross_entropy, batch, tolerance=0.0)


def test_a_loss_that_no_seed_fixes_is_refused() -> None:
    draws = torch.Generator().manual_seed(0)
    refused(
        "two evaluations", conv_net(), lambda out, t: (out * torch.rand(10, generator=draws)).mean(), images(side=8)
    )


def test_a_bug_of_the_callers_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match=r"size|shape") as caught:
        invariance(nn.Linear(3, 2), F.mse_loss, (torch.randn(4, 5), torch.randn(4, 2)))
    assert not isinstance(caught.value, DynamicsError)
