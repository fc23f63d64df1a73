"""Convolutional nets: stages as data, and the nets that are built from them."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..errors import DynamicsError, unknown
from .blocks import (
    HEADS,
    NORM_INITS,
    ORDERS,
    Residual,
    Scale,
    check_classes,
    check_flag,
    check_names,
    check_norm_arguments,
    check_number,
    check_whole,
    conv_block,
    initialise,
)
from .whitening import Whiten

BRANCHES = ("residual", "extra")
DOWNS: dict[str, dict[str, Any]] = {
    "pool": {"pool": True},
    "stride": {"pool": False, "stride": 2},
    "stride1x1": {"pool": False, "stride": 2, "kernel": 1},
}
"""What each way to halve a stage is to `conv_block`."""


@dataclass(frozen=True)
class Stage:
    """One stage: a convolution block to `channels`, which halves the image if `pool`, then a branch or none.

    branch: "residual" adds x + two blocks of the same channels; "extra" appends one block of the same channels. down:
    how the block halves: "pool", a 3x3 convolution and 2x2 max-pooling; "stride", a 3x3 convolution of stride 2;
    "stride1x1", a 1x1 convolution of stride 2, which sees a quarter of the pixels. Without `pool` the convolution is
    3x3 of stride 1. Raises DynamicsError for arguments out of range.
    """

    channels: int
    pool: bool = True
    branch: str | None = None
    down: str = "pool"

    def __post_init__(self) -> None:
        check_whole("a stage's channels", self.channels, 1, 65536)
        check_flag("a stage's pool", self.pool)
        if self.branch is not None and self.branch not in BRANCHES:
            raise unknown("branch", self.branch, BRANCHES)
        if self.down not in DOWNS:
            raise unknown("down", self.down, DOWNS)


def resnet9(
    width: int = 64,
    *,
    norm: str = "batch",
    act: str = "relu",
    celu_alpha: float = 0.3,
    order: str = "norm-act-pool",
    logit_scale: float = 0.125,
    whiten: bool = False,
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
    norm, activation and pooling after a convolution; celu_alpha: of act "celu"; whiten: the first convolution is a
    fixed whitening of patches, then 1x1 (post 8); eps: of the norms; norm_scale, norm_bias: whether norms learn
    them (without a norm, norm_bias is the convolutions' bias); ghost_splits: parts of a batch, for ghost norm; init:
    "torch" (kaiming_uniform, a=sqrt(5)) or "he"; by default "he" where there is no norm. Raises DynamicsError for
    arguments out of range.
    """
    stages = _doubling(width, ("residual", None, "residual"))
    return staged(
        width, stages, norm=norm, act=act, celu_alpha=celu_alpha, order=order, logit_scale=logit_scale, whiten=whiten,
        classes=classes, eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits, init=init,
        seed=seed,
    )  # fmt: skip


def plain8(
    width: int = 64,
    *,
    norm: str = "batch",
    act: str = "relu",
    celu_alpha: float = 0.3,
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
        width, stages, norm=norm, act=act, celu_alpha=celu_alpha, order=order, logit_scale=logit_scale,
        input_scale=input_scale, classes=classes, eps=eps, norm_scale=norm_scale, norm_bias=norm_bias,
        ghost_splits=ghost_splits, init=init, classifier_gain=2.0, seed=seed,
    )  # fmt: skip


def _doubling(width: int, branches: tuple[str | None, ...]) -> tuple[Stage, ...]:
    """Stages of twice, four times, ... the width of the prep block."""
    check_whole("width", width, 1, 4096)
    return tuple(Stage(width << i, branch=branch) for i, branch in enumerate(branches, start=1))


