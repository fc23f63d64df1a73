from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, dropout_net
from torch import nn

from dynamics.curvature.moments import (
    MOMENTS,
    MomentSubspaces,
    by_layer,
    largest_gap,
    moment_shares,
    moment_subspaces,
    output_moments,
    perturb,
    perturbed_outputs,
)
from dynamics.errors import DynamicsError
from dynamics.nets import Scale, plain8

CLASSES = 3


def toy_net(*, dtype: torch.dtype = torch.float64, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Softplus(10),
            nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5) if norm else nn.Identity(), nn.GELU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES), Scale(0.5),
        ).to(dtype)  # fmt: skip
        for m in net:
            if isinstance(m, nn.BatchNorm2d):  # running statistics that are not those of the batches
                m.running_mean.uniform_(-0.5, 0.5)
                m.running_var.uniform_(0.5, 2)
    return net


def toy_batches(sizes: tuple[int, ...] = (7, 4), dtype: torch.dtype = torch.float64) -> list:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, generator=draws, dtype=dtype), torch.randint(CLASSES, (n,), generator=draws))
        for n in sizes
    ]


def vector_of(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def shifted(net: nn.Module, direction: torch.Tensor, length: float) -> nn.Module:
    """A copy moved along a flat direction, parameter by parameter."""
    net, at = copy.deepcopy(net), 0
    with torch.no_grad():
        for p in net.parameters():
            p += length * direction[at : at + p.numel()].view(p.shape)
            at += p.numel()
    return net


def slow_moments(net: nn.Module, batches: list, bn: str) -> np.ndarray:
    """[3, C], number by number."""
    net = copy.deepcopy(net).train(bn == "batch")
    total = sum(len(x) for x, _ in batches)
    found = np.zeros((3, CLASSES))
    for x, _ in batches:
        outputs = net(x).detach().numpy()
        for c in range(CLASSES):
            values = outputs[:, c].tolist()
            mean = math.fsum(values) / len(values)
            variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
            third = math.fsum((v - mean) ** 3 for v in values) / len(values)
            found[:, c] += np.array([mean, variance, third]) * len(x) / total
    return found


def directions(net: nn.Module, k: int = 3) -> torch.Tensor:
    n = len(vector_of(net))
    drawn = torch.randn(n, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return drawn / drawn.norm(dim=0)


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_gradients_of_moments_agree_with_finite_differences_along_random_directions(bn):
    net, batches = toy_net(), toy_batches()
    found = output_moments(net, batches, bn=bn, progress=False)
    assert np.allclose(found.values.numpy(), slow_moments(net, batches, bn), rtol=1e-12, atol=1e-14)
    for v in directions(net).T:
        ahead, behind = (slow_moments(shifted(net, v, s * 1e-5), batches, bn) for s in (1, -1))
        slow = (ahead - behind) / 2e-5
        fast = np.stack([(getattr(found, name).T @ v).numpy() for name in MOMENTS])
        assert np.abs(fast - slow).max() < 1e-8 * np.abs(slow).max()


def test_batch_and_frozen_statistics_give_other_gradients():
    net, batches = toy_net(), toy_batches()
    batch, frozen = (output_moments(net, batches, bn=bn, progress=False).means for bn in ("batch", "frozen"))
    assert (batch - frozen).norm() > 0.1 * frozen.norm()


def test_the_batch_is_the_unit_and_counts_by_its_size():
    net, batches = toy_net(), toy_batches((6, 3))
    both = output_moments(net, batches, progress=False)
    first, second = (output_moments(net, [b], progress=False) for b in batches)
    for name in MOMENTS:
        mixed = (2 * getattr(first, name) + getattr(second, name)) / 3
        assert torch.allclose(getattr(both, name), mixed, rtol=1e-12, atol=1e-15)
    joined = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    assert not torch.allclose(both.means, output_moments(net, joined, progress=False).means, rtol=1e-3)


def test_a_subset_of_parameters_has_the_same_rows_as_all_of_them():
    net, batches = toy_net(), toy_batches()
    whole = output_moments(net, batches, progress=False)
    # asked for in another order than the net's
    part = output_moments(net, batches, params=["9.weight", "0.weight"], progress=False)
    assert part.names == ("0.weight", "9.weight") and whole.names == tuple(k for k, _ in net.named_parameters())
    parts = dict(zip(whole.names, whole.skews.split([p.numel() for p in net.parameters()]), strict=True))
    assert torch.equal(part.skews, torch.cat([parts["0.weight"], parts["9.weight"]]))


def test_float32_is_accurate_in_channels_last_as_well():
    # large images, since there torch's float32 batch norm in channels_last loses three digits
    net = plain8(2, act="softplus", classes=CLASSES)
    draws = torch.Generator().manual_seed(3)
    x, y = torch.randn(384, 3, 32, 32, generator=draws), torch.zeros(384, dtype=torch.long)
    exact = output_moments(copy.deepcopy(net).double(), [(x.double(), y)], progress=False)
    net = net.to(memory_format=torch.channels_last)
    found = output_moments(net, [(x.to(memory_format=torch.channels_last), y)], progress=False)
    for name in MOMENTS:
        wanted = getattr(exact, name)
        assert getattr(found, name).dtype == torch.float32
        # and rows in logical order, or they would not agree at all
        assert (getattr(found, name) - wanted).norm() < 2e-4 * wanted.norm()


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_the_net_is_left_bit_exactly_as_found(bn):
    net, batches = toy_net(), toy_batches()
    net.train()
    net[1].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {k: t.clone() for k, t in net.state_dict().items()}
    modes, random, grads = [m.training for m in net.modules()], torch.get_rng_state(), net[0].weight.grad
    output_moments(net, batches, bn=bn, progress=False)
    perturbed_outputs(net, batches, directions(net)[:, 0], 0.01, bn=bn)
    with pytest.raises(DynamicsError):
        output_moments(net, [(torch.full((2, 3, 8, 8), torch.inf, dtype=torch.float64), None)], bn=bn, progress=False)
    assert_same(net.state_dict(), before)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert net[0].weight.grad is grads and torch.equal(grads, torch.ones_like(grads)) and net[3].training
    assert all(p.grad is None for name, p in net.named_parameters() if name != "0.weight")


def test_dropout_draws_the_same_masks_at_every_call():
    net = dropout_net(CLASSES).double()
    first, second = (output_moments(net, toy_batches(), progress=False) for _ in range(2))
    assert torch.equal(first.means, second.means)


def test_given_statistics_take_the_place_of_the_running_ones():
    net, batches = toy_net(), toy_batches()
    given = {"1.running_mean": net[1].running_mean + 1, "5.running_var": net[5].running_var * 2}
    found = output_moments(net, batches, bn="frozen", statistics=given, progress=False)
    other = toy_net()
    other.load_state_dict({**net.state_dict(), **given})
    assert torch.equal(found.variances, output_moments(other, batches, bn="frozen", progress=False).variances)
    outputs = perturbed_outputs(net, batches, bn="frozen", statistics=given)
    assert torch.equal(outputs, perturbed_outputs(other, batches, bn="frozen"))
    assert not torch.equal(outputs, perturbed_outputs(net, batches, bn="frozen"))


def test_parameters_that_the_outputs_do_not_use_have_zero_rows():
    net = toy_net()
    net.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    found = output_moments(net, toy_batches(), progress=False)
    at = found.names.index("spare")
    assert at == 0 and not found.variances[:2].any() and found.variances[2:].any()


# --- subspaces and shares


def dense_shares(vectors: torch.Tensor, moments) -> np.ndarray:
    """Shares by least squares: what groups up to this one explain, less what those before explain."""
    columns, before, shares = [], np.zeros(vectors.shape[1]), []
    for name in MOMENTS:
        columns.append(getattr(moments, name).numpy())
        a = np.concatenate(columns, axis=1)
        fitted = a @ np.linalg.lstsq(a, vectors.numpy(), rcond=1e-9)[0]
        explained = (fitted**2).sum(0) / (vectors.numpy() ** 2).sum(0)
        shares.append(explained - before)
        before = explained
    return np.stack(shares, axis=1)


def test_shares_agree_with_least_squares_on_the_dense_gradients():
    net, batches = toy_net(), toy_batches()
    moments = output_moments(net, batches, progress=False)
    drawn = directions(net, 3)
    mixtures = torch.stack([moments.means[:, 0] + drawn[:, 0], 2 * moments.skews[:, 1] + drawn[:, 1] / 5], dim=1)
    vectors = torch.cat([drawn, mixtures, moments.means[:, :1], moments.variances[:, 2:]], dim=1)
    spaces = moment_subspaces(moments)
    found = moment_shares(vectors, spaces)
    assert found.shape == (7, 3)
    assert np.allclose(found.numpy(), dense_shares(vectors, moments), atol=1e-9)
    assert found[5].tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    assert found[6, :2].sum() == pytest.approx(1, abs=1e-12) and found[6, 0] > 1e-4
    together = torch.cat(list(spaces), dim=1)
    assert torch.allclose(together.T @ together, torch.eye(9, dtype=torch.float64), atol=1e-12)


def test_a_random_vector_has_a_share_of_about_r_over_n():
    spaces = MomentSubspaces(*(torch.linalg.qr(part)[0] for part in torch.eye(900)[:, :30].split([9, 10, 11], 1)))
    found = moment_shares(torch.randn(900, 400, generator=torch.Generator().manual_seed(4)), spaces).mean(0)
    assert found.tolist() == pytest.approx([9 / 900, 10 / 900, 11 / 900], rel=0.15)
    assert moment_shares(torch.zeros(900), spaces).isnan().all()


class Centred(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(1, keepdim=True)


def test_logits_with_a_fixed_sum_span_one_dimension_less():
    net, batches = nn.Sequential(toy_net(), Centred()), toy_batches()
    spaces = moment_subspaces(output_moments(net, batches, progress=False))
    assert spaces.means.shape[1] == CLASSES - 1 and spaces.variances.shape[1] == CLASSES
    assert moment_subspaces(output_moments(toy_net(), batches, progress=False)).means.shape[1] == CLASSES


def test_a_uniform_shift_of_all_logits_has_no_curvature_and_lies_in_the_span_of_the_means():
    # claim P7-14; the shift along the mean features is the sum of the means' gradients over the classifier
    net, (x, y) = toy_net(), toy_batches((8,))[0]
    net[9].bias = None
    with torch.no_grad():
        features = net[:9](x)
    weight = net[9].weight.detach().clone().requires_grad_()
    loss = F.cross_entropy(F.linear(features, weight) * 0.5, y, label_smoothing=0.2)
    hessian = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(F.linear(features, w) * 0.5, y, label_smoothing=0.2), weight.detach()
    )
    shift = features.mean(0).expand(CLASSES, -1).flatten()
    assert (hessian.view(len(shift), -1) @ shift).norm() < 1e-14 * hessian.norm() * shift.norm() and loss > 0
    moments = output_moments(net, [(x, y)], params=["9.weight"], progress=False)
    assert torch.allclose(moments.means.sum(1), 0.5 * shift, rtol=1e-10)
    assert moment_shares(shift, moment_subspaces(moments))[0].tolist() == pytest.approx([1, 0, 0], abs=1e-12)


def test_layers_hold_squares_that_add_up_and_post_7_finds_the_mean_in_the_classifier():
    net = plain8(4, classes=4)
    draws = torch.Generator().manual_seed(5)
    batches = [(torch.randn(64, 3, 16, 16, generator=draws), torch.zeros(64, dtype=torch.long))]
    means = output_moments(net, batches, progress=False).means
    found = by_layer(net, means)
    assert list(found) == ["prep.conv", *(f"layer{i}{x}.conv" for i in (1, 2, 3) for x in ("", "x")), "linear"]
    assert torch.allclose(sum(found.values()), means.square().sum(0))
    at = [k for k, _ in net.named_parameters()].index("linear.weight")
    tail = means[sum(p.numel() for p in list(net.parameters())[:at]) :]
    assert torch.allclose(found["linear"], tail.square().sum(0))
    # claim P7-7: active norms leave the classifier to move the mean, running ones do not
    frozen = by_layer(net, output_moments(net, batches, bn="frozen", progress=False).means)
    shares = [float((squares["linear"] / sum(squares.values()))[0]) for squares in (found, frozen)]
    assert shares[0] > 2 * shares[1]


def test_a_layer_of_two_parameters_is_one_layer():
    net = toy_net()
    found = by_layer(net, vector_of(net))
    assert list(found) == ["0", "1", "4", "5", "9"]
    wanted = sum(p.detach().square().sum() for p in net[0].parameters())
    assert float(found["0"]) == pytest.approx(float(wanted))


# --- perturbed nets


def test_a_perturbed_net_is_a_copy_moved_by_a_share_of_its_norm():
    net, direction = toy_net(), 7 * directions(toy_net())[:, 0]
    before = vector_of(net)
    moved = perturb(net, direction, 0.02)
    step = vector_of(moved) - before
    assert float(step.norm() / before.norm()) == pytest.approx(0.02, rel=1e-12)
    assert float(F.cosine_similarity(step, direction, dim=0)) == pytest.approx(1, abs=1e-12)
    assert torch.equal(vector_of(net), before) and moved is not net
    classifier = perturb(net, torch.ones(3 * 5, dtype=torch.float64), 0.5, params=["9.weight"])
    change = vector_of(classifier) - before
    assert float(change.norm()) == pytest.approx(0.5 * float(net[9].weight.detach().norm()))
    assert torch.equal(classifier[0].weight, net[0].weight)


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_perturbed_outputs_are_those_of_the_moved_net_batch_by_batch(bn):
    net, batches, direction = toy_net(), toy_batches(), directions(toy_net())[:, 0]
    found = perturbed_outputs(net, batches, direction, 0.1, bn=bn)
    moved = shifted(net, direction, 0.1 * float(vector_of(net).norm())).train(bn == "batch")
    wanted = torch.cat([moved(x) for x, _ in batches])
    assert torch.allclose(found, wanted, rtol=1e-10) and not found.requires_grad
    plain = torch.cat([copy.deepcopy(net).train(bn == "batch")(x) for x, _ in batches])
    assert torch.allclose(perturbed_outputs(net, batches, bn=bn), plain, rtol=1e-12)


def test_the_mean_moves_as_its_gradient_says():
    net, batches = toy_net(), toy_batches()
    moments = output_moments(net, batches, progress=False)
    share = 1e-6
    moved = perturbed_outputs(net, batches, moments.means[:, 1], share)
    weights = torch.tensor([len(x) for x, _ in batches], dtype=torch.float64)
    means = torch.stack([part.mean(0) for part in moved.split([len(x) for x, _ in batches])])
    change = (means.T @ weights / weights.sum() - moments.values[0])[1]
    assert float(change) == pytest.approx(share * float(vector_of(net).norm() * moments.means[:, 1].norm()), rel=1e-4)


# --- gaps


def test_the_largest_gap_finds_the_published_outliers():
    frozen = [2246.0, 2079.4, 1805.0, 1588.7, 1504.8, 1225.8, 1045.5, 978.1, 893.8, 435.1, 417.3, 340.2]
    none = [3486.1, 2556.0, 2344.7, 1991.2, 1937.3, 1741.7, 1694.6, 1646.1, 1558.1, 1523.8, 1304.9, 915.0]
    assert largest_gap(torch.tensor(frozen)) == (9, pytest.approx(893.8 / 435.1, rel=1e-5))
    assert largest_gap(none).count == 11
    assert largest_gap([*reversed(frozen), -46.4]).count == 9
    assert largest_gap([1.0, -2.0]) == (0, 1.0)


# --- bad input


@pytest.mark.parametrize(
    ("call", "told"),
    [
                (lambda net, b: output_moments(net, b, bn="eval"), "unknown bn mode"),
        (lambda net, b: perturbed_outputs(net, b, bn="eval"), "unknown bn mode"),
        (lambda net, b: output_moments(net, b, params=["0.wieght"]), "0.weight"),
        (lambda net, b: output_moments(net, b, params=[]), "no parameters"),
        (lambda net, b: output_moments(net, []), "no batches"),
        (lambda net, b: output_moments(net, b[0]), "list of \\(x, y\\)"),
        (lambda net, b: output_moments(net, [(b[0][0][:1], b[0][1][:1])]), "at least 2"),
        (lambda net, b: output_moments(net[:2], b), "outputs \\[B, C\\]"),
        (lambda net, b: output_moments(net, [(b[0][0] * torch.inf, None)]), "not finite"),
        (lambda net, b: perturb(net, torch.ones(5), 0.1), "numbers, got shape"),
        (lambda net, b: perturb(net, torch.zeros(len(vector_of(net))), 0.1), "not zero"),
        (lambda net, b: perturb(net, vector_of(net), math.nan), "relative_length"),
        (lambda net, b: by_layer(net, torch.ones(5)), "same params="),
        (
            lambda net, b: moment_shares(
                torch.ones(5), moment_subspaces(output_moments(net, b, params="9.bias", progress=False))
            ),
            "same params=",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_the_mend(call, told):
    with pytest.raises(DynamicsError, match=told) as caught:
        call(toy_net(), toy_batches())
    assert "\n" not in str(caught.value)
