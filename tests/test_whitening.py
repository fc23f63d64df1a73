"""Whitening of input patches, and what a net takes from data before training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets import (
    FrozenNorm,
    Whiten,
    capture_statistics,
    count_macs,
    count_weights,
    images_to_prepare,
    norm_of,
    prepare,
    whitening_filters,
)

WHITE = dyn.Net("resnet9", width=2, whiten=True)


def photographs(n: int = 40, side: int = 12, seed: int = 0) -> torch.Tensor:
    """Smooth colour images: patches with a spectrum that falls by orders of magnitude, as photographs' do."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, side + 4, side + 4, dtype=torch.float64, generator=draw)
    smooth = F.avg_pool2d(x, 5, stride=1) * 3 + x[:, :, 2:-2, 2:-2] * 0.05
    return smooth + 0.8 * smooth.mean(1, keepdim=True) + 0.2


def patches_of(images: torch.Tensor) -> torch.Tensor:
    """Every 3x3 patch inside the images, one after another: [n, 27]."""
    corners = [(r, c) for r in range(images.shape[2] - 2) for c in range(images.shape[3] - 2)]
    return torch.stack([image[:, r : r + 3, c : c + 3].flatten() for image in images for r, c in corners])


def test_filters_are_scaled_eigenvectors_of_the_patches():
    """A twin in plain loops: covariance by outer products, and what an eigenvector is."""
    images = photographs(6, 7)
    filters, eigenvalues = whitening_filters(images, eps=0.01)
    patches = patches_of(images)
    covariance = torch.zeros(27, 27, dtype=torch.float64)
    for patch in patches:
        covariance += torch.outer(patch, patch)
    covariance /= len(patches) - 1
    assert filters.shape == (27, 3, 3, 3) and filters.dtype == torch.float64
    assert (eigenvalues.diff() <= 0).all() and float(eigenvalues[-1]) > 0
    assert float(eigenvalues.sum()) == pytest.approx(float(covariance.trace()), rel=1e-12)
    for w, value in zip(filters.flatten(1), eigenvalues, strict=True):
        v = w * (value + 0.01).sqrt()
        assert float(v.norm()) == pytest.approx(1, rel=1e-10)
        torch.testing.assert_close(covariance @ v, value * v, rtol=0, atol=1e-10)


def test_P8_14_covariance_of_whitened_patches_is_diagonal():
    """L / (L + eps): 1 for what the images hold much of, and less for what is nearly noise."""
    images = photographs()
    filters, eigenvalues = whitening_filters(images, eps=1e-2)
    outputs = F.conv2d(images, filters).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / (outputs.shape[1] - 1)
    expected = torch.diag(eigenvalues / (eigenvalues + 1e-2))
    assert float((covariance - expected).abs().max()) < 1e-10
    assert float(expected[0, 0]) > 0.99 and float(expected[-1, -1]) < 0.6, "eps must matter for some and not for others"
    # the module's filters are float32
    module = Whiten()
    module.fit(images.float())
    outputs = module.double()(images)[:, :, 1:-1, 1:-1].transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / (outputs.shape[1] - 1)
    assert float((covariance - expected).abs().max()) < 1e-4


def test_the_covariance_is_not_centred():
    images = photographs(4, 6) + 5
    filters, eigenvalues = whitening_filters(images)
    patches = patches_of(images)
    assert float(eigenvalues[0]) > 27 * 20 > 100 * float(torch.cov(patches.T).trace()) / 27
    assert (filters[0] > 0).all(), "the mean patch comes first"


def test_filters_do_not_depend_on_how_images_are_split_or_laid_out():
    images = photographs(300, 5).float()
    filters, eigenvalues = whitening_filters(images)
    patches = patches_of(images.double())
    exact = torch.linalg.eigvalsh(patches.T @ patches / (len(patches) - 1)).flip(0)
    torch.testing.assert_close(eigenvalues, exact, rtol=1e-9, atol=1e-12)
    assert torch.equal(filters, whitening_filters(images.contiguous(memory_format=torch.channels_last)).filters)


