"""The residual nets of He et al. for 32x32 images, in both forms, and stochastic depth."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DynamicsError, unknown
from .blocks import (
    ACTIVATIONS,
    GlobalAvgPool,
    check_classes,
    check_flag,
    check_names,
    check_norm_arguments,
    check_number,
    check_whole,
    initialise,
)
from .norms import make_norm

SURVIVAL_RULES = ("constant", "linear")
SHORTCUTS = ("pad", "project")


class StochasticDepth(nn.Sequential):
    """shortcut + branch(x), where training leaves the branch out of a pass with probability 1 - survival.

    A branch that is left out is not computed: its norms' statistics stay, and its gradients are absent (zero). In
    evaluation the branch counts `survival` times, which is its mean. Each pass in training makes one draw, for the
    whole batch, of torch's global generator; none at survival 1. Source: Huang et al. 2016, eqs. 2 and 5.
    """

    adds = True

    def __init__(self, *branch: nn.Module | OrderedDict[str, nn.Module], survival: float = 1.0) -> None:
        super().__init__(*branch)
        check_survival(survival)
        self.survival = survival

    def forward(self, x: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        shortcut = x if shortcut is None else shortcut
        if not self.training:
            return torch.add(shortcut, super().forward(x), alpha=self.survival)
        # drawn on the CPU, so that no device has to be waited for
        if self.survival < 1 and torch.rand((), device="cpu") >= self.survival:
            return shortcut
        return shortcut + super().forward(x)

    def extra_repr(self) -> str:
        return f"survival={self.survival:g}"


class ResidualBlock(nn.Module):
    """act(shortcut(x) + branch(x))."""

    adds = True

    def __init__(self, branch: StochasticDepth, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.act = branch, shortcut, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.branch(x, self.shortcut(x)))


class PadShortcut(nn.Module):
    """[B, C, H, W] -> [B, channels, H / stride, W / stride]: every stride-th pixel, and zeros in the new channels.

    Source: He et al. 2015, section 3.3, option A.
    """

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels - x.shape[1]))

    def extra_repr(self) -> str:
        return f"{self.channels}, stride={self.stride}"


def survivals(blocks: int, survival: float, rule: str) -> tuple[float, ...]:
    """The probability with which each of the blocks takes part in a training pass, from the first to the last.

    rule: "constant"; or "linear", from 1 (of the image itself, before the first block) to `survival` of the last, so
    that (1 + survival) / 2 of a deep net is trained. Raises DynamicsError for arguments out of range. Source: Huang et
    al. 2016, eq. 4.
    """
    check_survival(survival)
    if rule not in SURVIVAL_RULES:
        raise unknown("survival_rule", rule, SURVIVAL_RULES)
    if rule == "constant":
        return (survival,) * blocks
    return tuple(1 - i / blocks * (1 - survival) for i in range(1, blocks + 1))


def check_survival(survival: object) -> None:
    """Raise DynamicsError where survival is no probability above 0."""
    check_number("survival", survival, positive=True)
    if survival > 1:
        raise DynamicsError(f"survival is the probability that a block is trained, at most 1, got {survival!r}")


def resnet20(
    width: int = 16,
    *,
    depth: int = 20,
    pre_activation: bool = False,
    survival: float = 1.0,
    survival_rule: str = "constant",
    shortcut: str = "pad",
    norm: str = "batch",
    act: str = "relu",
    classes: int = 10,
    eps: float = 1e-5,
    norm_scale: bool = True,
    norm_bias: bool = True,
    ghost_splits: int = 16,
    init: str = "he",
    seed: int = 0,
) -> nn.Sequential:
    """He et al.'s residual net of 6n + 2 layers: 0.27 M weights and 40.6 M MAC an image at width 16 and depth 20.

    Images [B, 3, H, W] -> logits [B, classes]: a convolution, three stages of n blocks (two 3x3 convolutions beside a
    shortcut) with width, 2 width and 4 width channels, the image halved before the second and the third, global
    average pool, a linear layer with bias. Modules: prep, layer1.block1, ..., layer3.block{n}, final (of the
    pre-activation form), pool, linear.

    pre_activation: norm and activation before each convolution and none after the sum, but for the first block, whose
    norm and activation come before its two paths part, and the last, which more of them follow. shortcut: where
    channels double, "pad" is PadShortcut, "project" a 1x1 convolution (with a norm in the original form). survival,
    survival_rule: of StochasticDepth, see `survivals`. Other arguments as of `resnet9`. Raises DynamicsError for
    arguments out of range. Sources: He et al. 2015, section 4.2; He et al. 2016 (identity mappings), section 4.1 and
    appendix.
    """
    check_names(norm=norm, act=act, init=init)
    check_norm_arguments(eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits)
    check_whole("width", width, 1, 4096)
    check_whole("depth", depth, 8, 10_000)
    check_flag("pre_activation", pre_activation)
    check_classes(classes)
    if depth % 6 != 2:
        raise DynamicsError(f"depth must be 6 n + 2, got {depth}: take {depth - (depth - 2) % 6}")
    if shortcut not in SHORTCUTS:
        raise unknown("shortcut", shortcut, SHORTCUTS)
    n = depth // 6
    chances = iter(survivals(3 * n, survival, survival_rule))
    conv = partial(nn.Conv2d, bias=norm == "none" and norm_bias)
    normed = partial(make_norm, norm, eps=eps, scale=norm_scale, bias=norm_bias, ghost_splits=ghost_splits)

    def block(c_in: int, c_out: int, stride: int, first: bool) -> ResidualBlock:
        conv1, conv2 = conv(c_in, c_out, 3, stride=stride, padding=1), conv(c_out, c_out, 3, padding=1)
        short: nn.Module = nn.Identity()
        if c_in != c_out and shortcut == "pad":
            short = PadShortcut(c_out, stride)
        elif c_in != c_out:
            norm_after = None if pre_activation else normed(c_out)
            short = _chain(conv=conv(c_in, c_out, 1, stride=stride), norm=norm_after)
        if pre_activation:
            before = {} if first else {"norm1": normed(c_in), "act1": ACTIVATIONS[act]()}
            parts = {**before, "conv1": conv1, "norm2": normed(c_out), "act2": ACTIVATIONS[act](), "conv2": conv2}
        else:
            parts = {"conv1": conv1, "norm1": normed(c_out), "act1": ACTIVATIONS[act](), "conv2": conv2}
            parts["norm2"] = normed(c_out)
        branch = StochasticDepth(_named(**parts), survival=next(chances))
        return ResidualBlock(branch, short, nn.Identity() if pre_activation else ACTIVATIONS[act]())

    net: dict[str, nn.Module] = {
        "prep": _chain(conv=conv(3, width, 3, padding=1), norm=normed(width), act=ACTIVATIONS[act]())
    }
    channels = width
    for i in range(3):
        blocks = {}
        for j in range(n):
            halve = i > 0 and j == 0
            blocks[f"block{j + 1}"] = block(channels, width << i, 2 if halve else 1, first=i == j == 0)
            channels = width << i
        net[f"layer{i + 1}"] = _chain(**blocks)
    if pre_activation:
        net["final"] = _chain(norm=normed(channels), act=ACTIVATIONS[act]())
    net |= {"pool": GlobalAvgPool(), "linear": nn.Linear(channels, classes)}
    whole = _chain(**net)
    initialise(whole, seed, init)
    return whole


def _named(**parts: nn.Module | None) -> OrderedDict[str, nn.Module]:
    return OrderedDict((name, module) for name, module in parts.items() if module is not None)


def _chain(**parts: nn.Module | None) -> nn.Sequential:
    """The modules that are not None, one after another."""
    return nn.Sequential(_named(**parts))
