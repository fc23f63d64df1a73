"""Batch norm over the whole batch, where several processes have a part of it each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .norms import BatchNorm


class SyncNorm(BatchNorm):
    """Batch norm whose statistics in training are of the parts [B, C, ...] of all processes, of equal sizes, together.

    It is `BatchNorm` exactly in one process, in evaluation, and wherever `across_processes` is not in force: a probe
    that runs the net by itself, with a batch of its own, makes no process wait for another. Unlike
    torch.nn.SyncBatchNorm it works on the CPU. The variance is taken around the mean, so that no digits are lost.
    """

    across = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.across):
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        column = (-1, *(1,) * (x.ndim - 2))
        mean = _MeanOverProcesses.apply(wide.mean(dims))
        centred = wide - mean.view(column)
        variance = _MeanOverProcesses.apply(centred.square().mean(dims))
        n = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (n / (n - 1))).to(self.running_var.dtype), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        y = centred * (scale if self.weight is None else scale * self.weight).view(column)
        y = y if self.bias is None else y + self.bias.view(column)
        return y.to(x.dtype)


@contextmanager
def across_processes(net: nn.Module) -> Iterator[None]:
    """Let a net's `SyncNorm` modules wait for those of all other processes, in forward and backward passes alike.

    Every process must then run the same net, on parts of one size.
    """
    norms = [m for m in net.modules() if isinstance(m, SyncNorm)]
    for norm in norms:
        norm.across = True
    try:
        yield
    finally:
        for norm in norms:
            norm.across = False


class _MeanOverProcesses(torch.autograd.Function):
    """The mean of one tensor of every process; its own transpose, as every process's loss hangs on every tensor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return _MeanOverProcesses.apply(grad)
