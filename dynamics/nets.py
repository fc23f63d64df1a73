"""Networks as data: stages of convolutions, and the nets that are built from them."""

from __future__ import annotations

import importlib
import inspect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .errors import DynamicsError, unknown
from .rng import generator, seeded

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "celu": partial(nn.CELU, alpha=0.3),
    "gelu": nn.GELU,
    "softplus": partial(nn.Softplus, beta=10),
    "identity": nn.Identity,
}
NORMS = ("batch", "frozen", "none")
ORDERS = ("norm-act-pool", "norm-pool-act", "pool-norm-act")
INITS = ("torch", "he")


@dataclass(frozen=True, init=False)
class Net:
    """A network as data: a name of `NETS` (or an import path "package.module:function") and its arguments."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def __init__(self, name: str, **arguments: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", tuple(sorted((k, _hashable(v)) for k, v in arguments.items())))
        if ":" not in name and name not in NETS:
            raise unknown("net", name, NETS)
        if ":" not in name:
            known = inspect.signature(NETS[name]).parameters
            for argument in arguments:
                if argument not in known:
                    raise unknown(f"argument of {name}", argument, known)

    def __repr__(self) -> str:
        return f"Net({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.arguments)])})"

    def replace(self, **arguments: Any) -> Net:
        """The same net with other arguments."""
        return Net(self.name, **{**dict(self.arguments), **arguments})

    def build(self, *, classes: int = 10, seed: int = 0) -> nn.Module:
        """Make the module; the same seed gives the same initial weights, layer by layer, and no global state is used.

        A function reached by an import path gets `classes` and `seed` if it takes them, and a seeded
        global generator for the time of the call.
        """
        make = NETS[self.name] if ":" not in self.name else _imported(self.name)
        known = inspect.signature(make).parameters
        arguments = {k: v for k, v in {"classes": classes, "seed": seed}.items() if k in known}
        with seeded(seed, "net"):
            return make(**{**arguments, **dict(self.arguments)})


def _hashable(value: Any) -> Any:
    """JSON knows lists only, so that lists and tuples must be one."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _imported(path: str) -> Callable[..., nn.Module]:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DynamicsError(f"cannot import the net {path!r} ({error}): write package.module:function") from None


