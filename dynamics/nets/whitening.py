"""Whitening of input patches: a fixed first convolution whose filters are fitted to the training images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DynamicsError

SIDE = 3
CHUNK = 16


class Whitening(NamedTuple):
    """Filters [9C, C, 3, 3] and the eigenvalues [9C], largest first, of the covariance of patches; float64, CPU."""

    filters: torch.Tensor
    eigenvalues: torch.Tensor


@torch.no_grad()
def whitening_filters(images: torch.Tensor, eps: float = 1e-2) -> Whitening:
    """The filters V_i / sqrt(L_i + eps) that give patches of variances L_i / (L_i + eps), uncorrelated.

    images: [N, C, H, W], normalised; every 3x3 patch inside them counts. V_i and L_i are of the uncentred covariance,
    the sum of outer products of the n patches over n - 1; the first entry of V_i of at least half its largest size is
    positive. Raises DynamicsError for images without two patches or with values that are not finite. Source: Page,
    post 8.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise DynamicsError(
            f"whitening takes floating-point images [N, C, H, W], got {images.dtype} {list(images.shape)}"
        )
    n = len(images) * max(images.shape[2] - SIDE + 1, 0) * max(images.shape[3] - SIDE + 1, 0)
    if n < 2:
        size = "x".join(map(str, images.shape[2:]))
        raise DynamicsError(f"{len(images)} images of {size} have {n} patches of 3x3: whiten more or larger ones")
    size = images.shape[1] * SIDE**2
    covariance = torch.zeros(size, size, dtype=torch.float64)
    # on the CPU and in float64, so that every device gets the same filters; few images at a time, which is faster
    for chunk in images.split(CHUNK):
        patches = F.unfold(chunk.to("cpu", torch.float64), SIDE).transpose(0, 1).flatten(1)
        covariance += patches @ patches.T
    covariance /= n - 1
    if not covariance.isfinite().all():
        raise DynamicsError("the images hold values that are not finite: whitening needs finite ones")
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.T.flip(0)
    # an eigenvector's sign is free, and differs between libraries
    large = vectors.abs() >= vectors.abs().amax(1, keepdim=True) / 2
    vectors = vectors * vectors.gather(1, large.int().argmax(1, keepdim=True)).sign()
    filters = vectors / (eigenvalues + eps).sqrt()[:, None]
    return Whitening(filters.view(size, images.shape[1], SIDE, SIDE), eigenvalues)


class Whiten(nn.Module):
    """The whitening convolution [B, C, H, W] -> [B, 9C, H, W]: 3x3, padded with zeros, its filters a buffer.

    `fit` sets the filters; `prepare`, which training calls, does so for a whole net. Raises DynamicsError in a forward
    pass before that.
    """

    def __init__(self, channels: int = 3, *, eps: float = 1e-2) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.register_buffer("weight", torch.zeros(channels * SIDE**2, channels, SIDE, SIDE))
        self.fitted = False

    def fit(self, images: torch.Tensor) -> None:
        """Set the filters to those of `whitening_filters(images)`."""
        if images.shape[1:2] != (self.channels,):
            raise DynamicsError(f"this net whitens images [N, {self.channels}, H, W], got {list(images.shape)}")
        self.weight.copy_(whitening_filters(images, self.eps).filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # filters may also come with a state, so they are looked at: once, as a look waits for the device, and not where
        # it would break a compiled graph in two
        if not self.fitted and not torch.compiler.is_compiling():
            self.fitted = bool(self.weight.any())
            if not self.fitted:
                raise DynamicsError("this net's whitening filters are not fitted: call nets.prepare(net, images) first")
        return F.conv2d(x, self.weight, padding=SIDE // 2)

    def extra_repr(self) -> str:
        return f"{self.channels}, {len(self.weight)}, eps={self.eps}"
