"""Power: the chance that runs show an effect of a given size, and how many runs that takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import DynamicsError
from .intervals import check_alpha

MOST = 10**6  # runs: nobody trains more

FEWEST = 8
"""Runs without which equivalence is not judged: a spread estimated from fewer says too little about a margin."""


def power_of(n: int, effect: float, sd: float, *, alpha: float = 0.05, paired: bool = True) -> float:
    """The chance that a two-sided t-test of n pairs, or of n runs on each side, finds a mean difference of `effect`.

    `sd` is that of the differences between partners where `paired`, otherwise that of one side's runs. One run finds
    nothing: its power is 0.
    Raises DynamicsError for n < 1, and as `runs_needed`.
    Source: noncentral t, J. Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2.
    """
    if n < 1:
        raise DynamicsError(f"n must be at least 1, got {n}: pass the number of pairs, or of runs on each side")
    _check_spread(effect, sd)
    check_alpha(alpha)
    if n == 1:
        return 0.0
    from scipy.special import nctdtr, stdtrit

    df = n - 1 if paired else 2 * n - 2
    shift = abs(effect) / sd * math.sqrt(n if paired else n / 2)
    bound = float(stdtrit(df, 1 - alpha / 2))
    return float(1 - nctdtr(df, shift, bound) + nctdtr(df, shift, -bound))


def runs_needed(effect: float, sd: float, *, power: float = 0.8, alpha: float = 0.05, paired: bool = True) -> int:
    """The fewest pairs, or runs on each side, whose two-sided t-test finds a mean difference of `effect` with `power`.

    `effect` and `sd` are in the same units, and `sd` is as in `power_of`.
    Raises DynamicsError for an effect of zero, an sd that is not positive, a power outside (0, 1), an alpha outside
    (0, 0.5), and where a million runs would not do.
    """
    _check_spread(effect, sd)
    check_alpha(alpha)
    _check_power(power)
    if effect == 0:
        raise DynamicsError("no number of runs finds an effect of zero: pass the smallest effect that matters")
    return _fewest(lambda n: power_of(n, effect, sd, alpha=alpha, paired=paired), power, 2)


def equivalence_power(
    n: int, effect: float, sd: float, *, margin: float, alpha: float = 0.05, paired: bool = True
) -> float:
    """The chance that two one-sided t-tests of n pairs, or of n runs on each side, find |difference| < margin.

    `effect` is the true difference, usually 0. With s the estimate of the standard error σ,
    P = E over s of Φ((margin - effect - t s)/σ) - Φ((-margin - effect + t s)/σ), where that is positive.
    Raises DynamicsError for n < 2, a margin that is not positive, and as `power_of`.
    Source: K. F. Phillips, "Power of the two one-sided tests procedure in bioequivalence", J. Pharmacokinetics and
    Biopharmaceutics 18 (1990).
    """
    from scipy.special import chdtri, ndtr, stdtrit

    if n < 2:
        raise DynamicsError(f"n must be at least 2, got {n}: one run has no interval")
    check_margin(margin)
    _check_spread(effect, sd)
    check_alpha(alpha)
    df = n - 1 if paired else 2 * n - 2
    error = sd / math.sqrt(n if paired else n / 2)
    quantiles = (np.arange(200) + 0.5) / 200  # of s: the mean over them is right to 0.0003
    reach = float(stdtrit(df, 1 - alpha)) * np.sqrt(chdtri(df, quantiles) / df)
    found = ndtr((margin - effect) / error - reach) - ndtr((-margin - effect) / error + reach)
    return float(np.maximum(found, 0).mean())


def runs_needed_for_equivalence(
    margin: float, sd: float, *, effect: float = 0.0, power: float = 0.8, alpha: float = 0.05, paired: bool = True
) -> int:
    """The fewest pairs, or runs on each side, at least 8, that show |difference| < margin where it truly is `effect`.

    Raises DynamicsError where |effect| is not below the margin, and as `runs_needed`.
    """
    check_margin(margin)
    _check_spread(effect, sd)
    check_alpha(alpha)
    _check_power(power)
    if abs(effect) >= margin:
        raise DynamicsError(
            f"an effect of {effect:g} is not within the margin of {margin:g}: no number of runs shows that it is"
        )
    return _fewest(lambda n: equivalence_power(n, effect, sd, margin=margin, alpha=alpha, paired=paired), power, FEWEST)


def check_margin(margin: float) -> None:
    """Raises DynamicsError for a margin that is not a positive number."""
    if not (margin > 0 and math.isfinite(margin)):
        raise DynamicsError(f"margin must be positive and finite, got {margin}: pass the largest harmless difference")


def _check_spread(effect: float, sd: float) -> None:
    if not math.isfinite(effect):
        raise DynamicsError(f"effect must be finite, got {effect}: pass a difference in the samples' units")
    if not (sd > 0 and math.isfinite(sd)):
        raise DynamicsError(f"sd must be positive and finite, got {sd}: measure it from at least two runs that differ")


def _check_power(power: float) -> None:
    if not 0 < power < 1:
        raise DynamicsError(f"power must lie between 0 and 1, got {power}: pass 0.8 to find it in four cases of five")


def _fewest(chance: Callable[[int], float], wanted: float, start: int) -> int:
    """The fewest runs from `start` on whose chance, which grows with them, is the wanted one."""
    if chance(start) >= wanted:
        return start
    low, high = start, 2 * start
    while chance(high) < wanted:
        low, high = high, 2 * high
        if low > MOST:
            raise DynamicsError(f"more than {MOST:,} runs would be needed: ask for a larger effect or margin")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= wanted else (middle, high)
    return high
