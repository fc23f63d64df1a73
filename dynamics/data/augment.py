"""Training-time augmentation: what is done to images, as data, and the draws that decide it for an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..errors import DynamicsError
from ..rng import generator

ALPHAS = (1e-6, 1e6)


@dataclass(frozen=True)
class Augment:
    """Training-time augmentation: a random crop, a left-right flip, cutout and mixup, in this order.

    pad: the crop is of the image reflect-padded by so many pixels. flip: True flips each image with probability 1/2 in
    each epoch; "alternating" draws that once, for the first epoch, and turns the image over in every later one (Jordan
    2024, arXiv:2404.00498). cutout: the side in pixels of a square, wholly inside the image, that is set to 0, the mean
    colour. grouped: for crop, flip and cutout each, an epoch's images are shuffled and split into groups of even sizes
    (they differ by one at most), and each group is given one option, of all that there are or of `max_options` drawn
    anew each epoch (post 8, claim P8-3); False draws an option for each image. mixup: the α of λ ~ Beta(α, α), drawn
    for each batch, whose images and labels are mixed, λ to 1 - λ, with those of a permutation of it (Zhang et al. 2018,
    arXiv:1710.09412); 0 is none. Raises DynamicsError for a value out of range.
    """

    pad: int = 4
    flip: bool | str = True
    cutout: int = 0
    grouped: bool = False
    max_options: int = 200
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("pad", 0), ("cutout", 0), ("max_options", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise DynamicsError(f"Augment.{name} must be a whole number of at least {least}, got {value!r}")
        if self.flip not in (True, False, "alternating"):
            raise DynamicsError(f"Augment.flip must be True, False or 'alternating', got {self.flip!r}")
        if not isinstance(self.grouped, bool):
            raise DynamicsError(f"Augment.grouped must be True or False, got {self.grouped!r}")
        low, high = ALPHAS
        if not (isinstance(self.mixup, int | float) and (self.mixup == 0 or low <= self.mixup <= high)):
            raise DynamicsError(f"Augment.mixup must be 0 (none) or an α from {low:g} to {high:g}, got {self.mixup!r}")


class Draws(NamedTuple):
    """What one epoch does to its n images, in the order in which they come.

    order: int64 [n], which image; crop: int64 [n, 2], its top and left pixel in the padded image; flips: bool [n];
    corners: int64 [n, 2], the top and left pixel of the square that is cut out, or None without cutout.
    """

    order: torch.Tensor
    crop: torch.Tensor
    flips: torch.Tensor
    corners: torch.Tensor | None

    def to(self, device: torch.device) -> Draws:
        return Draws(*(None if d is None else d.to(device) for d in self))


def draw(augment: Augment, n: int, *, side: tuple[int, int], seed: int, epoch: int) -> Draws:
    """An epoch's draws for n images of side (height, width), in bulk, each from (seed, purpose, epoch).

    Raises DynamicsError where the images are smaller than the cutout.
    """
    order = torch.randperm(n, generator=generator(seed, "order", epoch))
    places = 2 * augment.pad + 1
    crops = generator(seed, "crop", epoch)
    if augment.grouped:
        crop = _points(_even(augment, n, places**2, crops), places)
    else:
        crop = torch.randint(places, (n, 2), generator=crops)
    if augment.flip == "alternating":
        flips = (_options(augment, n, 2, generator(seed, "flip")) + epoch)[order] % 2 == 1
    elif augment.flip:
        flips = _options(augment, n, 2, generator(seed, "flip", epoch)).bool()
    else:
        flips = torch.zeros(n, dtype=torch.bool)
    if not augment.cutout:
        return Draws(order, crop, flips, None)
    rows, columns = (s + 1 - augment.cutout for s in side)
    if min(rows, columns) < 1:
        raise DynamicsError(
            f"a cutout of {augment.cutout} pixels does not fit images of {side[0]}x{side[1]}: lower Augment.cutout"
        )
    cut = _options(augment, n, rows * columns, generator(seed, "cutout", epoch))
    return Draws(order, crop, flips, _points(cut, columns))


def draw_mixing(
    alpha: float, count: int, batch_size: int, *, seed: int, epoch: int
) -> tuple[list[float], torch.Tensor]:
    """Of each of an epoch's batches λ [count], and which image is each one's partner, int64 [count, batch_size]."""
    lams = np.random.default_rng(generator(seed, "mixup", epoch).initial_seed()).beta(alpha, alpha, count)
    # in multiples of 2**-24 both λ and 1 - λ are float32 numbers, and targets sum to exactly 1
    lams = np.round(lams * 2**24) / 2**24
    partners = torch.rand(count, batch_size, generator=generator(seed, "partner", epoch)).argsort(dim=1, stable=True)
    return lams.tolist(), partners


def cut_out(x: torch.Tensor, corners: torch.Tensor, size: int) -> None:
    """Set a square of each image to 0, in place: x [B, H, W, 3] contiguous, corners [B, 2] its top and left pixels."""
    height, width, channels = x.shape[1:]
    first = torch.arange(len(x), device=x.device) * (height * width) + corners[:, 0] * width + corners[:, 1]
    rows = first[:, None] + torch.arange(size, device=x.device) * width
    # the windows of `size` pixels overlap, but those that are the rows of squares do not
    x.view(-1).unfold(0, channels * size, channels).index_fill_(0, rows.view(-1), 0.0)


def mix(values: torch.Tensor, lam: float, partner: torch.Tensor) -> torch.Tensor:
    """λ times values plus 1 - λ times their partners'."""
    return values.index_select(0, partner).lerp_(values, lam)


def _options(augment: Augment, n: int, options: int, g: torch.Generator) -> torch.Tensor:
    """An option for each of n images: int64 [n]."""
    return _even(augment, n, options, g) if augment.grouped else torch.randint(options, (n,), generator=g)


def _even(augment: Augment, n: int, options: int, g: torch.Generator) -> torch.Tensor:
    chosen = torch.randperm(options, generator=g)[: augment.max_options]
    return chosen[torch.randperm(n, generator=g) % len(chosen)]


def _points(options: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows and columns [n, 2] of options that are numbered row by row."""
    return torch.stack([options // columns, options % columns], 1)
