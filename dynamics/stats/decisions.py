"""Equivalence within a margin, families of tests, and two models on the same images."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DynamicsError
from .differences import paired_difference, welch
from .intervals import as_samples, check_alpha, check_level
from .power import FEWEST, check_margin


class Equivalence(NamedTuple):
    """Whether |a - b| is below the margin, the larger of the two one-sided p-values, and the 1 - 2 alpha interval."""

    equivalent: bool
    p: float
    mean: float
    low: float
    high: float
    margin: float
    n: int


class Family(NamedTuple):
    """p-values adjusted for their number, and which hypotheses of "no effect" they reject, in the order given."""

    adjusted: tuple[float, ...]
    rejected: tuple[bool, ...]


class McNemar(NamedTuple):
    """accuracy(a) - accuracy(b), its interval at `level`, the exact p-value, images, and those one alone has right."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    only_a: int
    only_b: int
    level: float

    def in_words(self, names: tuple[str, str] = ("A", "B")) -> str:
        """What the images say of these two models; found where p <= 1 - level."""
        first, second = names
        judged = "inconclusive whether either is right more often"
        if self.p <= 1 - self.level:
            judged = f"supported that {first if self.difference > 0 else second} is right more often"
        return (
            f"{judged}: accuracy {first} - {second} = {self.difference:.3g} ({100 * self.level:g} %: {self.low:.3g} to "
            f"{self.high:.3g}, p = {self.p:.2g}), from {self.only_a} images that {first} alone has right and "
            f"{self.only_b} that {second} alone has right, of {self.n:,}; other seeds may say otherwise"
        )


def equivalence(a: ArrayLike, b: ArrayLike, *, margin: float, paired: bool = True, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t-tests that the mean of a - b lies within ±margin, [n] each, or [n] and [m] where not `paired`.

    `margin` is in the samples' units and fixed before they are seen: the largest difference that would not matter.
    Equivalent where both tests reject, which is where the 1 - 2 alpha interval lies within ±margin. Without a spread
    (differences that are equal up to rounding) nothing is shown: p = 1.
    Raises DynamicsError for fewer than 8 pairs, or runs on either side, and as `paired_difference`.
    Source: D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", J.
    Pharmacokinetics and Biopharmaceutics 15 (1987).
    """
    check_margin(margin)
    check_alpha(alpha)
    found = (paired_difference if paired else welch)(a, b, level=1 - 2 * alpha)
    if found.n < FEWEST:
        what = "pairs" if paired else "runs on each side"
        raise DynamicsError(
            f"equivalence needs at least {FEWEST} {what}, got {found.n}: run {FEWEST - found.n} more seeds"
        )
    if not found.sd > 0:
        return Equivalence(False, 1.0, found.mean, found.low, found.high, margin, found.n)
    from scipy.special import stdtr, stdtrit

    error = (found.high - found.mean) / float(stdtrit(found.df, 1 - alpha))
    p = float(stdtr(found.df, (abs(found.mean) - margin) / error))
    return Equivalence(p < alpha, p, found.mean, found.low, found.high, margin, found.n)


def holm(p_values: ArrayLike, *, alpha: float = 0.05) -> Family:
    """Holm's step-down adjustment of a family's p-values, [m], which need not be independent.

    The chance of even one false alarm in the family is at most alpha. The smallest p counts m times, the next m - 1
    times, and none less than one before it.
    Raises DynamicsError for no p-values, or one outside [0, 1].
    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian J. Statistics 6 (1979).
    """
    p = as_samples("p_values", p_values)
    check_alpha(alpha)
    bad = np.flatnonzero((p < 0) | (p > 1))
    if len(bad):
        raise DynamicsError(f"p_values[{bad[0]}] is {p[bad[0]]:g}: a p-value lies between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return Family(tuple(adjusted.tolist()), tuple((adjusted <= alpha).tolist()))


def mcnemar(right_a: ArrayLike, right_b: ArrayLike, *, level: float = 0.95) -> McNemar:
    """McNemar's exact test of two models on the same images, from which of them each has right: booleans, [n] each.

    Only images that one model alone has right count; where the models are equally good each side is a fair coin's. It
    judges these two sets of weights on images like these; what a recipe does takes several seeds (`compare`). The
    interval adds one image to each of the two counts; near the limit it may leave out 0 where the exact p-value, which
    is cautious, is still above 1 - level.
    Raises DynamicsError where the two differ in length, are empty, or are not booleans.
    Sources: Q. McNemar, Psychometrika 12 (1947); the interval: D. G. Bonett and R. M. Price, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", J. Educational and Behavioral Statistics
    37 (2012).
    """
    from scipy.special import bdtr, ndtri

    a, b = _right("right_a", right_a), _right("right_b", right_b)
    check_level(level)
    if len(a) != len(b):
        raise DynamicsError(f"{len(a)} and {len(b)} images: pass both models' answers on the same images, in one order")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    unlike = only_a + only_b
    p = min(1.0, 2 * float(bdtr(min(only_a, only_b), unlike, 0.5))) if unlike else 1.0
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    half = float(ndtri((1 + level) / 2)) * math.sqrt((share_a + share_b - centre**2) / (n + 2))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return McNemar((only_a - only_b) / n, low, high, p, n, only_a, only_b, level)


def _right(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype != np.bool_ or array.ndim != 1 or not len(array):
        raise DynamicsError(
            f"{name} has dtype {array.dtype} and shape {array.shape}: pass (predictions == labels), a boolean an image"
        )
    return array
