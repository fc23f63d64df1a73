from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import arrays, toy_split

import dynamics as dyn
from dynamics.data import batches
from dynamics.errors import DynamicsError
from dynamics.rng import generator, seeded


def numbered(n: int = 30, side: int = 8) -> dyn.Split:
    """A split in which every pixel of every image is recognisable, and each label is the image's number."""
    images = np.random.RandomState(0).randint(0, 256, (n, side, side, 3)).astype(np.uint8)
    return dyn.Split.from_arrays(images, np.arange(n))


def test_normalisation_equals_float64_numpy():
    images, labels = arrays(50, 12)
    split = dyn.Split.from_arrays(images, labels)
    flat = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(split.mean, flat.mean(0), rtol=1e-13)
    np.testing.assert_allclose(split.std, flat.std(0), rtol=1e-10)
    expected = (images - flat.mean(0)) / flat.std(0)
    assert split.padded().dtype == torch.float32
    np.testing.assert_allclose(split.padded().numpy(), expected, rtol=2e-6, atol=2e-6)


def test_a_constant_channel_does_not_blow_up():
    images = np.full((4, 8, 8, 3), 200, dtype=np.uint8)
    split = dyn.Split.from_arrays(images, np.arange(4))
    assert torch.equal(split.padded(), torch.zeros(4, 8, 8, 3))


@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_equal_a_slow_loop_over_images(pad, flip):
    """Every augmented image is one crop of np.pad(mode="reflect"), flipped or not, and nothing else."""
    split = numbered()
    mean, std = np.float32(split.mean), np.float32(split.std)
    seen = []
    for batch in batches(split, 7, seed=3, epoch=2, augment=dyn.Augment(pad, flip)):
        for x, label in zip(batch.x.permute(0, 2, 3, 1).numpy(), batch.y.tolist(), strict=True):
            image = (split.images[label].numpy().astype(np.float32) - mean) / std
            padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
            crops = [
                (i, j, f)
                for i in range(2 * pad + 1)
                for j in range(2 * pad + 1)
                for f in ((False, True) if flip else (False,))
                if np.array_equal(padded[i : i + 8, j : j + 8][:, :: -1 if f else 1], x)
            ]
            assert len(crops) == 1
            seen.append(crops[0])
    assert len(set(seen)) == 1 if (pad, flip) == (0, False) else len(set(seen)) > 1