def test_signs_are_settled():
    """The first entry of at least half the largest size is positive, whatever the library returned."""
    images = photographs()
    filters = whitening_filters(images).filters.flatten(1)
    for w in filters:
        assert float(w[w.abs() >= w.abs().max() / 2][0]) > 0
    assert torch.equal(filters, whitening_filters(-images).filters.flatten(1))


def test_constant_images_have_filters():
    filters, eigenvalues = whitening_filters(torch.zeros(2, 3, 4, 4))
    assert (eigenvalues == 0).all() and torch.isfinite(filters).all()
    assert float(whitening_filters(torch.ones(2, 3, 4, 4)).eigenvalues[0]) == pytest.approx(27 * 8 / 7)


def test_a_whitened_net_equals_plain_functions():
    net = WHITE.build(seed=1).double()
    images = photographs(20, 16)
    prepare(net, images)
    p = dict(net.named_parameters())
    y = F.conv2d(images, net.whiten.weight, padding=1)
    y = torch.einsum("oi,nihw->nohw", p["prep.conv.weight"][:, :, 0, 0], y)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(net.prep(net.whiten(images)), y.clamp_min(0), rtol=1e-10, atol=1e-10)
    # behind prep it is the net that it was
    plain = dyn.Net("resnet9", width=2).build(seed=1).double()
    assert torch.equal(plain[1:](y), net[2:](y))
    names = [k for k, _ in plain.named_parameters()]
    assert names == list(p) and [k for k, _ in net.named_children()][:2] == ["whiten", "prep"]


def test_fixed_filters_are_a_buffer_without_norm_or_gradient():
    net = WHITE.build()
    assert "whiten.weight" in dict(net.named_buffers()) and "whiten.weight" not in dict(net.named_parameters())
    pairs = norm_of(net)
    assert pairs["prep.conv"].path == "prep.norm" and len(pairs) == 8 and "whiten" not in pairs
    assert count_weights(net) == count_weights(dyn.Net("resnet9", width=2).build())
    assert count_macs(net) == count_macs(dyn.Net("resnet9", width=2).build()) + 729 * 1024


def test_the_1x1_convolution_behind_the_filters_is_scale_invariant():
    net = WHITE.replace(eps=1e-14).build().double()
    images = photographs(16, 16)
    prepare(net, images)
    F.cross_entropy(net(images), torch.arange(16) % 10).backward()
    w, g = net.prep.conv.weight.detach().flatten(1), net.prep.conv.weight.grad.flatten(1)
    assert float(((w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1))).abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["staged", "search"])
def test_any_staged_net_can_be_whitened(name):
    nets = {
        "staged": dyn.Net("staged", width=2, stages=(dyn.Stage(4),), input_scale=0.5),
        "search": dyn.nets.SEARCH["residual:L2"].replace(width=2),
    }
    net = nets[name].replace(whiten=True).build()
    images = photographs(8, 16).float()
    prepare(net, images)
    assert torch.equal(net.whiten.weight, whitening_filters(images).filters.float())
    assert torch.isfinite(net(images)).all()


def test_whitening_without_data_is_refused():
    net = WHITE.build()
    with pytest.raises(
        DynamicsError, match=r"whitening filters are not fitted: call nets.prepare\(net, images\) first"
    ):
        net(torch.zeros(2, 3, 16, 16))
    # counting is no data, and filters that come with a state are
    count_macs(net)
    with pytest.raises(DynamicsError, match="not fitted"):
        net(torch.zeros(2, 3, 16, 16))
    fitted = WHITE.build()
    prepare(fitted, photographs(4, 16).float())
    net.load_state_dict(fitted.state_dict())
    assert torch.isfinite(net(torch.ones(2, 3, 16, 16))).all()


def test_training_fits_the_filters_to_the_training_images():
    split = toy_split()
    recipe = toy_recipe(net=WHITE, epochs=1)
    images = split.padded().permute(0, 3, 1, 2).contiguous()
    expected = whitening_filters(images).filters.float()
    snaps = list(dyn.steps(recipe, split))
    for snap in (snaps[0], snaps[-1]):
        assert torch.equal(snap.buffers["whiten.weight"].contiguous(), expected)


