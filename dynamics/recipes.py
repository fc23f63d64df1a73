"""Named recipes: the ladder of Page's posts from 356 s to 26 s, its long runs, and settings for measurements.

Each rung is written as what changed since the one before it. What a source does not say is our choice, and named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .data import Augment
from .errors import DynamicsError, unknown
from .nets import BACKBONES, SEARCH, Net
from .optim import SGD, Group, PiecewiseLinear
from .training import EMA, Recipe


@dataclass(frozen=True)
class Rung:
    """A recipe of a published series, what it changed, and what was published of it.

    accuracy: per cent of the test images; note: of how many runs, or what the number is; seconds: on a V100, by the
    source's own clock. tta: the test-time augmentation that the accuracy is measured with. ours: what the source leaves
    open and we chose. claims: ids of the ledger.
    """

    name: str
    recipe: Recipe
    change: str
    source: str
    accuracy: float | None = None
    note: str = ""
    seconds: float | None = None
    tta: str = "none"
    claims: tuple[str, ...] = ()
    ours: str = ""


def _lr(recipe: Recipe, *knots: float, values: tuple[float, ...]) -> Recipe:
    return replace(recipe, optimizer=replace(recipe.optimizer, lr=PiecewiseLinear(knots, values)))


def _peak(recipe: Recipe, epochs: float, top: float, at: float, *, cutout: int | None = None) -> Recipe:
    """Up to `top` at epoch `at`, then down to 0 in a straight line."""
    changed = replace(_lr(recipe, 0, at, epochs, values=(0, top, 0)), epochs=epochs)
    return changed if cutout is None else replace(changed, augment=replace(changed.augment, cutout=cutout))


def _net(recipe: Recipe, **arguments: Any) -> Recipe:
    return replace(recipe, net=recipe.net.replace(**arguments))


def _biases(factor: float) -> tuple[Group, ...]:
    return (Group("*.bias", lr_factor=factor, weight_decay_factor=1 / factor),)


# posts 1 to 3: the ResNet-18 variant of DAWNBench's fastest entry, in 35 and then 30 epochs

_REPLICATION = Recipe(
    net=Net("resnet18", width=64, duplicate=True),
    optimizer=SGD(PiecewiseLinear((0, 15, 30, 35), (0, 0.1, 0.005, 0)), momentum=0.9, nesterov=True, weight_decay=5e-4),
    batch_size=128,
    epochs=35,
)
_TIDIED = _net(_REPLICATION, duplicate=False)
_BATCH_512 = _lr(replace(_TIDIED, batch_size=512), 0, 15, 30, 35, values=(0, 0.44, 0.005, 0))
_CUTOUT = replace(_BATCH_512, augment=Augment(cutout=8))
_EARLY_PEAK = _peak(_CUTOUT, 35, 0.4, 8)
_THIRTY = _peak(_CUTOUT, 30, 0.4, 8)
_BATCH_768 = _peak(replace(_THIRTY, batch_size=768), 30, 0.6, 8)

# post 4: what is left of it without branches, and back up

_BACKBONE = tuple(_peak(replace(_THIRTY, net=net), 20, 0.4, 4) for net in BACKBONES.values())
_DOUBLE = _peak(_net(_BACKBONE[-1], width=128), 60, 0.4, 12)
_EXTRA = _peak(replace(_BACKBONE[-1], net=SEARCH["extra:L1+L2+L3"]), 60, 0.4, 12, cutout=12)
_RESIDUAL = replace(_BACKBONE[-1], net=Net("resnet9", width=64))
_SUBMISSION = _peak(_RESIDUAL, 24, 0.4, 5)

BASELINE = replace(_SUBMISSION, augment=Augment())
"""The 24-epoch recipe of Page's post 4 without cutout: 94 % on CIFAR-10 in 79 s on a V100 with 8x8 cutout."""

# post 8: the bag of tricks

