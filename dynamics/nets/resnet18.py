"""The net that Page's first post starts from: a ResNet-18 with norm and activation before the convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..errors import unknown
from .blocks import (
    HEADS,
    NORM_INITS,
    Scale,
    Sum,
    check_classes,
    check_flag,
    check_names,
    check_norm_arguments,
    check_number,
    check_whole,
    initialise,
    make_act,
)
from .norms import make_norm


def resnet18(
    width: int = 64,
    *,
    duplicate: bool = False,
    norm: str = "batch",
    act: str = "relu",
    celu_alpha: float = 0.3,
    logit_scale: float = 1.0,
    classes: int = 10,
    eps: float = 1e-5,
    norm_scale: bool = True,
    norm_bias: bool = True,
    norm_init: str = "uniform",
    ghost_splits: int = 16,
    init: str | None = None,
    seed: int = 0,
) -> nn.Sequential:
    """The pre-activation ResNet-18 of post 1 (DAWNBench entry of bkj): 5.20 M weights and 460.0 M MAC at width 64.

    Images [B, 3, H, W] -> logits [B, classes]. Four stages of two blocks, of 1, 2, 4 and 4 times the width, the later
    three halved by stride 2; a block is norm and activation, then two convolutions with norm and activation between
    them, added to a shortcut, which starts after the first activation: the identity, or a 1x1 convolution of stride 2.
    The classifier sees global maxima and means. duplicate: norm and activation after the first convolution as well,
    where the first block begins with them anyway. Other arguments as of `staged`. Modules: prep, layer1.block0.norm1,
    act1, sum.branch.conv1, norm2, act2, conv2, sum.shortcut, ..., layer4.block1, pool, linear, logits. Raises
    DynamicsError for arguments out of range.
    """
    check_names(norm=norm, act=act, init=init)
    if norm_init not in NORM_INITS:
        raise unknown("norm_init", norm_init, NORM_INITS)
    check_whole("width", width, 1, 4096)
    check_flag("duplicate", duplicate)
    check_norm_arguments(eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits)
    check_number("logit_scale", logit_scale)
    check_number("celu_alpha", celu_alpha, positive=True)
    check_classes(classes)

    def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
        bias = norm == "none" and norm_bias
        return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=bias)

    def norm_act(channels: int, i: int | str = "") -> dict[str, nn.Module | None]:
        made = make_norm(norm, channels, eps=eps, scale=norm_scale, bias=norm_bias, ghost_splits=ghost_splits)
        return {f"norm{i}": made, f"act{i}": make_act(act, celu_alpha)}

    def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        convs = {"conv1": conv(c_in, c_out, stride=stride), **norm_act(c_out, 2), "conv2": conv(c_out, c_out)}
        shortcut = nn.Identity() if stride == 1 else conv(c_in, c_out, kernel=1, stride=stride)
        added = Sum(OrderedDict(branch=_sequential(convs), shortcut=shortcut))
        return _sequential({**norm_act(c_in, 1), "sum": added})

    parts: dict[str, nn.Module] = {
        "prep": _sequential({"conv": conv(3, width), **(norm_act(width) if duplicate else {})})
    }
    c_in = width
    for i, (times, stride) in enumerate(((1, 1), (2, 2), (4, 2), (4, 2)), start=1):
        c_out = times * width
        blocks = {"block0": block(c_in, c_out, stride), "block1": block(c_out, c_out, 1)}
        parts[f"layer{i}"], c_in = _sequential(blocks), c_out
    parts["pool"] = HEADS["max+avg"]()
    parts["linear"] = nn.Linear(2 * c_in, classes)
    parts["logits"] = Scale(logit_scale)
    net = nn.Sequential(OrderedDict(parts))
    initialise(net, seed, init or ("he" if norm == "none" else "torch"), norm_init=norm_init)
    return net


def _sequential(parts: dict[str, nn.Module | None]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((k, m) for k, m in parts.items() if m is not None))
