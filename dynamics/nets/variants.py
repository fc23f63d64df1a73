"""Post 7's net with its norms tampered with, to ask what of batch norm it is that helps; reached by an import path.

Net("dynamics.nets.variants:noisy_plain8", width=8) and Net("dynamics.nets.variants:last_norm_plain8", width=8).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..rng import generator
from .blocks import check_number
from .convnets import plain8
from .norms import BatchNorm


class NoisyNorm(BatchNorm):
    """Batch norm whose outputs, in training, are shifted and stretched by noise that is drawn anew at every step.

    Of each channel a shift μ ~ U(-shift, shift) and a scale σ ~ U(1, stretch), and of each image in it
    m ~ U(μ - jitter, μ + jitter) and s ~ N(σ, jitter²): an output x becomes s x + m. The draws are named by (seed,
    name, step), where `step`, a buffer, counts forward passes in training mode, so that resuming repeats them. In
    evaluation mode it is batch norm. After Santurkar et al. 2018, arXiv 1805.11604, section 2.1 and appendix A; the
    default sizes are theirs as recalled, not checked.
    """

    step: torch.Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, scale: bool = True, bias: bool = True,
        shift: float = 0.5, stretch: float = 1.25, jitter: float = 0.1, seed: int = 0, name: str = "",
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, scale=scale, bias=bias)
        self.shift, self.stretch, self.jitter, self.seed, self.name = shift, stretch, jitter, seed, name
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        factor, offset = self.draw(len(x))
        with torch.no_grad():
            self.step.add_(1)
        there = (len(x), self.num_features) + (1,) * (x.ndim - 2)
        return y * factor.to(y).view(there) + offset.to(y).view(there)

    def draw(self, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The scales s and shifts m [images, channels] of the next training step."""
        draws = generator(self.seed, f"noise/{self.name}", int(self.step))
        of_channel = torch.rand(2, self.num_features, generator=draws)
        mean, sd = self.shift * (2 * of_channel[0] - 1), 1 + (self.stretch - 1) * of_channel[1]
        offset = mean + self.jitter * (2 * torch.rand(images, self.num_features, generator=draws) - 1)
        return sd + self.jitter * torch.randn(images, self.num_features, generator=draws), offset

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, shift={self.shift}, stretch={self.stretch}, jitter={self.jitter}"


def noisy_plain8(
    width: int = 64, *, shift: float = 0.5, stretch: float = 1.25, jitter: float = 0.1, classes: int = 10,
    seed: int = 0, **arguments: Any,
) -> nn.Sequential:  # fmt: skip
    """`plain8` with batch norm, and after every norm the noise of `NoisyNorm`; other arguments as of `plain8`.

    Raises DynamicsError for noise that is not finite.
    """
    for name, value in (("shift", shift), ("stretch", stretch), ("jitter", jitter)):
        check_number(name, value)
    net = plain8(width, norm="batch", classes=classes, seed=seed, **arguments)
    for path, module in list(net.named_modules()):
        if isinstance(module, BatchNorm):
            parent, _, name = path.rpartition(".")
            noisy = NoisyNorm(
                module.num_features, module.eps, module.momentum, scale=module.weight is not None,
                bias=module.bias is not None, shift=shift, stretch=stretch, jitter=jitter, seed=seed, name=path,
            )  # fmt: skip
            net.get_submodule(parent).add_module(name, noisy)
    return net


def last_norm_plain8(
    width: int = 64, *, logit_scale: float = 1.0, eps: float = 1e-5, classes: int = 10, seed: int = 0, **arguments: Any
) -> nn.Sequential:
    """`plain8` without norms but one: batch norm, without scale and bias, of the classifier's outputs.

    The mean and the variance of every logit are then those of the norm, times logit_scale, whatever the weights do.
    Other arguments as of `plain8`. Claim P7-18.
    """
    net = plain8(width, norm="none", logit_scale=logit_scale, classes=classes, seed=seed, **arguments)
    logits = net.logits
    del net.logits
    net.add_module("norm", BatchNorm(classes, eps, scale=False, bias=False))
    net.add_module("logits", logits)
    return net
