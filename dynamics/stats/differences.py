"""The difference between two sets of runs: Student, Welch, Wilcoxon, and the size of the effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DynamicsError
from .intervals import as_samples, check_level

SIGNED_RANKS = 1000  # pairs whose sign patterns are counted within about a second


class Difference(NamedTuple):
    """The mean of a - b, its confidence interval, and the p-value of "there is none".

    `n` is the number of pairs, or the runs of the smaller side; `sd` that of the differences, or the root of the mean
    of the two variances (what `power_of` takes; nan for one run); `df` the degrees of freedom of t.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    sd: float
    df: float


class SignedRank(NamedTuple):
    """The sum of ranks of positive differences, its p-value, and how many pairs differ at all."""

    statistic: float
    p: float
    n: int


class Effect(NamedTuple):
    """An effect in standard deviations, the interval of its population value, and the pairs or smaller side's runs."""

    value: float
    low: float
    high: float
    n: int


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Difference:
    """Student's t interval and p-value of the mean of a - b, [n] each, where a[i] and b[i] share all but the change.

    One pair, and differences that are equal up to rounding, have an infinite interval and p = 1.
    Raises DynamicsError where the two differ in length, or for samples that are empty, nan or infinite.
    Source: Student, "The probable error of a mean", Biometrika 6 (1908).
    """
    a, b = _pairs(a, b)
    check_level(level)
    differences, n = a - b, len(a)
    sd = _sd(differences, np.maximum(np.abs(a), np.abs(b)).max())
    return _student(math.fsum(differences) / n, sd / math.sqrt(n), n - 1, level, n, sd)


