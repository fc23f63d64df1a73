"""Convolutional nets: stages as data, and the nets that are built from them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from torch import nn

from ..errors import unknown
from .blocks import (
    GlobalMaxPool,
    Residual,
    Scale,
    check_classes,
    check_names,
    check_norm_arguments,
    check_number,
    check_whole,
    conv_block,
    initialise,
)

BRANCHES = ("residual", "extra")


@dataclass(frozen=True)
class Stage:
    """One stage: a 3x3 convolution block to `channels`, halved by max-pooling if `pool`, then a branch or none.

    branch: "residual" adds x + two blocks of the same channels; "extra" appends one block of the same channels.
    """

    channels: int
    pool: bool = True
    branch: str | None = None


def resnet9(
    width: int = 64,
    *,
    norm: str = "batch",
    act: str = "relu",
    order: str = "norm-act-pool",
    logit_scale: float = 0.125,
    classes: int = 10,
    eps: float = 1e-5,
    norm_scale: bool = True,
    norm_bias: bool = True,
    ghost_splits: int = 16,
    init: str | None = None,
    seed: int = 0,
) -> nn.Sequential:
    """Page's nine-layer residual net (post 4, Residual:L1+L3): 6.57 M weights and 379.3 M MAC an image at width 64.

    Images [B, 3, H, W] (H, W multiples of 8) -> logits [B, classes]. norm: batch, frozen, ghost or none; order: of
    norm, activation and pooling after a convolution; eps: of the norms; norm_scale, norm_bias: whether norms learn
    them (without a norm, norm_bias is the convolutions' bias); ghost_splits: parts of a batch, for ghost norm; init:
    "torch" (kaiming_uniform, a=sqrt(5)) or "he"; by default "he" where there is no norm. Raises DynamicsError for
    arguments out of range.
    """
    stages = _doubling(width, ("residual", None, "residual"))
    return staged(
        width, stages, norm=norm, act=act, order=order, logit_scale=logit_scale, classes=classes, eps=eps,
        norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits, init=init, seed=seed,
    )  # fmt: skip


def plain8(
    width: int = 64,
    *,
    norm: str = "batch",
    act: str = "relu",
    order: str = "norm-act-pool",
    logit_scale: float = 0.125 * 6**-0.5,
    input_scale: float = 2**-0.5,
    classes: int = 10,
    eps: float = 1e-5,
    norm_scale: bool = False,
    norm_bias: bool = False,
    ghost_splits: int = 16,
    init: str = "he",
    seed: int = 0,
) -> nn.Sequential:
    """Page's eight-layer net without branches (post 7): 4.65 M weights and 341.5 M MAC an image at width 64.

    Arguments as of `resnet9`; order="act-norm-pool" has the norm after the activation. As in post 7, the scale and
    bias of norms are fixed at 1 and 0, so that the nets with and without norm have the same parameters, every weight
    is drawn by He's rule, the classifier's too (logit_scale makes up for it), and images are scaled by 1/sqrt(2):
    of variance 1 before, they give outputs of variance 1 in every convolution that follows a ReLU.
    """
    stages = _doubling(width, ("extra", "extra", "extra"))
    return staged(
        width, stages, norm=norm, act=act, order=order, logit_scale=logit_scale, input_scale=input_scale,
        classes=classes, eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits, init=init,
        classifier_gain=2.0, seed=seed,
    )  # fmt: skip


def _doubling(width: int, branches: tuple[str | None, ...]) -> tuple[Stage, ...]:
    """Stages of twice, four times, ... the width of the prep block."""
    check_whole("width", width, 1, 4096)
    return tuple(Stage(width << i, branch=branch) for i, branch in enumerate(branches, start=1))


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
    input_scale: float | None = None,
    classifier_gain: float = 1.0,
    norm_scale: bool = True,
    norm_bias: bool = True,
    ghost_splits: int = 16,
) -> nn.Sequential:
    """A net of a prep block of `width` channels, then stages, global max-pool and a linear classifier without bias.

    Modules: input (if images are scaled), prep, layer1, layer1x (its extra block), layer2, ..., pool, linear, logits.
    """
    check_names(norm=norm, act=act, order=order, init=init)
    check_whole("width", width, 1, 4096)
    check_norm_arguments(eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits)
    check_number("logit_scale", logit_scale)
    check_classes(classes)
    block = partial(
        conv_block, norm=norm, act=act, order=order, eps=eps, norm_scale=norm_scale, norm_bias=norm_bias,
        ghost_splits=ghost_splits,
    )  # fmt: skip
    parts: dict[str, nn.Module] = {}
    if input_scale is not None:
        check_number("input_scale", input_scale, positive=True)
        parts["input"] = Scale(input_scale)
    parts["prep"] = block(3, width, pool=False)
    channels = width
    for i, stage in enumerate(stages, start=1):
        layer = parts[f"layer{i}"] = block(channels, stage.channels, pool=stage.pool)
        channels = stage.channels
        if stage.branch == "residual":
            pair = ((name, block(channels, channels, pool=False)) for name in ("res1", "res2"))
            layer.add_module("residual", Residual(OrderedDict(pair)))
        elif stage.branch == "extra":
            parts[f"layer{i}x"] = block(channels, channels, pool=False)
        elif stage.branch is not None:
            raise unknown("branch", stage.branch, BRANCHES)
    parts["pool"] = GlobalMaxPool()
    parts["linear"] = nn.Linear(channels, classes, bias=False)
    parts["logits"] = Scale(logit_scale)
    net = nn.Sequential(OrderedDict(parts))
    initialise(net, seed, init or ("he" if norm == "none" else "torch"), classifier_gain=classifier_gain)
    return net