_GROUPED = replace(_SUBMISSION, augment=replace(_SUBMISSION.augment, grouped=True))
_SAME_FUNCTION = _net(_GROUPED, order="norm-pool-act")
_POOL_FIRST = _net(_SAME_FUNCTION, order="pool-norm-act")
_POOL_FIRST_25 = _peak(_POOL_FIRST, 25, 0.4, 5)
_SMOOTHED = replace(_POOL_FIRST_25, label_smoothing=0.2)
_SMOOTHED_23 = _peak(_SMOOTHED, 23, 0.4, 4.6)
_CELU = _net(_SMOOTHED_23, act="celu", celu_alpha=0.075)
_CELU_20 = _peak(_CELU, 20, 0.4, 4)
_GHOST = _net(_CELU_20, norm="ghost", ghost_splits=16)
_GHOST_18 = _peak(_GHOST, 18, 0.6, 3.6)
_FIXED_SCALES = replace(
    _net(_GHOST_18, norm_scale=False, celu_alpha=0.3, logit_scale=1 / 16),
    optimizer=replace(_GHOST_18.optimizer, groups=_biases(16)),
)
_BIASES_64 = _peak(replace(_FIXED_SCALES, optimizer=replace(_FIXED_SCALES.optimizer, groups=_biases(64))), 17, 0.6, 3.4)
_WHITENED = _net(_BIASES_64, whiten=True)
_WHITENED_15 = _peak(_WHITENED, 15, 0.6, 3)
_WHITENED_14 = _peak(_WHITENED, 14, 1.0, 2.8, cutout=5)
_AVERAGED = _lr(replace(_WHITENED_14, average=EMA(0.99, every=5)), 0, 2.8, 12, values=(0, 1.0, 0.1))
_AVERAGED_13 = _lr(replace(_AVERAGED, epochs=13), 0, 2.6, 11, values=(0, 1.0, 0.1))

FINAL = _lr(replace(_AVERAGED_13, epochs=10, augment=Augment(grouped=True)), 0, 2, 8, values=(0, 1.0, 0.1))
"""The last recipe of Page's post 8: 94.1 % with flips averaged at test time, in 10 epochs and 26 s on a V100."""

_TARGET = "94 is the target, not a measured mean"
_UNSTATED = "number of runs not stated"
_FIFTY = "mean of 50 runs"
_DONE = "the recipe is the same: here it is done anyway"
_1, _2, _3, _4, _8 = (f"Page, How to train your ResNet, post {n}" for n in (1, 2, 3, 4, 8))

