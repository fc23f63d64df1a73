from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets import count_macs, count_weights
from dynamics.nets.meprop import TopKConv1x1, TopKLinear
from dynamics.training import initial_state


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_weights(layer: nn.Module) -> nn.Module:
    layer = layer.double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(draws(*p.shape, seed=10 + i))
    return layer


def by_hand(x, weight, grad, k):
    """Gradients of inputs and weights, one row of [n, out] at a time, by sorting."""
    dx, dw = torch.zeros_like(x), torch.zeros_like(weight)
    for n in range(len(x)):
        largest = sorted(range(grad.shape[1]), key=lambda j, n=n: -abs(float(grad[n, j])))[:k]
        for j in largest:
            dx[n] += grad[n, j] * weight[j]
            dw[j] += grad[n, j] * x[n]
    return dx, dw


@pytest.mark.parametrize("k", [1, 3, 6, 7])
def test_meprop_keeps_the_k_largest_gradients_of_each_row(k):
    layer, x, grad = with_weights(TopKLinear(5, 7, k)), draws(4, 5).requires_grad_(), draws(4, 7, seed=1)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), rtol=1e-14, atol=1e-14)
    dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], grad)
    expected_dx, expected_dw = by_hand(x.detach(), layer.weight.detach(), grad, k)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dw, expected_dw, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(db, grad.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_meprop_of_a_1x1_convolution_is_that_of_a_linear_layer_at_each_pixel(stride):
    layer = with_weights(TopKConv1x1(5, 7, 2, stride=stride))
    x = draws(3, 5, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    grad = draws(*y.shape, seed=1)
    dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], grad)
    pixels = x.detach()[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, 5)
    rows, matrix = grad.permute(0, 2, 3, 1).reshape(-1, 7), layer.weight.detach()[:, :, 0, 0]
    torch.testing.assert_close(y.permute(0, 2, 3, 1).reshape(-1, 7), pixels @ matrix.T + layer.bias)
    expected_dx, expected_dw = by_hand(pixels, matrix, rows, 2)
    torch.testing.assert_close(dx[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, 5), expected_dx)
    torch.testing.assert_close(dw[:, :, 0, 0], expected_dw)
    torch.testing.assert_close(db, rows.sum(0))


def test_with_every_gradient_kept_the_layers_are_torchs_to_the_bit():
    x, image = draws(4, 5), draws(2, 5, 3, 3)
    for ours, theirs, inputs in (
        (TopKLinear(5, 7, 7), nn.Linear(5, 7), x),
        (TopKConv1x1(5, 7, 7), nn.Conv2d(5, 7, 1), image),
    ):
        for layer in (ours, theirs):
            y = with_weights(layer)(inputs)
            y.square().sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


def test_fewer_gradients_are_other_gradients():
    grads = []
    for k in (2, 7):
        layer = with_weights(TopKLinear(5, 7, k, bias=False))
        layer(draws(4, 5)).square().sum().backward()
        grads.append(layer.weight.grad)
    assert not torch.allclose(*grads)
    assert torch.linalg.vector_norm(grads[0]) < torch.linalg.vector_norm(grads[1])


def test_rows_may_have_any_leading_shape_and_equal_gradients_still_leave_k():
    layer = with_weights(TopKLinear(3, 6, 2, bias=False))
    x = torch.zeros(2, 4, 3, dtype=torch.float64)
    x[..., 0] = 1
    (dw,) = torch.autograd.grad(layer(x).sum(), [layer.weight])
    assert float(dw[:, 0].sum()) == 2 * 4 * 2  # a gradient of 1 from each of 8 rows at 2 of 6 outputs


def test_a_gradient_that_is_no_number_is_not_hidden():
    layer, grad = with_weights(TopKLinear(3, 4, 1, bias=False)), draws(2, 4)
    grad[1, 2] = torch.nan
    (dw,) = torch.autograd.grad(layer(draws(2, 3)), [layer.weight], grad)
    assert dw.isnan().any()


def test_an_mlp_takes_meprop_in_its_hidden_layers_and_shares_its_weights_with_the_plain_one():
    nets = [dyn.Net("mlp", depth=2, width=6, inputs=9, **more).build(seed=1) for more in ({}, {"top_k": 2})]
    assert_same(*(dict(net.named_parameters()) for net in nets))
    kinds = [type(m) for m in nets[1].modules() if isinstance(m, nn.Linear)]
    assert kinds == [TopKLinear, TopKLinear, nn.Linear]
    assert count_weights(nets[0]) == count_weights(nets[1]) == count_macs(nets[1], (9,)) == 9 * 6 + 6 * 6 + 6 * 10
    assert not any(isinstance(m, TopKLinear) for m in nets[0].modules())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_with_every_gradient_is_the_plain_training(precision):
    split = toy_split(side=8)

    def trained(**more):
        net = dyn.Net("mlp", depth=2, width=6, inputs=192, **more)
        recipe = toy_recipe(net=net, precision=precision, augment=dyn.Augment(pad=1), epochs=3)
        return initial_state(recipe, split).params, last(dyn.steps(recipe, split)).params

    start, plain = trained()
    assert_same(plain, trained(top_k=6)[1])
    sparse = trained(top_k=2)[1]
    assert all(p.isfinite().all() for p in sparse.values())
    assert not torch.equal(sparse["layer1.linear.weight"], plain["layer1.linear.weight"])
    assert not torch.equal(sparse["layer1.linear.weight"], start["layer1.linear.weight"])


def test_curvature_refuses_meprop_since_its_backward_is_no_gradient():
    net = dyn.Net("mlp", depth=1, width=4, inputs=3, top_k=2).build().double()
    with pytest.raises(DynamicsError, match="KeepLargest has no second derivative"):
        dyn.Hessian(net, F.cross_entropy, [(draws(5, 3), torch.arange(5))]).matvec(torch.ones(12 + 4 + 40).double())


def test_k_out_of_range_is_refused():
    with pytest.raises(DynamicsError, match="k must be a whole number from 1 to 4, got 5"):
        TopKLinear(3, 4, 5)
    with pytest.raises(DynamicsError, match="k must be a whole number from 1 to 4, got 0"):
        TopKConv1x1(3, 4, 0)
    with pytest.raises(DynamicsError, match="top_k must be a whole number from 1 to 6, got 7"):
        dyn.Net("mlp", depth=1, width=6, top_k=7).build()
