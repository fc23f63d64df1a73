"""Nets at their initial weights: what is left of the differences between inputs, layer by layer (post 7).

The share of a unit, of a convolution at each place, is its variance over inputs over its mean square; a layer's is the
ratio of the two after averaging each over units. Borders are the same in every image, so variance over places does not
count.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn

from .. import theory
from ..claims import Claim
from ..data import load_data
from ..nets import Net
from ..rng import seeded
from .measurement import Measurement

POST = "post 7"
DEPTH, WIDTH, INPUTS = 50, 512, 256


def _share(z: torch.Tensor) -> float:
    spread, mean = torch.var_mean(z.double(), dim=0, correction=0)
    return float(spread.mean() / (spread + mean.square()).mean())


@cache
def _fully_connected(act: str, seed: int) -> tuple[list[float], list[float], float]:
    """Shares and mean squares of pre-activations by layer, and the largest singular value of the weights' product."""
    net = Net("mlp", depth=DEPTH, width=WIDTH, inputs=WIDTH, act=act).build(seed=seed)
    with torch.no_grad(), seeded(seed, "inputs"):
        x, product = torch.randn(INPUTS, WIDTH), torch.eye(WIDTH, dtype=torch.float64)
        shares, squares = [], []
        for name, layer in net.named_children():
            if name.startswith("layer"):
                z = layer.linear(x)
                shares.append(_share(z))
                squares.append(float(z.double().square().mean()))
                x = layer.act(z)
                if act == "identity":
                    product = layer.linear.weight.double() @ product
    return shares, squares, float(torch.linalg.matrix_norm(product, 2))


def relu_share(seed: int, layer: int = 10) -> float:
    """A ReLU net's share at a layer over that of an infinitely wide one."""
    predicted = theory.within_channel_share(layer)[layer - 1]
    return _fully_connected("relu", seed)[0][layer - 1] / float(predicted)


def relu_share_at_the_end(seed: int) -> float:
    return _fully_connected("relu", seed)[0][-1]


def relu_total(seed: int) -> float:
    """The logarithm to base 2 of the mean square at the last layer over that at the first."""
    squares = _fully_connected("relu", seed)[1]
    return math.log2(squares[-1] / squares[0])


def linear_share(seed: int) -> float:
    return _fully_connected("identity", seed)[0][-1]


def linear_stretch(seed: int) -> float:
    return _fully_connected("identity", seed)[2]


def _without_maxima(net: nn.Module) -> nn.Module:
    """Pooling replaced by taking one pixel of four, which leaves the distribution over inputs as it is."""
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d) and child.kernel_size == 2:
                setattr(module, name, nn.MaxPool2d(1, stride=2))
    return net


@cache
def _convolutional(norm: str, images: str, pooling: bool, seed: int) -> dict[str, float]:
    """Shares of what enters each activation, and of the logits, by module, in training mode."""
    net = Net("plain8", width=16, norm=norm).build(classes=10, seed=seed).train()
    net = net if pooling else _without_maxima(net)
    with torch.no_grad(), seeded(seed, "inputs"):
        if images == "noise":
            x = torch.randn(INPUTS, 3, 32, 32)
        else:
            data = load_data(images).train
            x = data.padded()[seed * INPUTS : (seed + 1) * INPUTS].permute(0, 3, 1, 2).contiguous()
        found: dict[str, float] = {}

        def keep(name: str):
            return lambda module, given, output: found.update({name: _share(given[0])})

        for name, module in net.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(keep(name))
        found["logits"] = _share(net(x))
    return found


def _deepest(found: dict[str, float]) -> float:
    return [share for name, share in found.items() if name != "logits"][-1]


def pooling_collapses(seed: int) -> float:
    """The share at the last convolution over that of the same weights without maxima."""
    with_maxima, without = (_deepest(_convolutional("none", "shapes", pooling, seed)) for pooling in (True, False))
    return with_maxima / without


def images_against_noise(seed: int) -> float:
    """The share at the last convolution for images over that for noise."""
    return _deepest(_convolutional("none", "shapes", True, seed)) / _deepest(
        _convolutional("none", "noise", True, seed)
    )


def least_share_with_norm(seed: int) -> float:
    return min(share for name, share in _convolutional("batch", "shapes", True, seed).items() if name != "logits")


def classifiers_share_with_norm(seed: int) -> float:
    return _convolutional("batch", "shapes", True, seed)["logits"]


MEASUREMENTS = (
    # 0.3 for the finite width: at layer 10 the spread over seeds of a net of 512 is some 0.1, and its mean deviates
    Measurement(
        Claim("P7-2", "share at layer 10 over that of an infinitely wide net", POST, 0.7, 1.3), relu_share, seeds=20
    ),
    # the post calls the outputs nearly constant at layer 50; theory says 0.013 for infinite width
    Measurement(Claim("P7-2", "share at layer 50", POST, 0, 0.1), relu_share_at_the_end, seeds=20),
    Measurement(
        Claim("P7-2", "mean square at layer 50 over that at layer 1, in powers of 2", POST, -1, 1), relu_total, seeds=20
    ),
    Measurement(Claim("P7-3", "linear net: share at layer 50", POST, 0.9, 1), linear_share, seeds=5),
    # published: about 10; for infinite width sqrt(e (layers + 1)) = 11.8
    Measurement(
        Claim("P7-3", "linear net: largest singular value of 50 layers", POST, 5, 20), linear_stretch, seeds=5
    ),
    Measurement(
        Claim("P7-5", "share at the last convolution: with maxima over without", POST, 0, 1),
        pooling_collapses, seeds=5, data="shapes",
    ),
    Measurement(
        Claim("P7-5", "share at the last convolution: images over noise", POST, 1, math.inf),
        images_against_noise, seeds=5, data="shapes",
    ),
    # 1 - 1/pi is what a single layer of ReLU leaves: with norms more is left everywhere, and less in the logits
    Measurement(
        Claim("P7-5", "batch norm: least share before an activation", POST, 1 - 1 / math.pi, 1),
        least_share_with_norm, seeds=5, data="shapes",
    ),
    Measurement(
        Claim("P7-5", "batch norm: share of the logits", POST, 0, 1 - 1 / math.pi),
        classifiers_share_with_norm, seeds=5, data="shapes",
    ),
)  # fmt: skip
