"""Sizes of a net: weights and multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn

from .modes import modes_kept
from .whitening import Whiten


def count_weights(net: nn.Module) -> int:
    """Weights of convolutions and linear layers; norms' scales and biases are not counted (Page's count)."""
    return sum(p.numel() for p in net.parameters() if p.ndim >= 2)


@torch.no_grad()
def count_macs(net: nn.Module, shape: tuple[int, ...] = (3, 32, 32)) -> int:
    """Multiply-accumulates of convolutions, fixed ones too, and linear layers in a forward pass of one such input."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear | Whiten)]
    unfitted = [m for m in net.modules() if isinstance(m, Whiten) and not m.fitted]
    try:
        for module in unfitted:  # counting needs no data
            module.fitted = True
        parameter = next(net.parameters())
        with modes_kept(net):
            net.eval()(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module in unfitted:
            module.fitted = False
        for hook in hooks:
            hook.remove()
    return total
