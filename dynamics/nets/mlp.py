"""Deep fully connected nets, of post 7's study of initial weights."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import nn

from ..errors import DynamicsError
from .blocks import ACTIVATIONS, check_classes, check_names, check_norm_arguments, check_whole, initialise
from .meprop import TopKLinear
from .norms import make_norm


class Flatten(nn.Module):
    """[B, ...] -> [B, inputs]; raises DynamicsError where that is not their number."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.inputs:
            shape = "x".join(map(str, x.shape[1:]))
            raise DynamicsError(
                f"this net takes {self.inputs} inputs, got {shape}: build it with inputs={flat.shape[1]}"
            )
        return flat

    def extra_repr(self) -> str:
        return f"inputs={self.inputs}"


def mlp(
    depth: int = 50,
    width: int = 512,
    *,
    act: str = "relu",
    norm: str = "none",
    inputs: int = 3072,
    classes: int = 10,
    eps: float = 1e-5,
    norm_scale: bool = True,
    norm_bias: bool = True,
    ghost_splits: int = 16,
    top_k: int | None = None,
    init: str = "he",
    seed: int = 0,
) -> nn.Sequential:
    """A fully connected net of `depth` hidden layers of `width` units and a linear classifier (post 7).

    Images [B, 3, H, W] or vectors [B, ...] of `inputs` numbers -> logits [B, classes]. Modules: flatten, layer1, ...,
    layer{depth} (each of linear, norm, act), linear. init: "he", of variance 2 / fan_in, or 1 / fan_in for act
    "identity", a linear net; or "torch". act "shifted_relu" keeps the spread that ReLU layers lose with depth. top_k:
    hidden layers are meProp's, `TopKLinear` with this k. Other arguments as of `resnet9`. Raises DynamicsError for
    arguments out of range.
    """
    check_names(norm=norm, act=act, init=init)
    check_norm_arguments(eps=eps, norm_scale=norm_scale, norm_bias=norm_bias, ghost_splits=ghost_splits)
    for name, value, least, most in (
        ("depth", depth, 1, 10_000),
        ("width", width, 1, 65536),
        ("inputs", inputs, 1, 10**8),
    ):
        check_whole(name, value, least, most)
    check_classes(classes)
    if top_k is not None:
        check_whole("top_k", top_k, 1, width)
    make_linear = nn.Linear if top_k is None else partial(TopKLinear, k=top_k)
    parts: dict[str, nn.Module] = {"flatten": Flatten(inputs)}
    for i in range(1, depth + 1):
        layer = {
            "linear": make_linear(inputs if i == 1 else width, width, bias=norm == "none" and norm_bias),
            "norm": make_norm(norm, width, eps=eps, scale=norm_scale, bias=norm_bias, ghost_splits=ghost_splits),
            "act": ACTIVATIONS[act](),
        }
        parts[f"layer{i}"] = nn.Sequential(OrderedDict((k, m) for k, m in layer.items() if m is not None))
    parts["linear"] = nn.Linear(width, classes, bias=False)
    net = nn.Sequential(OrderedDict(parts))
    initialise(net, seed, init, gain=1.0 if act == "identity" else 2.0)
    return net