def test_averages_leave_the_filters_alone():
    recipe = toy_recipe(net=WHITE, average=dyn.EMA(0.9, every=1), epochs=1)
    snap = last(dyn.steps(recipe, toy_split()))
    assert torch.equal(snap.state.average["buffers"]["whiten.weight"], snap.buffers["whiten.weight"])


def test_preparing_whitens_first_and_then_captures():
    """A frozen norm's statistics are those behind the fitted filters; the first 512 images, all of them for filters."""
    images = photographs(520, 8).float()
    net = dyn.Net("staged", width=2, stages=(dyn.Stage(4),), whiten=True, norm="frozen").build()
    prepare(net, images)
    filters = whitening_filters(images).filters.float()
    assert torch.equal(net.whiten.weight, filters)
    y = net.prep.conv(F.conv2d(images[:512], filters, padding=1)).double()
    torch.testing.assert_close(net.prep.norm.running_mean.double(), y.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net.prep.norm.running_var.double(), y.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_preparing_a_frozen_net_is_capturing():
    images = photographs(30, 16).float()
    a, b = (dyn.Net("resnet9", width=2, norm="frozen").build() for _ in range(2))
    prepare(a, images)
    capture_statistics(b.eval(), images)
    assert_same(a.state_dict(), b.state_dict())
    assert a.training and not a.prep.conv.weight.grad


def test_preparing_keeps_modes_and_leaves_other_nets_alone():
    net = nn.Sequential(Whiten(), nn.BatchNorm2d(27), nn.Dropout(), FrozenNorm(27), nn.ReLU())
    net[4].eval()
    before = copy.deepcopy(dict(net[1].named_buffers()))
    images = photographs(4, 6).float()
    prepare(net, images)
    assert [m.training for m in net.modules()] == [True, True, True, True, True, False]
    assert_same(before, dict(net[1].named_buffers()))
    # nothing is dropped and no norm takes the batch's statistics: the net is seen as evaluation will see it
    seen = F.batch_norm(net[0](images), net[1].running_mean, net[1].running_var)
    torch.testing.assert_close(net[3].running_var, seen.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    other = dyn.Net("resnet9", width=2).build()
    before = copy.deepcopy(other.state_dict())
    prepare(other, torch.full((4, 3, 16, 16), torch.nan))
    assert_same(before, other.state_dict())


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (WHITE, 10_000),
        (WHITE.replace(norm="frozen"), 10_000),
        (WHITE.replace(whiten=False, norm="frozen"), 512),
        (WHITE.replace(whiten=False), 0),
    ],
)
def test_how_many_images_preparing_reads(net, expected):
    assert images_to_prepare(net.build()) == expected


def test_filters_are_of_ten_thousand_images_at_most():
    images = torch.randn(10_050, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    net = WHITE.build()
    prepare(net, images)
    assert torch.equal(net.whiten.weight, whitening_filters(images[:10_000]).filters.float())
    assert not torch.equal(net.whiten.weight, whitening_filters(images).filters.float())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: whitening_filters(torch.zeros(3, 3, 2, 5)), "3 images of 2x5 have 0 patches of 3x3: whiten more"),
        (lambda: whitening_filters(torch.zeros(1, 3, 3, 3)), "1 images of 3x3 have 1 patches"),
        (lambda: whitening_filters(torch.zeros(0, 3, 8, 8)), "0 images of 8x8 have 0 patches"),
        (lambda: whitening_filters(torch.zeros(3, 8, 8)), "whitening takes floating-point images [N, C, H, W], got"),
        (lambda: whitening_filters(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), "got torch.uint8 [2, 3, 8, 8]"),
        (lambda: whitening_filters(torch.full((2, 3, 4, 4), torch.inf)), "values that are not finite"),
        (lambda: Whiten().fit(torch.zeros(2, 1, 8, 8)), "whitens images [N, 3, H, W], got [2, 1, 8, 8]"),
        (lambda: prepare(WHITE.build(), torch.zeros(2, 3, 2, 2)), "have 0 patches"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
