from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import assert_same, last, toy_recipe, toy_split

import dynamics as dyn
from dynamics.data import Batch, batches
from dynamics.errors import DynamicsError
from dynamics.rng import generator
from dynamics.training import batch_loss

TRICKS = {
    "cutout": dyn.Augment(2, cutout=3),
    "grouped": dyn.Augment(2, cutout=3, grouped=True),
    "few groups": dyn.Augment(2, cutout=3, grouped=True, max_options=5),
    "alternating": dyn.Augment(2, "alternating"),
    "even alternating": dyn.Augment(2, "alternating", grouped=True),
    "mixup": dyn.Augment(2, mixup=0.4),
    "everything": dyn.Augment(2, "alternating", 3, True, 7, 1.0),
}
every_trick = pytest.mark.parametrize("augment", TRICKS.values(), ids=TRICKS)


def numbered(n: int = 30, height: int = 8, width: int = 8) -> dyn.Split:
    """A split in which every pixel of every image is recognisable, and each label is the image's number."""
    images = np.random.RandomState(0).randint(0, 256, (n, height, width, 3)).astype(np.uint8)
    return dyn.Split.from_arrays(images, np.arange(n))


def looked_up(split: dyn.Split, augment: dyn.Augment, only: int | None = None) -> dict[bytes, tuple]:
    """All that may become of a split's images: the bytes of each, to (image, crop, flipped, corner)."""
    (h, w), pad, size = split.images.shape[1:3], augment.pad, augment.cutout
    corners = list(product(range(h + 1 - size), range(w + 1 - size))) if size else [None]
    found = {}
    for i, image in enumerate(split.padded().numpy()):
        if only is not None and i != only:
            continue
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        for top, left, flip, corner in product(
            range(2 * pad + 1), range(2 * pad + 1), (False, True) if augment.flip else (False,), corners
        ):
            x = padded[top : top + h, left : left + w].copy()
            x = x[:, ::-1].copy() if flip else x
            if corner:
                x[corner[0] : corner[0] + size, corner[1] : corner[1] + size] = 0
            assert found.setdefault(x.tobytes(), (i, (top, left), flip, corner))[0] == i
    images = 1 if only is not None else len(split)
    assert len(found) == images * (2 * pad + 1) ** 2 * (2 if augment.flip else 1) * len(corners)
    return found


def pixels(batch: Batch) -> list[np.ndarray]:
    return [np.ascontiguousarray(x) for x in batch.x.permute(0, 2, 3, 1).numpy()]


def dealt(n: int, options: int, most: int, g: torch.Generator) -> list[int]:
    """Groups of even sizes, made one image at a time: shuffled, the images are dealt out to the options in turn."""
    chosen = torch.randperm(options, generator=g).tolist()[:most]
    turn = torch.randperm(n, generator=g).tolist()
    given = [0] * n
    for image in range(n):
        given[image] = chosen[turn[image] % len(chosen)]
    return given