def staged(
    width: int = 64,
    stages: tuple[Stage, ...] = (),
    *,
    stages_at: int | None = None,
    norm: str = "batch",
    act: str = "relu",
    celu_alpha: float = 0.3,
    order: str = ORDERS[0],
    repeats: tuple[int, ...] = (),
    head: str = "max",
    linear_bias: bool = False,
    logit_scale: float = 0.125,
    input_scale: float | None = None,
    whiten: bool = False,
    classes: int = 10,
    eps: float = 1e-5,
    norm_scale: bool = True,
    norm_bias: bool = True,
    norm_init: str = "one",
    ghost_splits: int = 16,
    init: str | None = None,
    classifier_gain: float = 1.0,
    seed: int = 0,
) -> nn.Sequential:
    """A net of a prep block of `width` channels, then stages, global pooling and a linear classifier.

    Images [B, 3, H, W] -> logits [B, classes]. stages_at: the width that the stages' channels are written for, so that
    at another width they are scaled in proportion; by default they are as written. repeats: how often norm and
    activation follow the convolution of prep and of each stage (once). head: "max", "avg" or "max+avg", which gives
    the classifier both. norm_init: of the scales that norms learn, "one" or "uniform", drawn from 0 to 1 as by PyTorch
    0.4. input_scale: a factor on the images. classifier_gain: with init "he", the classifier's weights have variance
    classifier_gain / fan_in. Other arguments as of `resnet9`. Modules: whiten, input (where asked for), prep, layer1,
    layer1x (its extra block), layer2, ..., pool, linear, logits. Raises DynamicsError for arguments out of range.
    """
    check_names(norm=norm, act=act, order=order, init=init)
    for kind, name, known in (("head", head, HEADS), ("norm_init", norm_init, NORM_INITS)):
        if name not in known:
            raise unknown(kind, name, known)
    check_whole("width", width, 1, 4096)
    check_norm_arguments(eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits)
    check_number("logit_scale", logit_scale)
    check_number("celu_alpha", celu_alpha, positive=True)
    check_number("classifier_gain", classifier_gain, positive=True)
    check_flag("whiten", whiten)
    check_flag("linear_bias", linear_bias)
    check_classes(classes)
    plan = _widths(width, stages, stages_at)
    times = _times(repeats, 1 + len(plan))
    block = partial(
        conv_block, norm=norm, act=act, celu_alpha=celu_alpha, order=order, eps=eps, norm_scale=norm_scale,
        norm_bias=norm_bias, ghost_splits=ghost_splits,
    )  # fmt: skip
    parts: dict[str, nn.Module] = {}
    if whiten:
        parts["whiten"] = Whiten(3)
    if input_scale is not None:
        check_number("input_scale", input_scale, positive=True)
        parts["input"] = Scale(input_scale)
    first = {"c_in": 27, "kernel": 1} if whiten else {"c_in": 3}
    parts["prep"] = block(**first, c_out=width, pool=False, repeats=times[0])
    c_in = width
    for i, (stage, channels) in enumerate(plan, start=1):
        down = DOWNS[stage.down] if stage.pool else {"pool": False}
        layer = parts[f"layer{i}"] = block(c_in, channels, **down, repeats=times[i])
        if stage.branch == "residual":
            pair = ((name, block(channels, channels, pool=False)) for name in ("res1", "res2"))
            layer.add_module("residual", Residual(OrderedDict(pair)))
        elif stage.branch == "extra":
            parts[f"layer{i}x"] = block(channels, channels, pool=False)
        c_in = channels
    parts["pool"] = HEADS[head]()
    parts["linear"] = nn.Linear(c_in * (1 + (head == "max+avg")), classes, bias=linear_bias)
    parts["logits"] = Scale(logit_scale)
    net = nn.Sequential(OrderedDict(parts))
    how = init or ("he" if norm == "none" else "torch")
    initialise(net, seed, how, classifier_gain=classifier_gain, norm_init=norm_init)
    return net


def _widths(width: int, stages: object, stages_at: int | None) -> list[tuple[Stage, int]]:
    """Each stage with its channels at this width."""
    if not isinstance(stages, tuple | list) or not stages or not all(isinstance(s, Stage) for s in stages):
        raise DynamicsError(f"stages must be one Stage or more, as in stages=(Stage(128), Stage(256)), got {stages!r}")
    if stages_at is None:
        return [(stage, stage.channels) for stage in stages]
    check_whole("stages_at", stages_at, 1, 4096)
    for stage in stages:
        if stage.channels * width % stages_at:
            least = stages_at // math.gcd(stages_at, stage.channels)
            raise DynamicsError(
                f"{stage.channels} channels at width {stages_at} are no whole number at width {width}: "
                f"take a multiple of {least}"
            )
    return [(stage, stage.channels * width // stages_at) for stage in stages]


def _times(repeats: object, blocks: int) -> tuple[int, ...]:
    if repeats == ():
        return (1,) * blocks
    if not isinstance(repeats, tuple | list) or len(repeats) != blocks:
        raise DynamicsError(f"repeats must be {blocks} whole numbers, for prep and each stage, got {repeats!r}")
    for i in repeats:
        check_whole("each of repeats", i, 1, 64)
    return tuple(repeats)