def welch(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Difference:
    """Welch's t interval and p-value of mean(a) - mean(b), [n] and [m], independent and of any two variances.

    A side of one run, and two sides that are each constant up to rounding, have an infinite interval and p = 1.
    Raises DynamicsError for samples that are empty, nan or infinite.
    Source: B. L. Welch, "The generalization of 'Student's' problem", Biometrika 34 (1947); degrees of freedom by
    F. E. Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    a, b = as_samples("a", a), as_samples("b", b)
    check_level(level)
    mean, smaller = math.fsum(a) / len(a) - math.fsum(b) / len(b), min(len(a), len(b))
    variances = [_sd(side, np.abs(side).max()) ** 2 for side in (a, b)]
    if smaller == 1 or not any(variances):
        return _student(mean, math.nan, 0, level, smaller, math.nan if smaller == 1 else 0.0)
    parts = [variance / len(side) for variance, side in zip(variances, (a, b), strict=True)]
    weight = parts[0] / sum(parts)  # of a: the squares of the variances themselves would underflow
    df = 1 / (weight**2 / (len(a) - 1) + (1 - weight) ** 2 / (len(b) - 1))
    return _student(mean, math.sqrt(sum(parts)), df, level, smaller, math.sqrt(sum(variances) / 2))


def wilcoxon(a: ArrayLike, b: ArrayLike) -> SignedRank:
    """Wilcoxon's signed rank test of paired a and b, [n] each: exact, ties included, without normality.

    Pairs that are equal are left out. Every sign pattern of the (mid)ranks counts once, so that p < 0.05 takes at least
    six pairs: five have p = 0.0625 at best.
    Raises DynamicsError as `paired_difference`, and for more than 1,000 pairs.
    Source: F. Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1 (1945).
    """
    a, b = _pairs(a, b)
    differences = a - b
    # what rounding alone tells apart is tied: 0.3 - 0.1 and 0.2 - 0.0 are not two ranks
    grain = 8 * np.finfo(np.float64).eps * np.maximum(np.abs(a), np.abs(b)).max()
    differences = differences[np.abs(differences) > grain]
    n = len(differences)
    if n > SIGNED_RANKS:
        raise DynamicsError(f"wilcoxon counts sign patterns, too many for {n} pairs: take paired_difference instead")
    doubled = _doubled_midranks(np.abs(differences), grain)
    observed, total = int(doubled[differences > 0].sum()), int(doubled.sum())
    chance = np.zeros(total + 1)  # of each value of the doubled statistic
    chance[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(chance)
        moved[rank:] = chance[: total + 1 - rank]
        chance = (chance + moved) / 2
    smaller_tail = chance[: min(observed, total - observed) + 1].sum()
    return SignedRank(observed / 2, float(min(1.0, 2 * smaller_tail)), n)


def effect_size(a: ArrayLike, b: ArrayLike, *, paired: bool = True, level: float = 0.95) -> Effect:
    """How large a - b is in standard deviations: d_z for pairs, [n] each, otherwise Hedges' g, [n] and [m].

    d_z is the mean difference over the sd of the differences. g is the difference of the means over the pooled sd,
    times the exact factor that removes its bias in small samples. The interval is that of the population's effect, by
    inversion of the noncentral t (for g it assumes equal variances).
    Raises DynamicsError as `paired_difference`, and where there is no spread to divide by.
    Sources: L. V. Hedges, "Distribution theory for Glass's estimator of effect size", J. Educational Statistics 6
    (1981), eq. 6e; d_z: J. Cohen, Statistical Power Analysis (1988), section 2.3.5.
    """
    from scipy.special import gammaln, nctdtrinc

    check_level(level)
    if paired:
        difference = paired_difference(a, b)
        mean, sd, df, n, factor = difference.mean, difference.sd, difference.n - 1, difference.n, 1.0
        scale = math.sqrt(n)
    else:
        a, b = as_samples("a", a), as_samples("b", b)
        n, df = min(len(a), len(b)), len(a) + len(b) - 2
        spread = [_sd(side, np.abs(side).max()) if len(side) > 1 else 0.0 for side in (a, b)]
        squares = sum((len(side) - 1) * sd**2 for side, sd in zip((a, b), spread, strict=True))
        mean, sd = math.fsum(a) / len(a) - math.fsum(b) / len(b), math.sqrt(squares / df) if df else math.nan
        scale = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
        factor = math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / math.sqrt(df / 2) if df > 1 else math.nan
    if not sd > 0 or math.isnan(factor):
        raise DynamicsError("an effect size needs a spread to divide by: pass at least two runs that differ")
    tail = (1 - level) / 2
    low, high = (float(nctdtrinc(df, p, scale * mean / sd)) / scale for p in (1 - tail, tail))
    return Effect(factor * mean / sd, low, high, n)


def pair_by_seed(
    seeds_a: Sequence[int], a: ArrayLike, seeds_b: Sequence[int], b: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
    """The runs of a and b in the order of their common seeds, [n] each, and these seeds.

    Raises DynamicsError for a seed that is there twice, that the other side lacks, or that has no value.
    """
    sides = []
    for name, seeds, samples in (("a", seeds_a, a), ("b", seeds_b, b)):
        values = as_samples(name, samples)
        if len(values) != len(seeds):
            raise DynamicsError(f"{name} has {len(values)} values and {len(seeds)} seeds: pass one seed for each run")
        twice = sorted({seed for seed in seeds if list(seeds).count(seed) > 1})
        if twice:
            raise DynamicsError(f"{name} holds seed {twice[0]} twice: the same run again is no other sample, drop one")
        sides.append(dict(zip(seeds, values.tolist(), strict=True)))
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        have = "a" if alone[0] in sides[0] else "b"
        raise DynamicsError(f"only {have} has seed {alone[0]}: run it on the other side too, or leave it out")
    common = tuple(sorted(sides[0]))
    first, second = (np.array([side[seed] for seed in common]) for side in sides)
    return first, second, common


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = as_samples("a", a), as_samples("b", b)
    if len(a) != len(b):
        raise DynamicsError(
            f"pairs differ in length, {len(a)} and {len(b)}: pass one b for each a, in the order of their seeds"
        )
    return a, b


def _sd(values: NDArray[np.float64], magnitude: float) -> float:
    """The standard deviation (n-1), 0 where it is no more than the rounding of numbers of this magnitude."""
    if len(values) == 1:
        return math.nan
    if np.ptp(values) <= 8 * np.finfo(np.float64).eps * magnitude:
        return 0.0
    return float(np.std(values, ddof=1))


def _student(mean: float, error: float, df: float, level: float, n: int, sd: float) -> Difference:
    if not error > 0:
        return Difference(mean, -math.inf, math.inf, 1.0, n, sd, df)
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(df, (1 + level) / 2)) * error
    return Difference(mean, mean - half, mean + half, 2 * float(stdtr(df, -abs(mean) / error)), n, sd, df)


def _doubled_midranks(sizes: NDArray[np.float64], grain: float) -> NDArray[np.int64]:
    """Twice the ranks, which makes the mean rank of ties an integer."""
    order = np.sort(sizes)
    below = np.searchsorted(order, sizes - grain, side="left")
    return below + np.searchsorted(order, sizes + grain, side="right") + 1
