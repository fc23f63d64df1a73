"""What a net takes from the training images before its first step."""

from __future__ import annotations

import torch
from torch import nn

from .modes import modes_kept
from .norms import FrozenNorm, capture_statistics
from .whitening import Whiten

WHITEN_IMAGES = 10_000
CAPTURE_IMAGES = 512


def images_to_prepare(net: nn.Module) -> int:
    """How many images `prepare` reads at most: 0 for a net that nothing is fitted in."""
    modules = list(net.modules())
    if any(isinstance(m, Whiten) for m in modules):
        return WHITEN_IMAGES
    return CAPTURE_IMAGES if any(isinstance(m, FrozenNorm) for m in modules) else 0


@torch.no_grad()
def prepare(net: nn.Module, images: torch.Tensor) -> None:
    """Fill what is fitted to data before training: whitening filters, then the statistics of frozen norms.

    images: [N, 3, H, W], the first training images, normalised. Filters are of the first 10,000 at most, statistics
    of the first 512, which the net sees in one forward pass in evaluation mode; modes are put back. A net without
    either is not run. Raises DynamicsError for images that cannot be whitened.
    """
    for module in net.modules():
        if isinstance(module, Whiten):
            module.fit(images[:WHITEN_IMAGES])
    with modes_kept(net):
        capture_statistics(net.eval(), images[:CAPTURE_IMAGES])