@dataclass(frozen=True)
class Stage:
    """One stage: a 3x3 convolution block to `channels`, halved by max-pooling if `pool`, then a branch or none.

    branch: "residual" adds x + two blocks of the same channels.
    """

    channels: int
    pool: bool = True
    branch: str | None = None


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d without its counter of batches, which nothing here reads."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics, learned = (self.running_mean, self.running_var), (self.weight, self.bias)
        return F.batch_norm(x, *statistics, *learned, self.training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class FrozenNorm(BatchNorm):
    """Batch norm with fixed statistics (its buffers, set by `capture_statistics`), learned scale and bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Residual(nn.Sequential):
    """x + branch(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class GlobalMaxPool(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, x.shape[2:]).flatten(1)


class Scale(nn.Module):
    """Multiply by a constant: the fixed temperature of the logits."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def conv_block(c_in: int, c_out: int, *, pool: bool, norm: str, act: str, order: str, eps: float) -> nn.Sequential:
    """Convolution, norm, activation and max-pool in the order asked for; children are named for what they are."""
    parts = {
        "norm": {"batch": BatchNorm, "frozen": FrozenNorm}[norm](c_out, eps=eps) if norm != "none" else None,
        "act": ACTIVATIONS[act](),
        "pool": nn.MaxPool2d(2) if pool else None,
    }
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=norm == "none")
    named = [("conv", conv), *((k, parts[k]) for k in order.split("-"))]
    return nn.Sequential(OrderedDict((k, m) for k, m in named if m is not None))


def resnet9(
    width: int = 64,
    *,
    norm: str = "batch",
    act: str = "relu",
    order: str = "norm-act-pool",
    logit_scale: float = 0.125,
    classes: int = 10,
    eps: float = 1e-5,
    init: str | None = None,
    seed: int = 0,
) -> nn.Sequential:
    """Page's nine-layer residual net (post 4, Residual:L1+L3): 6.57 M weights and 379.3 M MAC an image at width 64.

    Images [B, 3, H, W] (H, W multiples of 8) -> logits [B, classes]. norm: batch, frozen or none; order: of
    norm, activation and pooling after a convolution; eps: of the norms; init: "torch" (kaiming_uniform, a=sqrt(5))
    or "he"; by default "he" where there is no norm. Raises DynamicsError for arguments out of range.
    """
    stages = (Stage(2 * width, branch="residual"), Stage(4 * width), Stage(8 * width, branch="residual"))
    return staged(
        width, stages, norm=norm, act=act, order=order, logit_scale=logit_scale, classes=classes, eps=eps,
        init=init, seed=seed,
    )  # fmt: skip


def staged(
    width: int,
    stages: tuple[Stage, ...],
    *,
    norm: str,
    act: str,
    order: str,
    logit_scale: float,
    classes: int,
    eps: float,
    init: str | None,
    seed: int,
) -> nn.Sequential:
    """A net of a prep block of `width` channels, then stages, global max-pool and a linear classifier without bias."""
    for kind, value, known in (("norm", norm, NORMS), ("act", act, ACTIVATIONS), ("order", order, ORDERS)):
        if value not in known:
            raise unknown(kind, value, known)
    if init is not None and init not in INITS:
        raise unknown("init", init, INITS)
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= 4096:
        raise DynamicsError(f"width must be a whole number from 1 to 4096, got {width!r}")
    if classes < 2:
        raise DynamicsError(f"a classifier needs at least 2 classes, got {classes}")
    block = partial(conv_block, norm=norm, act=act, order=order, eps=eps)
    parts: dict[str, nn.Module] = {"prep": block(3, width, pool=False)}
    channels = width
    for i, stage in enumerate(stages, start=1):
        layer = block(channels, stage.channels, pool=stage.pool)
        channels = stage.channels
        if stage.branch == "residual":
            pair = ((name, block(channels, channels, pool=False)) for name in ("res1", "res2"))
            layer.add_module("residual", Residual(OrderedDict(pair)))
        elif stage.branch is not None:
            raise unknown("branch", stage.branch, ("residual",))
        parts[f"layer{i}"] = layer
    parts["pool"] = GlobalMaxPool()
    parts["linear"] = nn.Linear(channels, classes, bias=False)
    parts["logits"] = Scale(logit_scale)
    net = nn.Sequential(OrderedDict(parts))
    initialise(net, seed, init or ("he" if norm == "none" else "torch"))
    return net


@torch.no_grad()
def initialise(net: nn.Module, seed: int, init: str) -> None:
    """Draw weights of convolutions and linear layers by layer name, so that nets which share a layer share its weights.

    torch: uniform of variance 1 / (3 fan_in); he: normal of variance 2 / fan_in (He et al. 2015, eq. 10),
    1 / fan_in for the classifier, which no activation follows. Biases start at zero.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in, draws = module.weight[0].numel(), generator(seed, f"init/{name}")
            if init == "torch":
                module.weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=draws)
            else:
                gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(0.0, (gain / fan_in) ** 0.5, generator=draws)
            if module.bias is not None:
                module.bias.zero_()


NETS: dict[str, Callable[..., nn.Module]] = {"resnet9": resnet9}


@torch.no_grad()
def capture_statistics(net: nn.Module, x: torch.Tensor) -> None:
    """Set every FrozenNorm's statistics to those of its own inputs when the net sees the images x [B, C, H, W].

    One forward pass: each norm captures before it is applied, so the result is that of batch norm on this batch.
    """

    def capture(norm: FrozenNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].contiguous(), dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    hooks = [m.register_forward_pre_hook(capture) for m in net.modules() if isinstance(m, FrozenNorm)]
    try:
        if hooks:
            net(x)
    finally:
        for hook in hooks:
            hook.remove()


class NormOf(NamedTuple):
    """The norm that a layer's outputs go through: its module path and its eps."""

    path: str
    eps: float


def norm_of(net: nn.Module) -> dict[str, NormOf]:
    """Which norm's channels are a layer's filters, by module path of the convolution or linear layer.

    It is the next norm with running statistics in registration order, if it has as many features as the layer has
    filters; a net that registers its modules in another order than it calls them is paired wrongly.
    """
    pairs: dict[str, NormOf] = {}
    last: tuple[str, int] | None = None
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            last = (path, module.weight.shape[0])
        elif last and getattr(module, "running_var", None) is not None:
            if len(module.running_var) == last[1]:
                pairs[last[0]] = NormOf(path, module.eps)
            last = None
    return pairs


def count_weights(net: nn.Module) -> int:
    """Weights of convolutions and linear layers; norms' scales and biases are not counted (Page's count)."""
    return sum(p.numel() for p in net.parameters() if p.ndim >= 2)


@torch.no_grad()
def count_macs(net: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Multiply-accumulates of convolutions and linear layers in one forward pass of one image."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = net.training
    try:
        parameter = next(net.parameters())
        net.eval()(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return total
