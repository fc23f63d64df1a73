"""A split of images that is prepared once, and the batches drawn from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import DynamicsError
from .augment import Augment, cut_out, draw, draw_mixing, mix


class Batch(NamedTuple):
    """Images x, float32 [B, 3, H, W] in channels_last memory and normalised, and labels y, int64 [B].

    Under mixup y has each class's share of the target instead, float32 [B, classes], which cross-entropy takes as well.
    """

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images on one device, with the per-channel statistics that normalise them.

    images: uint8 [N, H, W, 3]; labels: int64 [N]; mean, std: per channel, on the 0 to 255 scale.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "arrays"
    _padded: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | torch.Tensor,
        labels: np.ndarray | torch.Tensor,
        *,
        classes: tuple[str, ...] | None = None,
        like: Split | None = None,
        name: str = "arrays",
    ) -> Split:
        """Check uint8 images [N, H, W, 3] and integer labels [N] and wrap them as a split.

        like: take classes and normalisation from this split (the training split, for a test split).
        Raises DynamicsError for a wrong dtype or shape, or labels outside the classes.
        """
        # copies: the caller's arrays may change later, be read-only or run backwards
        images, labels = (
            a.clone() if isinstance(a, torch.Tensor) else torch.tensor(np.array(a)) for a in (images, labels)
        )
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DynamicsError(
                f"{name}: images must be uint8 [N, height, width, 3], got {images.dtype} {list(images.shape)}: "
                "convert them with (255 * x).round().astype('uint8') and transpose channels last"
            )
        if labels.is_floating_point() or labels.is_complex() or labels.shape != images.shape[:1] or not len(labels):
            raise DynamicsError(
                f"{name}: labels must be integers [{len(images)}] (at least one), one per image, "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        labels = labels.to(torch.int64)
        classes = like.classes if like and classes is None else classes
        if classes is None and int(labels.min()) >= 0 and int(labels.max()) < 10_000:
            classes = tuple(str(i) for i in range(int(labels.max()) + 1))
        if classes is None or int(labels.min()) < 0 or int(labels.max()) >= len(classes):
            wanted = (
                f"there are {len(classes)} classes: number them 0 to {len(classes) - 1}"
                if classes
                else ("classes are numbered from 0: renumber them")
            )
            raise DynamicsError(f"{name}: labels run from {int(labels.min())} to {int(labels.max())}, but {wanted}")
        if like:
            mean, std = like.mean, like.std
        else:
            # counts are exact, so the statistics do not depend on the order of summation
            counts = torch.stack([torch.bincount(images[..., c].reshape(-1), minlength=256) for c in range(3)]).double()
            share, value = counts / counts.sum(1, keepdim=True), torch.arange(256.0, dtype=torch.float64)
            first, second = share @ value, share @ value.square()
            mean = tuple(first.tolist())
            # a constant channel has no scale of its own: leave it as it is
            std = tuple((second - first.square()).clamp_min(1.0).sqrt().tolist())
        return cls(images, labels, tuple(classes), mean, std, name)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | torch.Tensor) -> Split:
        """A part of the split (a slice or an index tensor), normalised as the whole."""
        part = replace(self, images=self.images[rows], labels=self.labels[rows])
        if not len(part):
            raise DynamicsError(f"{self.name}: this selection is empty; the split has {len(self)} images")
        return part

    def to(self, device: str | torch.device) -> Split:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @property
    def device(self) -> torch.device:
        return self.images.device

    def fingerprint(self) -> str:
        """A digest of images, labels and normalisation; equal splits have equal fingerprints."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        digest.update(repr((self.mean, self.std, self.classes)).encode())
        return digest.hexdigest()

    def padded(self, pad: int = 0) -> torch.Tensor:
        """All images normalised and reflect-padded, float32 [N, H + 2 pad, W + 2 pad, 3]; made once and kept."""
        if pad not in self._padded:
            if pad >= min(self.images.shape[1:3]):
                raise DynamicsError(
                    f"reflect padding of {pad} needs images larger than {pad} pixels: lower Augment.pad"
                )
            mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
            std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
            side = [s + 2 * pad for s in self.images.shape[1:3]]
            out = torch.empty(len(self), *side, 3, device=self.device)
            for first in range(0, len(self), 4096):
                rows = slice(first, first + 4096)
                x = (self.images[rows].permute(0, 3, 1, 2).float() - mean) / std
                out[rows] = F.pad(x, (pad,) * 4, mode="reflect").permute(0, 2, 3, 1)
            self._padded[pad] = out
        return self._padded[pad]


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    augment: Augment | None = None,
    start: int = 0,
) -> Iterator[Batch]:
    """Shuffled batches of one epoch, from batch `start` on; the incomplete last batch is dropped.

    Order and augmentation are drawn in bulk from (seed, purpose, epoch), for the whole epoch at once (claim P1-4), so
    batch k of an epoch is the same wherever one starts, and the order is the same whatever the augmentation. Raises
    DynamicsError where the split is smaller than one batch, or its images are too small for the augmentation.
    """
    n, device = len(split), split.device
    count = batches_per_epoch(split, batch_size)
    augment = augment or Augment(pad=0, flip=False)
    height, width = split.images.shape[1:3]
    pixels = split.padded(augment.pad)
    row, image = pixels.shape[2], pixels.shape[1] * pixels.shape[2]
    drawn = draw(augment, n, side=(height, width), seed=seed, epoch=epoch)
    order, crop, flips, corners = drawn.to(device)
    if augment.mixup:
        lams, partners = draw_mixing(augment.mixup, count, batch_size, seed=seed, epoch=epoch)
        partners = partners.to(device)
    labels, pixels = split.labels[order], pixels.view(-1, 3)
    ys, xs = torch.arange(height, device=device), torch.arange(width, device=device)
    for k in range(start, count):
        at = slice(k * batch_size, (k + 1) * batch_size)
        rows = (crop[at, :1] + ys) * row + order[at, None] * image
        columns = crop[at, 1:] + torch.where(flips[at, None], xs.flip(0), xs)
        # one gather of pixels does crop, flip and layout: the result is already channels_last
        index = rows[:, :, None] + columns[:, None, :]
        x, y = pixels.index_select(0, index.view(-1)).view(-1, height, width, 3), labels[at]
        if corners is not None:
            cut_out(x, corners[at], augment.cutout)
        if augment.mixup:
            shares = F.one_hot(y, len(split.classes)).float()
            x, y = (mix(values, lams[k], partners[k]) for values in (x, shares))
        yield Batch(x.permute(0, 3, 1, 2), y)


def batches_per_epoch(split: Split, batch_size: int) -> int:
    """How many full batches an epoch has; raises DynamicsError where there is none."""
    if batch_size < 1 or batch_size > len(split):
        raise DynamicsError(
            f"batch_size {batch_size} does not fit {len(split)} training images: choose 1 to {len(split)}"
        )
    return len(split) // batch_size
