"""Norms of channels, their statistics, and which layer each one follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DynamicsError

NORMS = ("batch", "frozen", "ghost", "sync", "none")


class BatchNorm(nn.Module):
    """Batch norm of inputs [B, C, ...]: torch's, without its counter of batches, which nothing here reads.

    scale, bias: whether they are learned; if not, they are 1 and 0 and not among the parameters.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, scale: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if scale else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if bias else None)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics, learned = (self.running_mean, self.running_var), (self.weight, self.bias)
        return F.batch_norm(x, *statistics, *learned, self.training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        fixed = [name for name in ("weight", "bias") if getattr(self, name) is None]
        return ", ".join([str(self.num_features), f"eps={self.eps}", *(f"no {name}" for name in fixed)])


class FrozenNorm(BatchNorm):
    """Batch norm with fixed statistics: its buffers, which `capture_statistics` sets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class GhostNorm(BatchNorm):
    """Batch norm over each of `splits` parts of a training batch [B, C, ...]; part j is the images j, j + splits, ...

    The running statistics [C] are the mean over parts of each part's own, which is what post 8 evaluates with: the
    average is linear with one momentum, so the mean of the parts' averages is the average of their means. Raises
    DynamicsError, in training, for a batch that the splits do not divide. Source: Hoffer et al. 2017, section 4; Page,
    post 8.
    """

    def __init__(
        self,
        num_features: int,
        splits: int = 16,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        scale: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, scale=scale, bias=bias)
        self.splits = splits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        n, s = len(x), self.splits
        if n % s:
            raise DynamicsError(f"ghost norm cannot split a batch of {n} into {s} equal parts: take a multiple of {s}")
        if x.numel() == s * x.shape[1]:
            raise DynamicsError(f"{s} parts of a batch of {n} have one value a channel: take fewer, or a larger batch")
        # parts side by side as channels: a view of a contiguous tensor, and otherwise a copy
        parts = x.contiguous().view(n // s, s * x.shape[1], *x.shape[2:])
        mean, var, weight, bias = (
            None if t is None else t.repeat(s) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        y = F.batch_norm(parts, mean, var, weight, bias, True, self.momentum, self.eps).view(x.shape)
        with torch.no_grad():  # out= and not copy_, which torch.func refuses inside its transforms
            torch.mean(mean.view(s, -1), 0, out=self.running_mean)
            torch.mean(var.view(s, -1), 0, out=self.running_var)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            y = y.contiguous(memory_format=torch.channels_last)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, splits={self.splits}"


def make_norm(
    norm: str, num_features: int, *, eps: float, scale: bool, bias: bool, ghost_splits: int
) -> BatchNorm | None:
    """The module of a norm of `NORMS`; none for "none"."""
    from .syncnorm import SyncNorm  # which is a BatchNorm

    kinds: dict[str, Callable[[], BatchNorm | None]] = {
        "batch": lambda: BatchNorm(num_features, eps, scale=scale, bias=bias),
        "frozen": lambda: FrozenNorm(num_features, eps, scale=scale, bias=bias),
        "ghost": lambda: GhostNorm(num_features, ghost_splits, eps=eps, scale=scale, bias=bias),
        "sync": lambda: SyncNorm(num_features, eps, scale=scale, bias=bias),
        "none": lambda: None,
    }
    return kinds[norm]()


@torch.no_grad()
def capture_statistics(net: nn.Module, x: torch.Tensor) -> None:
    """Set every FrozenNorm's statistics to those of its own inputs when the net sees x [B, ...].

    One forward pass: each norm captures before it is applied, so the result is that of batch norm on this batch.
    """

    def capture(norm: FrozenNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        # contiguous, so that the layout does not decide the rounding; in bfloat16 two digits would be left
        seen = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32)).contiguous()
        variance, mean = torch.var_mean(seen, dim=[d for d in range(seen.ndim) if d != 1], correction=0)
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
    filters and no addition lies between them (a module that has `adds`, as `Residual` and `Sum` do): what a norm sees
    after one is no filter's. A net that registers its modules in another order than it calls them is paired wrongly.
    """
    pairs: dict[str, NormOf] = {}
    last: tuple[str, int] | None = None
    sums = [path for path, module in net.named_modules() if getattr(module, "adds", False) is True]
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            last = (path, module.weight.shape[0])
        elif last and getattr(module, "running_var", None) is not None:
            added = any(path.startswith(f"{s}.") != last[0].startswith(f"{s}.") for s in sums)
            if len(module.running_var) == last[1] and not added:
                pairs[last[0]] = NormOf(path, module.eps)
            last = None
    return pairs
