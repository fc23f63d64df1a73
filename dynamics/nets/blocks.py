"""What the nets are built from: blocks, activations, initial weights, and checks of arguments."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial, reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DynamicsError, unknown
from ..rng import generator
from .norms import NORMS, BatchNorm, make_norm


class ShiftedReLU(nn.Module):
    """(relu(x) - 1/sqrt(pi)) / sqrt(1 - 1/pi): of mean 0 and variance 1 where x is normal of mean 0 and variance 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (F.relu(x) - math.pi**-0.5) * (1 - 1 / math.pi) ** -0.5


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "celu": partial(nn.CELU, alpha=0.3),
    "gelu": nn.GELU,
    "softplus": partial(nn.Softplus, beta=10),
    "identity": nn.Identity,
    "shifted_relu": ShiftedReLU,
}
ORDERS = ("norm-act-pool", "norm-pool-act", "pool-norm-act", "act-norm-pool")
INITS = ("torch", "he")
NORM_INITS = ("one", "uniform")


def make_act(act: str, celu_alpha: float = 0.3) -> nn.Module:
    """The module of an activation of `ACTIVATIONS`; celu_alpha is for "celu" alone."""
    return nn.CELU(alpha=celu_alpha) if act == "celu" else ACTIVATIONS[act]()


class Residual(nn.Sequential):
    """x + branch(x)."""

    adds = True  # for norm_of: what comes out is a sum, so a norm after it is of no single layer's filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class Sum(nn.Sequential):
    """The sum of what its children, all given the same inputs, return."""

    adds = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return reduce(add, (child(x) for child in self))


class GlobalMaxPool(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, x.shape[2:]).flatten(1)


class GlobalAvgPool(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class GlobalMaxAvgPool(nn.Module):
    """[B, C, H, W] -> [B, 2C]: the maxima, then the means (the classifier's inputs of Page's first net)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.max_pool2d(x, x.shape[2:]).flatten(1), x.mean((2, 3))], 1)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "max": GlobalMaxPool,
    "avg": GlobalAvgPool,
    "max+avg": GlobalMaxAvgPool,
}


class Scale(nn.Module):
    """Multiply by a constant: of the inputs, or the fixed temperature of the logits."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def conv_block(
    c_in: int,
    c_out: int,
    *,
    pool: bool,
    norm: str,
    act: str,
    order: str,
    eps: float,
    kernel: int = 3,
    stride: int = 1,
    repeats: int = 1,
    celu_alpha: float = 0.3,
    norm_scale: bool = True,
    norm_bias: bool = True,
    ghost_splits: int = 16,
) -> nn.Sequential:
    """Convolution, norm, activation and max-pool in the order asked for; children are named for what they are.

    norm_scale, norm_bias: whether the norm learns them; without a norm, norm_bias is the convolution's bias. repeats:
    how many times norm and activation are applied, the later ones (norm2, act2, ...) after the pool.
    """
    make: dict[str, Callable[[], nn.Module | None]] = {
        "norm": lambda: make_norm(norm, c_out, eps=eps, scale=norm_scale, bias=norm_bias, ghost_splits=ghost_splits),
        "act": lambda: make_act(act, celu_alpha),
        "pool": lambda: nn.MaxPool2d(2) if pool else None,
    }
    bias = norm == "none" and norm_bias
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
    kinds = order.split("-")
    again = [(f"{k}{i}", make[k]()) for i in range(2, repeats + 1) for k in kinds if k != "pool"]
    named = [("conv", conv), *((k, make[k]()) for k in kinds), *again]
    return nn.Sequential(OrderedDict((k, m) for k, m in named if m is not None))


@torch.no_grad()
def initialise(
    net: nn.Module, seed: int, init: str, *, gain: float = 2.0, classifier_gain: float = 1.0, norm_init: str = "one"
) -> None:
    """Draw weights of convolutions and linear layers by layer name, so that nets which share a layer share its weights.

    torch: uniform of variance 1 / (3 fan_in); he: normal of variance gain / fan_in, classifier_gain / fan_in for the
    last layer, the classifier. A gain of 2 is for a ReLU after the layer (He et al. 2015, eq. 10), 1 for none.
    norm_init: of the scales that norms learn, "one" or "uniform", drawn from 0 to 1. Biases start at zero.
    """
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for name, module in layers:
        fan_in, draws = module.weight[0].numel(), generator(seed, f"init/{name}")
        if init == "torch":
            module.weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=draws)
        else:
            of_layer = classifier_gain if module is layers[-1][1] else gain
            module.weight.normal_(0.0, (of_layer / fan_in) ** 0.5, generator=draws)
        if module.bias is not None:
            module.bias.zero_()
    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, BatchNorm) and m.weight is not None]
    for name, module in norms if norm_init == "uniform" else ():
        module.weight.uniform_(0, 1, generator=generator(seed, f"init/{name}"))


def check_names(*, norm: str, act: str, init: str | None, order: str = ORDERS[0]) -> None:
    """Raise DynamicsError for a name that a net does not know; init may be None."""
    for kind, value, known in (("norm", norm, NORMS), ("act", act, ACTIVATIONS), ("order", order, ORDERS)):
        if value not in known:
            raise unknown(kind, value, known)
    if init is not None and init not in INITS:
        raise unknown("init", init, INITS)


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise DynamicsError where value is no whole number from least to most."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise DynamicsError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def check_classes(classes: int) -> None:
    """Raise DynamicsError for fewer than two classes."""
    if not isinstance(classes, int) or classes < 2:
        raise DynamicsError(f"a classifier needs at least 2 classes, got {classes!r}")


def check_norm_arguments(*, eps: float, norm_scale: bool, norm_bias: bool, ghost_splits: int) -> None:
    """Raise DynamicsError for an argument of norms that is out of range."""
    check_number("eps", eps, positive=True)
    check_whole("ghost_splits", ghost_splits, 1, 65536)
    for name, value in (("norm_scale", norm_scale), ("norm_bias", norm_bias)):
        if not isinstance(value, bool):
            raise DynamicsError(f"{name} must be True or False (learned or fixed), got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raise DynamicsError where value is neither True nor False."""
    if not isinstance(value, bool):
        raise DynamicsError(f"{name} must be True or False, got {value!r}")


def check_number(name: str, value: object, *, positive: bool = False) -> None:
    """Raise DynamicsError where value is no finite number, or not above 0 where it must be."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise DynamicsError(f"{name} must be a finite number, got {value!r}")
    if positive and value <= 0:
        raise DynamicsError(f"{name} must be above 0, got {value!r}")