# fmt: off
LADDER: tuple[Rung, ...] = (
    Rung(
        "1-replication", _REPLICATION, "DAWNBench's fastest single-GPU entry (341 s), written anew", _1, 94.0,
        "3 of 5 runs reach 94", 356, claims=("P1-1",),
        ours="the schedule of the next rung: the original's kink at epoch 15 is not given",
    ),
    Rung(
        "1-tidied", _TIDIED, "without the repeated norm and ReLU, and the kink in the learning rate", _1, 94.0,
        "4 of 5 runs reach 94", 323, claims=("P1-2",),
    ),
    Rung(
        "1-preprocess-once", _TIDIED, f"pad, normalise and transpose once ({_DONE})", _1, 94.0, _TARGET, 308,
        claims=("P1-3",),
    ),
    Rung("1-bulk-random", _TIDIED, f"random numbers in bulk ({_DONE})", _1, 94.0, _TARGET, 301, claims=("P1-4",)),
    Rung("1-no-loader", _TIDIED, f"no loader process ({_DONE})", _1, 94.0, _TARGET, 297, claims=("P1-4",)),
    Rung(
        "2-batch-512", _BATCH_512, "four times the batch, 4.4 times the learning rate", _2, 94.0,
        "3 of 5 runs reach 94", 256, claims=("P2-1",),
    ),
    Rung("3-float32-norm", _BATCH_512, f"batch norm in float32 ({_DONE})", _3, 94.0, _TARGET, 186, claims=("P3-1",)),
    Rung("3-cutout", _CUTOUT, "cutout 8x8", _3, 94.3, "median, 5 of 5 runs reach 94", claims=("P3-3",)),
    Rung(
        "3-early-peak", _EARLY_PEAK, "an earlier peak, then linear decay", _3, 94.5, "median", claims=("P3-4",),
        ours="peak 0.4 at epoch 8, as in the 30-epoch run that follows",
    ),
    Rung(
        "3-short-uncut", replace(_BATCH_512, augment=Augment()).stretch(30), "30 epochs without cutout", _3, None,
        "0 of 5 runs reach 94", 161, claims=("P3-5",), ours="the 35-epoch schedule, shortened in proportion",
    ),
    Rung(
        "3-short", _THIRTY, "30 epochs, cutout 8x8", _3, 94.13, "median, 4 of 5 runs reach 94", 161, claims=("P3-5",)
    ),
    Rung(
        "3-batch-768", _BATCH_768, "half as much batch again, and learning rate", _3, 94.06,
        "median, 4 of 5 runs reach 94", 154, claims=("P3-5",),
    ),
    Rung(
        "4-backbone", _BACKBONE[0], "only the shortest path: 1x1 convolutions of stride 2, repeated norm and ReLU", _4,
        55.9, "", 36, claims=("P4-1",),
    ),
    Rung("4-no-repeat", _BACKBONE[1], "without the repeated norm and ReLU", _4, 56.0, "", 32, claims=("P4-1",)),
    Rung("4-conv3x3", _BACKBONE[2], "3x3 convolutions of stride 2", _4, 85.6, "", 36, claims=("P4-1", "P4-2")),
    Rung("4-max-pool", _BACKBONE[3], "3x3 of stride 1, then 2x2 max-pooling", _4, 89.7, "", 43, claims=("P4-1",)),
    Rung(
        "4-global-pool", _BACKBONE[4], "global max-pooling, twice the channels at the end", _4, 90.7, "", 47,
        claims=("P4-1",),
    ),
    Rung(
        "4-norm-scale-1", _BACKBONE[5], "norm scales begin at 1, logits times 1/8", _4, 91.1, "", 47,
        claims=("P4-1", "P4-3"),
    ),
    Rung("4-double-width", _DOUBLE, "twice the width, 60 epochs", _4, 93.5, "", 321, claims=("P4-4",)),
    Rung(
        "4-extra", _EXTRA, "an extra convolution in each layer, 60 epochs, cutout 12x12", _4, 95.0, "", 180,
        claims=("P4-6",),
    ),
    Rung(
        "4-residual", _RESIDUAL, "residual branches in layers 1 and 3", _4, 93.8, "mean of 10 runs", 66,
        claims=("P4-5",),
    ),
    Rung("4-submission", _SUBMISSION, "24 epochs", _4, 94.08, "mean of 10 runs", 79, claims=("P4-5", "P4-7")),
    Rung("8-submission", _SUBMISSION, "the same again, on another clock", _8, 94.1, _UNSTATED, 75, claims=("P8-1",)),
    Rung(
        "8-gpu-data", _GROUPED, "augmentation on the GPU, in groups of images", _8, 94.1, _UNSTATED, 70,
        claims=("P8-2", "P8-3"),
    ),
    Rung(
        "8-norm-pool-act", _SAME_FUNCTION, "pooling before the activation: the same function", _8, 94.1, _UNSTATED, 67,
        claims=("P8-5",),
    ),
    Rung(
        "8-pool-norm-act", _POOL_FIRST, "pooling before the norm: another function", _8, 94.0, _FIFTY, 62,
        claims=("P8-6",),
    ),
    Rung("8-one-more-epoch", _POOL_FIRST_25, "25 epochs", _8, 94.1, _UNSTATED, 64, claims=("P8-6",)),
    Rung("8-smoothing", _SMOOTHED, "label smoothing 0.2", _8, 94.2, _FIFTY, claims=("P8-7",)),
    Rung("8-smoothing-23", _SMOOTHED_23, "23 epochs", _8, 94.1, _UNSTATED, 59, claims=("P8-7", "P8-8")),
    Rung("8-celu", _CELU, "CELU of alpha 0.075", _8, 94.3, _FIFTY, claims=("P8-9",)),
    Rung("8-celu-20", _CELU_20, "20 epochs", _8, 94.1, _UNSTATED, 52, claims=("P8-8", "P8-9")),
    Rung("8-ghost", _GHOST, "ghost norm, 16 parts of 32 images", _8, 94.2, _UNSTATED, claims=("P8-10",)),
    Rung("8-ghost-18", _GHOST_18, "learning rate 0.6, 18 epochs", _8, 94.1, _UNSTATED, 46, claims=("P8-10",)),
    Rung(
        "8-fixed-scales", _FIXED_SCALES, "norm scales fixed at 1, CELU of 0.3, logits times 1/16, biases' lr times 16",
        _8, 94.2, _UNSTATED, claims=("P8-11", "P8-12", "P8-13"),
    ),
    Rung("8-biases-64", _BIASES_64, "biases' lr times 64, 17 epochs", _8, 94.1, _UNSTATED, 43, claims=("P8-13",)),
    Rung("8-whitening", _WHITENED, "input patches whitened", _8, 94.4, _UNSTATED, claims=("P8-14", "P8-15")),
    Rung("8-whitening-15", _WHITENED_15, "15 epochs", _8, 94.1, _UNSTATED, 39, claims=("P8-15",)),
    Rung(
        "8-whitening-14", _WHITENED_14, "learning rate 1, cutout 5x5, 14 epochs", _8, 94.1, _UNSTATED, 36,
        claims=("P8-15",),
    ),
    Rung(
        "8-average", _AVERAGED, "average of the weights, the learning rate held at its end", _8, 94.3, _UNSTATED,
        claims=("P8-16", "P8-17"),
    ),
    Rung("8-average-13", _AVERAGED_13, "13 epochs", _8, 94.1, _UNSTATED, 34, claims=("P8-17",)),
    Rung(
        "8-flips", _AVERAGED_13, "flips averaged at test time", _8, 94.6, _UNSTATED, tta="flip",
        claims=("P8-18", "P8-19"),
    ),
    Rung("8-final", FINAL, "10 epochs without cutout", _8, 94.1, _UNSTATED, 26, "flip", claims=("P8-19", "P8-23")),
)
# fmt: on
"""Page's ladder in its order; the seconds of posts 1 to 4 and those of post 8 are by different clocks."""