def slow_epoch(split: dyn.Split, augment: dyn.Augment, seed: int, epoch: int) -> list[tuple[np.ndarray, int]]:
    """Images and labels of an epoch, before mixup, one at a time, from the documented draws."""
    n, (h, w), pad, size = len(split), split.images.shape[1:3], augment.pad, augment.cutout
    most, places, columns = augment.max_options, 2 * pad + 1, w + 1 - size
    order = torch.randperm(n, generator=generator(seed, "order", epoch)).tolist()
    if augment.grouped:
        crops = [divmod(c, places) for c in dealt(n, places**2, most, generator(seed, "crop", epoch))]
    else:
        crops = torch.randint(places, (n, 2), generator=generator(seed, "crop", epoch)).tolist()

    def drawn(options: int, purpose: str, index: int) -> list[int]:
        g = generator(seed, purpose, index)
        return dealt(n, options, most, g) if augment.grouped else torch.randint(options, (n,), generator=g).tolist()

    if augment.flip == "alternating":
        begin = drawn(2, "flip", 0)
        flips = [bool(begin[image]) != (epoch % 2 == 1) for image in order]
    else:
        flips = [bool(f) for f in drawn(2, "flip", epoch)] if augment.flip else [False] * n
    corners = drawn((h + 1 - size) * columns, "cutout", epoch)
    made = []
    for image, (top, left), flip, corner in zip(order, crops, flips, corners, strict=True):
        padded = np.pad(split.padded()[image].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        x = padded[top : top + h, left : left + w].copy()
        x = x[:, ::-1] if flip else x
        if size:
            y0, x0 = divmod(corner, columns)
            for i, j in product(range(size), range(size)):
                x[y0 + i, x0 + j] = 0
        made.append((x, int(split.labels[image])))
    return made


@pytest.mark.parametrize("epoch", [0, 3])
@every_trick
def test_batches_equal_a_slow_loop_with_the_same_draws(augment, epoch):
    split = numbered(34, 8, 11)
    without = dyn.Augment(augment.pad, augment.flip, augment.cutout, augment.grouped, augment.max_options)
    expected = slow_epoch(split, without, 5, epoch)
    drawn = list(batches(split, 8, seed=5, epoch=epoch, augment=without))
    assert len(drawn) == 4
    for k, batch in enumerate(drawn):
        for x, y, (image, label) in zip(pixels(batch), batch.y.tolist(), expected[8 * k :], strict=False):
            np.testing.assert_array_equal(x, image)
            assert y == label


@every_trick
def test_a_batch_is_the_same_wherever_one_starts(augment):
    split = numbered()
    whole = list(batches(split, 4, seed=1, epoch=3, augment=augment))
    for k in (0, 3, 6):
        part = list(batches(split, 4, seed=1, epoch=3, augment=augment, start=k))
        assert len(part) == len(whole) - k
        for a, b in zip(part, whole[k:], strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


@every_trick
def test_an_epoch_is_decided_by_seed_and_number(augment):
    split = numbered()

    def epoch(**given) -> Batch:
        return next(batches(split, 30, augment=augment, **given))

    once = epoch(seed=1, epoch=2)
    torch.manual_seed(5)
    np.random.seed(5)
    again = epoch(seed=1, epoch=2)
    assert torch.equal(once.x, again.x) and torch.equal(once.y, again.y)
    assert not torch.equal(once.x, epoch(seed=2, epoch=2).x)
    assert not torch.equal(once.x, epoch(seed=1, epoch=3).x)


@every_trick
def test_augmentation_does_not_change_the_order_of_images(augment):
    split = numbered()
    plain = [b.y for b in batches(split, 10, seed=3, epoch=1, augment=dyn.Augment())]
    for batch, y in zip(batches(split, 10, seed=3, epoch=1, augment=augment), plain, strict=True):
        if augment.mixup:
            assert (batch.y[range(10), y] > 0).all()
        else:
            assert torch.equal(batch.y, y)


@every_trick
def test_augmented_batches_are_channels_last_float32(augment):
    batch = next(batches(numbered(), 5, augment=augment))
    assert batch.x.dtype == torch.float32 and batch.x.shape == (5, 3, 8, 8)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    assert (batch.y.dtype, batch.y.shape) == ((torch.float32, (5, 30)) if augment.mixup else (torch.int64, (5,)))


# --- groups


def test_P8_3_each_option_is_used_floor_or_ceil_of_n_over_options_times_and_labels_stay_aligned():
    split, augment = numbered(100), dyn.Augment(pad=1, cutout=6, grouped=True)
    found = looked_up(split, augment)

    def epoch(augment: dyn.Augment) -> list[tuple]:
        seen = []
        for batch in batches(split, 25, seed=2, augment=augment):
            for x, label in zip(pixels(batch), batch.y.tolist(), strict=True):
                seen.append(found[x.tobytes()])
                assert seen[-1][0] == label
        assert sorted(image for image, *_ in seen) == list(range(100))
        return seen

    even, drawn = epoch(augment), epoch(dyn.Augment(pad=1, cutout=6))
    for part, options in ((1, 9), (2, 2), (3, 9)):
        uses = Counter(s[part] for s in even)
        assert len(uses) == options
        assert set(uses.values()) == {100 // options, math.ceil(100 / options)}
        # one draw an image is the multinomial that groups replace
        assert np.ptp(list(Counter(s[part] for s in drawn).values())) > 1


@pytest.mark.parametrize(("n", "most", "used"), [(1300, 625, 625), (1300, 9999, 625), (420, 200, 200), (150, 200, 150)])
def test_P8_3_an_epoch_uses_at_most_so_many_of_the_625_positions_of_8x8(n, most, used):
    split = numbered(n, 32, 32)

    def corners(epoch: int) -> Counter:
        augment = dyn.Augment(0, False, cutout=8, grouped=True, max_options=most)
        uses = Counter()
        for batch in batches(split, 10, epoch=epoch, augment=augment):
            for x, label in zip(pixels(batch), batch.y.tolist(), strict=True):
                cut = (x == 0).all(2)
                (top, *_), (left, *_) = np.nonzero(cut)
                assert cut.sum() == 64 and cut[top : top + 8, left : left + 8].all()
                np.testing.assert_array_equal(x[~cut], split.padded()[label].numpy()[~cut])
                uses[int(top), int(left)] += 1
        return uses

    uses = corners(0)
    assert len(uses) == used
    assert {n // used, math.ceil(n / used)} == set(uses.values())
    assert used == 625 or set(uses) != set(corners(1))


@pytest.mark.parametrize(("grouped", "most"), [(False, 200), (True, 200), (True, 3), (True, 1)])
def test_P8_3_over_epochs_an_image_meets_every_option_equally_often(grouped, most):
    """Nine crops, two flips and four squares, and each of their 72 combinations (chi-squared at a fixed seed)."""
    split, augment = numbered(6, 4, 4), dyn.Augment(1, cutout=3, grouped=grouped, max_options=most)
    found, uses = looked_up(split, augment, only=2), Counter()
    for epoch in range(1440):
        (batch,) = batches(split, 6, seed=1, epoch=epoch, augment=augment)
        uses[found[pixels(batch)[batch.y.tolist().index(2)].tobytes()]] += 1
    counts = [uses[option] for option in found.values()]
    assert sum(counts) == 1440
    assert scipy.stats.chisquare(counts).pvalue > 0.001
    for part in (1, 2, 3):
        totals = Counter()
        for option, times in uses.items():
            totals[option[part]] += times
        assert scipy.stats.chisquare(list(totals.values())).pvalue > 0.001


# --- flips


def flipped(split: dyn.Split, augment: dyn.Augment, **given) -> list[bool]:
    """Whether each image is shown as its mirror image, in the order of the split."""
    shown = {}
    for batch in batches(split, len(split), augment=augment, **given):
        for x, label in zip(pixels(batch), batch.y.tolist(), strict=True):
            image = split.padded()[label].numpy()
            assert np.array_equal(x, image) != np.array_equal(x, image[:, ::-1])
            shown[label] = np.array_equal(x, image[:, ::-1])
    return [shown[label] for label in range(len(split))]


def test_alternating_flips_show_both_sides_in_any_two_successive_epochs():
    split, augment = numbered(200), dyn.Augment(0, "alternating")
    epochs = [flipped(split, augment, seed=3, epoch=e) for e in range(5)]
    for before, after in pairwise(epochs):
        assert before == [not side for side in after]
    assert scipy.stats.binomtest(sum(epochs[0]), 200).pvalue > 0.001
    assert flipped(split, augment, seed=4, epoch=0) not in epochs
    # independent flips show about half of the images from one side only
    first, second = (flipped(split, dyn.Augment(0), seed=3, epoch=e) for e in range(2))
    assert 70 < sum(a == b for a, b in zip(first, second, strict=True)) < 130


def test_grouped_flips_turn_exactly_half_of_the_images_over():
    split = numbered(50)
    for flip, epoch in product((True, "alternating"), range(3)):
        assert sum(flipped(split, dyn.Augment(0, flip, grouped=True), seed=6, epoch=epoch)) == 25
    a, b = (flipped(split, dyn.Augment(0, "alternating", grouped=True), seed=6, epoch=e) for e in (0, 1))
    assert a == [not side for side in b]


# --- mixup


def partners(batch: Batch, labels: list[int]) -> tuple[float, list[int]]:
    """Of a mixed batch of images with labels of their own: λ, and each one's partner, read from the targets."""
    mixed, found = set(), []
    for shares, own in zip(batch.y.double().tolist(), labels, strict=True):
        others = [j for j, share in enumerate(shares) if share and j != own]
        assert len(others) <= 1 and sum(shares) == 1
        if others:
            mixed.add(shares[own])
            assert shares[others[0]] == 1 - shares[own]
        found.append(others[0] if others else own)
    (lam,) = mixed
    return lam, found


@pytest.mark.parametrize("start", [0, 2])
def test_mixup_equals_a_slow_loop_over_pairs(start):
    split, plain, mixing = numbered(32), dyn.Augment(2, cutout=2), dyn.Augment(2, cutout=2, mixup=0.7)
    given = {"seed": 4, "epoch": 2, "start": start}
    lams = []
    for mixed, batch in zip(
        batches(split, 8, augment=mixing, **given), batches(split, 8, augment=plain, **given), strict=True
    ):
        labels = batch.y.tolist()
        lam, found = partners(mixed, labels)
        lams.append(lam)
        assert sorted(found) == sorted(labels)
        before = dict(zip(labels, batch.x.double(), strict=True))
        for x, i, j in zip(mixed.x.double(), labels, found, strict=True):
            torch.testing.assert_close(x, lam * before[i] + (1 - lam) * before[j], rtol=0, atol=1e-6)
    assert len(set(lams)) == 4 - start


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_draws_lambda_from_a_beta_distribution(alpha):
    split, augment = numbered(40, 2, 2), dyn.Augment(0, False, mixup=alpha)
    lams = []
    for epoch in range(40):
        plain = batches(split, 4, epoch=epoch)
        for mixed, batch in zip(batches(split, 4, epoch=epoch, augment=augment), plain, strict=True):
            own = mixed.y[range(4), batch.y]
            # an image that is its own partner has a share of 1, and so it tells nothing
            alone = (mixed.y > 0).sum(1) == 1
            if not alone.all():
                lams.append(float(own[~alone][0]))
    assert len(lams) > 300
    assert scipy.stats.kstest(lams, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_extreme_mixup_is_finite(alpha):
    for batch in batches(numbered(40), 4, augment=dyn.Augment(mixup=alpha)):
        assert torch.isfinite(batch.x).all() and (batch.y.sum(1) == 1).all()
        shares = batch.y[batch.y > 0]
        assert ((shares == 1) | (((shares - 0.5).abs() < 0.01) & (alpha > 1))).all()


# the smoothed loss is near 1, where a unit in the last place is 1e-7; the plain one is near 0.05
@pytest.mark.parametrize(("smoothing", "single"), [(0.0, 1e-7), (0.2, 5e-7)])
def test_T_8_cross_entropy_of_mixed_targets_is_the_mixture_of_the_two(smoothing, single):
    split = toy_split(60)
    recipe, given = toy_recipe(label_smoothing=smoothing), {"seed": 7, "epoch": 1}
    mixing, plain = dyn.Augment(2, mixup=0.2), dyn.Augment(2)
    # numbers instead of classes tell whose partner each image is
    told = dyn.Split(split.images, torch.arange(60), tuple(map(str, range(60))), split.mean, split.std)
    feeds = [batches(s, 20, augment=a, **given) for a in (mixing, plain) for s in (split, told)]
    for mixed, names, batch, numbers in zip(*feeds, strict=True):
        lam, found = partners(names, numbers.y.tolist())
        other = split.labels[found]
        assert not torch.equal(other, batch.y)
        # those of a net that is nearly right
        logits = (mixed.y + 0.002).log() + 0.1 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
        for precision, tolerance in (("float32", single), ("float64", 1e-12)):
            losses = [
                float(batch_loss(recipe, torch.nn.Identity(), Batch(logits, y), precision))
                for y in (mixed.y, batch.y, other)
            ]
            assert abs(losses[0] - (lam * losses[1] + (1 - lam) * losses[2])) < tolerance
            assert losses[2] != pytest.approx(losses[1], rel=0.1)


def test_P8_7_the_loss_with_label_smoothing_is_never_below_the_entropy_of_its_target():
    """0.8669 nats at ε 0.2 and ten classes; the rest of the loss is the Kullback-Leibler divergence from the target."""
    recipe, classes = toy_recipe(label_smoothing=0.2), 10
    target = [0.8 + 0.2 / classes, *[0.2 / classes] * (classes - 1)]
    floor = -sum(p * math.log(p) for p in target)
    assert floor == pytest.approx(0.8669, abs=5e-5)

    def loss(logits: torch.Tensor) -> float:
        batch = Batch(logits[None], torch.tensor([0]))
        return float(batch_loss(recipe, torch.nn.Identity(), batch, "float64"))

    best = torch.tensor(target, dtype=torch.float64).log()
    assert loss(best) == pytest.approx(floor, rel=1e-14)
    draw = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1, 10, 100):
        for centre in (best, torch.zeros_like(best)):
            logits = centre + scale * torch.randn(classes, generator=draw, dtype=torch.float64)
            # log-softmax by the definition
            high = max(logits.tolist())
            total = high + math.log(sum(math.exp(z - high) for z in logits.tolist()))
            divergence = sum(p * (math.log(p) - z + total) for p, z in zip(target, logits.tolist(), strict=True))
            assert divergence > 0 and loss(logits) > floor
            assert loss(logits) - floor == pytest.approx(divergence, rel=1e-9, abs=1e-14)


# --- recipes


@pytest.mark.parametrize(
    ("trick", "precision"),
    [*((trick, "float32") for trick in TRICKS), ("everything", "float64"), ("everything", "bf16")],
)
def test_a_resumed_run_ends_bit_identical(trick, precision):
    split = toy_split()
    recipe = toy_recipe(augment=TRICKS[trick], label_smoothing=0.1, precision=precision)
    for snap in dyn.steps(recipe, split):
        if snap.step == 4:
            middle = snap.state.clone()
    end = last(dyn.steps(recipe, split, start=middle))
    assert_same(snap.params, end.params)
    assert_same(snap.buffers, end.buffers)
    plain = last(dyn.steps(toy_recipe(label_smoothing=0.1, precision=precision), split))
    assert any(not torch.equal(snap.params[k], plain.params[k]) for k in plain.params)


def test_recipes_of_before_have_no_trick():
    value = toy_recipe().to_json()
    value["augment"] = {"kind": "Augment", "pad": 2, "flip": True}
    assert dyn.Recipe.from_json(value) == toy_recipe()
    assert dyn.Augment() == dyn.Augment(4, True, 0, False, 200, 0.0)


@every_trick
def test_json_round_trip(augment):
    recipe = toy_recipe(augment=augment)
    text = json.dumps(recipe.to_json(), allow_nan=False)
    assert dyn.Recipe.from_json(json.loads(text)) == recipe != toy_recipe()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pad": 1.5}, r"Augment.pad must be a whole number of at least 0, got 1.5"),
        ({"cutout": -1}, r"Augment.cutout must be a whole number of at least 0, got -1"),
        ({"cutout": 0.5}, r"Augment.cutout must be a whole number of at least 0, got 0.5"),
        ({"max_options": 0}, r"Augment.max_options must be a whole number of at least 1, got 0"),
        ({"flip": "alternate"}, r"Augment.flip must be True, False or 'alternating', got 'alternate'"),
        ({"flip": None}, r"Augment.flip must be True, False or 'alternating', got None"),
        ({"grouped": "no"}, r"Augment.grouped must be True or False, got 'no'"),
        ({"mixup": -0.1}, r"Augment.mixup must be 0 \(none\) or an α from 1e-06 to 1e\+06, got -0.1"),
        ({"mixup": math.nan}, r"Augment.mixup must be 0 \(none\) or an α from 1e-06 to 1e\+06, got nan"),
        ({"mixup": math.inf}, r"got inf"),
        ({"mixup": 1e-300}, r"got 1e-300"),
        ({"mixup": "0.2"}, r"got '0.2'"),
    ],
)
def test_refused_values(given, message):
    with pytest.raises(DynamicsError, match=message) as told:
        dyn.Augment(**given)
    assert "\n" not in str(told.value)


def test_a_cutout_larger_than_the_images():
    with pytest.raises(DynamicsError, match=r"a cutout of 9 pixels does not fit images of 8x12: lower Augment.cutout"):
        next(batches(numbered(6, 8, 12), 3, augment=dyn.Augment(2, cutout=9)))
    # as large as the image is the mean image
    assert not next(batches(numbered(6), 3, augment=dyn.Augment(2, cutout=8))).x.any()
