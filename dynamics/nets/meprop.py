"""meProp: layers whose backward pass follows only the largest parts of the gradient that arrives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .blocks import check_whole


class KeepLargest(torch.autograd.Function):
    """The identity; backward keeps the k gradients of largest magnitude along a dimension, and zeros for the others."""

    @staticmethod
    def forward(y: torch.Tensor, k: int, dim: int) -> torch.Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, int, int], output: torch.Tensor) -> None:
        _, ctx.k, ctx.dim = inputs

    @staticmethod
    @once_differentiable  # what it gives is no gradient of the loss, so its derivative would be no Hessian
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        kept = grad.abs().topk(ctx.k, ctx.dim, sorted=False).indices
        return torch.zeros_like(grad).scatter(ctx.dim, kept, grad.gather(ctx.dim, kept)), None, None


class TopKLinear(nn.Linear):
    """A linear layer [..., in] -> [..., out] whose inputs and weights get, of each row of the gradient of its outputs,
    only the k entries of largest magnitude.

    Forward and the bias's gradient are those of nn.Linear, and with k = out_features so is everything. The products of
    backward stay dense here: the layer shows what meProp does to training, and not its speed. Curvature refuses it,
    since what it computes is no gradient of the loss. Raises DynamicsError for k out of range. Source: Sun et al. 2017
    (meProp), section 3.1; dense gradients of biases as in the authors' program.
    """

    def __init__(self, in_features: int, out_features: int, k: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        check_whole("k", k, 1, out_features)
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.k == self.out_features:
            return super().forward(x)
        y = KeepLargest.apply(F.linear(x, self.weight), self.k, -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k={self.k}"


class TopKConv1x1(nn.Conv2d):
    """A 1x1 convolution [B, in, H, W] -> [B, out, H, W] that is a `TopKLinear` at each pixel of each image."""

    def __init__(self, in_channels: int, out_channels: int, k: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=bias)
        check_whole("k", k, 1, out_channels)
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.k == self.out_channels:
            return super().forward(x)
        y = KeepLargest.apply(F.conv2d(x, self.weight, stride=self.stride), self.k, -3)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k={self.k}"