# epochs: accuracy, the same with flips averaged, seconds
_BASELINES = {
    24: (93.92, 94.41, 70), 40: (94.71, 95.18, 116), 60: (95.15, 95.57, 174), 80: (95.20, 95.70, 232),
    100: (95.30, 95.71, 289),
}  # fmt: skip
_FINALS = {
    24: (94.68, 95.12, 62), 40: (95.39, 95.76, 103), 60: (95.53, 95.90, 154), 80: (95.72, 96.13, 206),
    100: (95.78, 96.12, 257),
}  # fmt: skip


def _long(name: str, recipe: Recipe, row: tuple[float, float, float]) -> tuple[Rung, Rung]:
    plain = Rung(
        f"long-{name}-{recipe.epochs}", recipe, f"{name}, {recipe.epochs} epochs, cutout 12x12", _8, row[0],
        "mean of 5 runs", row[2], claims=("P8-21",),
    )  # fmt: skip
    flips = replace(plain, name=f"{plain.name}-flips", change="flips averaged at test time", accuracy=row[1])
    return plain, replace(flips, tta="flip", claims=("P8-21", "P8-22"))


def _long_final(epochs: int) -> Recipe:
    longer = replace(FINAL, epochs=epochs, augment=replace(FINAL.augment, cutout=12))
    return _lr(longer, 0, epochs / 5, epochs - 2, values=(0, 0.4, 0.04))


