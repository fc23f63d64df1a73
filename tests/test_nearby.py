from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import nn

from dynamics.curvature import by_layer, output_moments, perturb
from dynamics.curvature.nearby import along_gradient, channel_shifts, mean_gradients, push
from dynamics.errors import DynamicsError
from dynamics.nets import capture_statistics, plain8


def toy(norm: str = "batch", *, dtype: torch.dtype = torch.float64, seed: int = 0, **given) -> nn.Module:
    return plain8(2, norm=norm, classes=3, seed=seed, **given).to(dtype).train()


def images(n: int = 12, dtype: torch.dtype = torch.float64, seed: int = 1) -> list:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 16, 16, generator=draws, dtype=torch.float64).to(dtype)
    return [(x, torch.randint(3, (n,), generator=draws))]


def moved(net: nn.Module, flat: torch.Tensor) -> nn.Module:
    """A copy whose weights are shifted by a flat vector, parameter by parameter."""
    net, at = copy.deepcopy(net), 0
    with torch.no_grad():
        for p in net.parameters():
            p += flat[at : at + p.numel()].view(p.shape)
            at += p.numel()
    return net


def frozen_twin(net: nn.Module, x: torch.Tensor) -> nn.Module:
    twin = toy("frozen")
    twin.load_state_dict(net.state_dict())
    capture_statistics(twin, x)
    return twin


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_gradients_of_means_are_finite_differences_of_the_means(norm):
    net, batches = toy(norm), images()
    found = mean_gradients(net, batches)
    x, h = batches[0][0], 1e-6
    draws = torch.Generator().manual_seed(2)
    for _ in range(3):
        v = torch.randn(len(found), generator=draws, dtype=torch.float64)
        v /= v.norm()
        with torch.no_grad():
            slope = (moved(net, h * v)(x).mean(0) - moved(net, -h * v)(x).mean(0)) / (2 * h)
        torch.testing.assert_close(found.T @ v, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_they_are_the_means_of_output_moments_over_batches_of_different_sizes(bn):
    net, batches = toy(), [*images(9), *images(5, seed=3)]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = mean_gradients(net, batches, bn=bn)
    torch.testing.assert_close(found, output_moments(net, batches, bn=bn, progress=False).means)
    assert_same(before, net.state_dict())
    of_part = mean_gradients(net, batches, bn=bn, params="linear")
    torch.testing.assert_close(of_part, found[-net.linear.weight.numel() :])


def test_in_float32_and_channels_last_they_agree_with_float64():
    net, batches = toy(), images(64)
    exact = mean_gradients(net, batches)
    low = copy.deepcopy(net).float().to(memory_format=torch.channels_last)
    given = [(x.float().to(memory_format=torch.channels_last), y) for x, y in batches]
    assert float((mean_gradients(low, given).double() - exact).norm() / exact.norm()) < 1e-4


def test_P7_7_the_classifiers_part_is_the_mean_of_its_inputs_whether_norms_are_frozen_or_not():
    net, batches = toy(), images()
    x = batches[0][0]
    inputs = []
    handle = net.linear.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    net(x)
    handle.remove()
    expected = (net.logits.factor * inputs[0].mean(0)).square().sum()
    twin = frozen_twin(net, x)
    for of in (net, twin):
        part = by_layer(of, mean_gradients(of, batches))["linear"]
        torch.testing.assert_close(part, expected.expand(3))
    assert float(mean_gradients(twin, batches).norm()) > 1.5 * float(mean_gradients(net, batches).norm())


def test_pushing_counts_the_images_that_are_said_to_be_of_each_class():
    net, batches = toy("none"), images(20)
    x, y = batches[0]
    directions = mean_gradients(net, batches)
    found = push(net, batches, directions, 0.05)
    for k in range(3):
        with torch.no_grad():
            out = perturb(net, directions[:, k], 0.05)(x)
        assert float(found.share[k]) == pytest.approx(float((out.argmax(1) == k).double().mean()))
        assert float(found.loss[k]) == pytest.approx(float(F.cross_entropy(out, y)))
        rest = torch.stack([out[:, j] for j in range(3) if j != k]).amax(0)
        torch.testing.assert_close(found.margin[k], out[:, k] - rest)
    still = push(net, batches, directions, 0.0)
    assert float(still.share.sum()) == pytest.approx(1.0)
    assert (found.share >= still.share).all()
    with pytest.raises(DynamicsError, match="one column a class"):
        push(net, batches, directions[:, :2])


def test_an_active_norm_takes_a_shift_away_and_a_frozen_one_passes_it_on():
    net, batches = toy(), images()
    x = batches[0][0]
    g = mean_gradients(net, batches)
    layers = ["prep.norm", "layer2.conv", "layer2.norm", "logits"]
    active = channel_shifts(net, perturb(net, g[:, 0], 0.01), batches, layers)
    assert all(float(active[k].abs().max()) < 1e-10 for k in ("prep.norm", "layer2.norm"))
    twin = frozen_twin(net, x)
    there = perturb(twin, mean_gradients(twin, batches)[:, 0], 0.01)
    found = channel_shifts(twin, there, batches, layers)
    with torch.no_grad():
        before, after = (of.prep(of.input(x)) for of in (twin, there))
        outputs = [of(x) for of in (twin, there)]
    assert before.shape == after.shape
    expected = (outputs[1].mean(0) - outputs[0].mean(0)) / outputs[0].std(0, correction=0)
    torch.testing.assert_close(found["logits"], expected)
    assert float(found["layer2.norm"].abs().max()) > 1e-4
    with pytest.raises(DynamicsError, match="layer"):
        channel_shifts(net, net, batches, ["layer9"])


def test_along_the_gradient_of_a_quadratic_the_change_is_its_curvature():
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.w * x).expand(len(x), 3)

    curvatures = torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64)

    def loss(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 0.5 * (curvatures * outputs[0].square()).sum()

    net = Quadratic()
    found = along_gradient(net, loss, [(x, torch.zeros(2))], (0.1, 0.3))
    g = curvatures * net.w.detach()
    expected = float((curvatures * g).norm() / g.norm())
    torch.testing.assert_close(found.change / found.distances, torch.full((2,), expected, dtype=torch.float64))
    assert found.smoothness == pytest.approx(expected)
    ahead = net.w.detach() - 0.3 * g
    assert float(found.loss[1]) == pytest.approx(float(0.5 * (curvatures * ahead.square()).sum()))
    assert (found.start, found.norm) == (pytest.approx(4.25), pytest.approx(float(g.norm())))


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_along_the_gradient_of_a_net_gradients_are_those_of_a_moved_copy(bn):
    net, batches = toy(), images()
    x, y = batches[0]

    def gradient(of: nn.Module) -> torch.Tensor:
        of = copy.deepcopy(of).train(bn == "batch")
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(of(x), y), list(of.parameters()))])

    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = along_gradient(net, F.cross_entropy, batches, (0.5,), bn=bn)
    g = gradient(net)
    assert float(found.change[0]) == pytest.approx(float((gradient(moved(net, -0.5 * g)) - g).norm() / g.norm()))
    assert_same(before, net.state_dict())


@pytest.mark.parametrize("distances", [(), (0.0,), (-1.0,), (float("nan"),)])
def test_distances_that_are_none_are_refused(distances):
    with pytest.raises(DynamicsError, match="above 0"):
        along_gradient(toy(), F.cross_entropy, images(), distances)