def test_batches_twin_with_the_same_draws():
    """The draws are the documented ones: order, crop and flip of an epoch, in bulk, from (seed, purpose, epoch)."""
    split, pad = numbered(), 2
    order = torch.randperm(30, generator=generator(5, "order", 1)).numpy()
    crop = torch.randint(2 * pad + 1, (30, 2), generator=generator(5, "crop", 1)).numpy()
    flip = torch.randint(2, (30,), generator=generator(5, "flip", 1)).bool().numpy()
    padded = [np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect") for image in split.padded().numpy()]
    for k, batch in enumerate(batches(split, 8, seed=5, epoch=1, augment=dyn.Augment(pad))):
        for b in range(8):
            i = 8 * k + b
            x = padded[order[i]][crop[i, 0] : crop[i, 0] + 8, crop[i, 1] : crop[i, 1] + 8]
            np.testing.assert_array_equal(batch.x[b].permute(1, 2, 0).numpy(), x[:, ::-1] if flip[i] else x)


def test_non_square_images():
    images = np.random.RandomState(1).randint(0, 256, (6, 8, 12, 3)).astype(np.uint8)
    split = dyn.Split.from_arrays(images, np.arange(6))
    (batch,) = batches(split, 6, augment=dyn.Augment(pad=2, flip=False))
    assert batch.x.shape == (6, 3, 8, 12)
    padded = split.padded(2).permute(0, 3, 1, 2)
    for x, label in zip(batch.x, batch.y.tolist(), strict=True):
        crops = [padded[label, :, i : i + 8, j : j + 12] for i in range(5) for j in range(5)]
        assert sum(torch.equal(x, crop) for crop in crops) == 1


def test_a_batch_is_the_same_wherever_one_starts():
    split, augment = numbered(), dyn.Augment(2)
    whole = list(batches(split, 4, seed=1, epoch=3, augment=augment))
    for k in (0, 3, 6):
        part = list(batches(split, 4, seed=1, epoch=3, augment=augment, start=k))
        assert len(part) == len(whole) - k
        for a, b in zip(part, whole[k:], strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_order_is_decided_by_seed_and_epoch():
    split = numbered()

    def order(**given) -> list[int]:
        return torch.cat([b.y for b in batches(split, 10, **given)]).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    torch.manual_seed(123)
    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    drawn = [tuple(order(seed=s, epoch=e)) for s in range(3) for e in range(3)]
    assert len(set(drawn)) == 9
    assert all(sorted(d) == list(range(30)) for d in drawn)
    # the order does not depend on the augmentation, so augmented and plain runs are paired
    assert order(seed=1) == order(seed=1, augment=dyn.Augment(3))


def test_two_purposes_of_one_seed_are_independent():
    a, b = (torch.rand(2000, generator=generator(0, p)) for p in ("order", "crop"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08
    a, b = (torch.rand(4, generator=generator(seed, "x", index)) for seed, index in ((1, 12), (11, 2)))
    assert not torch.equal(a, b)
    a, b = (torch.rand(4, generator=generator(0, purpose, index)) for purpose, index in (("x1", 2), ("x", 12)))
    assert not torch.equal(a, b)


def test_crops_are_uniform_and_half_are_flipped():
    """81 offsets and a fair coin (chi-squared at a fixed seed), read from the pixels."""
    side, n = 12, 2430
    rows = np.arange(side, dtype=np.uint8)
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[:, :, 0], image[:, :, 1] = 10 * rows[:, None], 10 * rows[None]
    split = dyn.Split.from_arrays(np.repeat(image[None], n, 0), np.zeros(n, dtype=int))
    mean, std = torch.tensor(split.mean).view(3, 1, 1), torch.tensor(split.std).view(3, 1, 1)
    (batch,) = batches(split, n, seed=4, augment=dyn.Augment(pad=4))
    pixels = (batch.x * std + mean).round() / 10
    # the middle 4x4 pixels are never reflected: the row read there tells the offset
    top = pixels[:, 0, 4, 4] - 4
    flipped = pixels[:, 1, 4, 5] < pixels[:, 1, 4, 4]
    left = torch.where(flipped, pixels[:, 1, 4, 7], pixels[:, 1, 4, 4]) - 4
    counts = np.histogram2d(top, left, bins=9, range=[[-4.5, 4.5]] * 2)[0]
    assert counts.sum() == n
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 0.001
    assert scipy.stats.binomtest(int(flipped.sum()), n).pvalue > 0.001


def test_the_incomplete_batch_is_dropped():
    split = numbered(30)
    assert [len(b.y) for b in batches(split, 8)] == [8, 8, 8]
    assert [len(b.y) for b in batches(split, 30)] == [30]


def test_batches_are_channels_last_float32():
    batch = next(batches(numbered(), 5, augment=dyn.Augment()))
    assert batch.x.dtype == torch.float32 and batch.y.dtype == torch.int64
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_fingerprint():
    images, labels = arrays(20)
    split = dyn.Split.from_arrays(images, labels)
    assert split.fingerprint() == dyn.Split.from_arrays(images.copy(), labels.tolist()).fingerprint()
    other = images.copy()
    other[7, 3, 2, 1] ^= 1
    swapped = labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    different = [
        dyn.Split.from_arrays(other, labels, like=split),
        dyn.Split.from_arrays(images, swapped),
        dyn.Split.from_arrays(images, labels, classes=tuple("abcd")),
        dyn.Split.from_arrays(images[:19], labels[:19]),
        split[:19],
        dataclasses.replace(split, mean=(0.0, 0.0, 0.0)),
    ]
    assert len({s.fingerprint() for s in [split, *different]}) == len(different) + 1


def test_a_part_is_normalised_as_the_whole():
    split = toy_split()
    part, picked = split[10:20], split[torch.tensor([3, 1])]
    assert (part.mean, part.std, part.classes) == (split.mean, split.std, split.classes)
    assert torch.equal(part.padded(2), split.padded(2)[10:20])
    assert torch.equal(picked.padded(), split.padded()[[3, 1]]) and picked.labels.tolist() == [3, 1]


def test_like_takes_classes_and_normalisation():
    train = toy_split()
    test = toy_split(4, seed=5, like=train)
    assert (test.mean, test.std, test.classes) == (train.mean, train.std, train.classes)


def test_a_changed_copy_does_not_keep_the_old_pixels():
    split = toy_split()
    split.padded(2)
    inverted = dataclasses.replace(split, images=255 - split.images)
    assert not torch.equal(inverted.padded(2), split.padded(2))


def test_the_callers_array_may_change_afterwards():
    images, labels = arrays(8)
    split = dyn.Split.from_arrays(images, labels)
    before = split.fingerprint()
    images[:], labels[:] = 0, 0
    assert split.fingerprint() == before


def test_views_and_read_only_arrays():
    images, labels = arrays(8)
    expected = dyn.Split.from_arrays(images[:, :, ::-1].copy(), labels).fingerprint()
    assert dyn.Split.from_arrays(images[:, :, ::-1], labels).fingerprint() == expected
    images.flags.writeable = False
    assert len(dyn.Split.from_arrays(images, labels)) == 8


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), [0, 1, 2, 3], r"must be uint8 \[N, height, width, 3\], got torch.float32"),
        (np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 2, 3], r"transpose channels last"),
        (np.zeros((4, 8, 8), np.uint8), [0, 1, 2, 3], r"got torch.uint8 \[4, 8, 8\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0.0, 1.0, 2.0, 3.0], r"labels must be integers \[4\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 2], r"labels must be integers \[4\].*got torch.int64 \[3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int), r"at least one"),
        (np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 2, -1], r"labels run from -1 to 2"),
    ],
)
def test_bad_arrays(images, labels, message):
    with pytest.raises(DynamicsError, match=message):
        dyn.Split.from_arrays(images, labels)


def test_labels_beyond_the_classes():
    with pytest.raises(DynamicsError, match="labels run from 0 to 3, but there are 2 classes: number them 0 to 1"):
        dyn.Split.from_arrays(*arrays(8), classes=("a", "b"))


def test_refusals():
    split = numbered()
    with pytest.raises(DynamicsError, match="batch_size 31 does not fit 30 training images: choose 1 to 30"):
        next(batches(split, 31))
    with pytest.raises(DynamicsError, match="batch_size 0"):
        next(batches(split, 0))
    with pytest.raises(DynamicsError, match="this selection is empty; the split has 30 images"):
        split[40:50]
    with pytest.raises(DynamicsError, match=r"needs images larger than 8 pixels: lower Augment.pad"):
        next(batches(split, 5, augment=dyn.Augment(pad=8)))
    with pytest.raises(DynamicsError, match=r"Augment.pad must be a whole number of at least 0, got -1"):
        dyn.Augment(pad=-1)


def test_seeded_restores_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(1, "forward", 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(RuntimeError), seeded(1, "forward", 2):
        assert torch.equal(torch.rand(3), inside)
        raise RuntimeError
    with seeded(1, "forward", 3):
        assert not torch.equal(torch.rand(3), inside)