LONG: tuple[Rung, ...] = (
    *(rung for e, row in _BASELINES.items() for rung in _long("baseline", _peak(_GROUPED, e, 0.4, 5, cutout=12), row)),
    *(rung for e, row in _FINALS.items() for rung in _long("final", _long_final(e), row)),
)
"""Post 8's long runs: how far the submission and the last recipe get with more epochs, at a peak of 0.4."""

EQUILIBRIUM = replace(
    BASELINE,
    net=Net("resnet9", width=8),
    optimizer=SGD(0.1, momentum=0.9, weight_decay=5e-3),
    batch_size=128,
    epochs=12,
)
"""Constant lr and a decay large enough that norms reach equilibrium in a few hundred steps (one time constant: 50)."""

RECIPES: dict[str, Recipe] = {
    "baseline": BASELINE,
    "final": FINAL,
    "equilibrium": EQUILIBRIUM,
    **{rung.name: rung.recipe for rung in (*LADDER, *LONG)},
}


def named(name: str) -> Recipe:
    """A recipe by name; raises DynamicsError with the nearest names."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def scaled(
    recipe: Recipe, *, width: int | None = None, epochs: float | None = None, batch_size: int | None = None
) -> Recipe:
    """The recipe in small: another width, length and batch size, with lr / batch_size and the parts of ghost norm kept.

    The schedule is stretched in proportion. lr / batch_size decides the dynamics to first order in lr (claim P2-2);
    parts of a batch keep their number of images. Raises DynamicsError for a learning rate that is no number and not
    piecewise linear.
    """
    if width is not None:
        recipe = _net(recipe, width=width)
    if epochs is not None:
        recipe = recipe.stretch(epochs)
    if batch_size is None or batch_size == recipe.batch_size:
        return recipe
    factor, lr = batch_size / recipe.batch_size, recipe.optimizer.lr
    if isinstance(lr, PiecewiseLinear):
        lr = replace(lr, values=tuple(v * factor for v in lr.values))
    elif isinstance(lr, int | float):
        lr = lr * factor
    else:
        raise DynamicsError(f"{lr!r} does not say how it scales: set the learning rate for {batch_size} images")
    splits = dict(recipe.net.arguments).get("ghost_splits")
    if splits is not None:
        recipe = _net(recipe, ghost_splits=max(1, round(splits * factor)))
    return replace(recipe, batch_size=batch_size, optimizer=replace(recipe.optimizer, lr=lr))


def rungs_of(recipe: Recipe) -> tuple[Rung, ...]:
    """The rungs that a recipe is, at its own width, length, batch size, seed and precision.

    They may be several: rungs that only trade a gain for fewer epochs are one recipe at two lengths.
    """
    width = dict(recipe.net.arguments).get("width")
    here = {"seed": recipe.seed, "precision": recipe.precision}

    def rounded(recipe: Recipe) -> Recipe:
        lr = recipe.optimizer.lr
        if not isinstance(lr, PiecewiseLinear):
            return recipe
        lr = PiecewiseLinear(*(tuple(round(v, 9) for v in values) for values in (lr.knots, lr.values)))
        return replace(recipe, optimizer=replace(recipe.optimizer, lr=lr))

    def is_it(rung: Rung) -> bool:
        if rung.recipe.net.name != recipe.net.name or width is None or not recipe.epochs:
            return False
        small = scaled(rung.recipe, width=width, epochs=recipe.epochs)
        sizes = (replace(small, batch_size=recipe.batch_size), scaled(small, batch_size=recipe.batch_size))
        return any(rounded(replace(r, **here)) == rounded(recipe) for r in sizes)

    return tuple(rung for rung in (*LADDER, *LONG) if is_it(rung))
