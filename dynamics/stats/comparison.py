"""What two sets of runs say of each other, in words."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DynamicsError, unknown
from .decisions import equivalence
from .differences import Difference, paired_difference, welch
from .intervals import check_level
from .power import FEWEST, check_margin, runs_needed, runs_needed_for_equivalence

CLAIMS = ("different", "greater", "less", "same")


class Comparison(NamedTuple):
    """What was claimed of a against b, and what the runs say.

    `status` is supported, refuted or inconclusive. `interval` is that of the mean `difference` a - b, at `level`, and
    decides; `p` belongs to the test (of a claim "same", to two one-sided tests). `n` is the number of pairs, or the
    runs of the smaller side. `more_runs` is how many more pairs, or runs on each side, would tell with a power of 80 %
    if the true difference and spread were the measured ones: 0 where the status is decisive, None where no number can
    be named. `sentence` says all this.
    """

    status: str
    claim: str
    difference: float
    interval: tuple[float, float]
    level: float
    p: float
    n: int
    more_runs: int | None
    sentence: str


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    paired: bool = True,
    margin: float | None = None,
    claim: str | None = None,
    level: float = 0.95,
    names: tuple[str, str] = ("A", "B"),
    units: str = "",
) -> Comparison:
    """Judge a claim on runs a and b, [n] each, or [n] and [m] where not `paired`, and say it in a sentence.

    The claim "different" (the default) or "greater" or "less", of a's mean against b's, is supported where the interval
    of the difference at `level` excludes zero (on the claimed side), refuted where it excludes zero on the other side,
    and inconclusive otherwise: "different" is never refuted, since no number of runs shows a difference of exactly
    zero. The claim "same" (the default where a margin is given, and it needs one, fixed beforehand) is supported where
    the interval lies within ±margin and refuted where it lies outside. With a `level` of 95 % that interval is the
    90 % one of two one-sided tests at 5 % each.
    Pairs share a seed; see `pair_by_seed`. One pair, and differences without a spread, are inconclusive.
    Raises DynamicsError for a claim that does not fit the margin, and as `paired_difference` and `equivalence`.
    """
    claim = claim or ("different" if margin is None else "same")
    check_level(level)
    if claim not in CLAIMS:
        raise unknown("claim", claim, CLAIMS)
    if margin is not None and claim != "same":
        raise DynamicsError(f"a margin belongs to the claim 'same', not to {claim!r}: leave one of them out")
    if claim == "same":
        if margin is None:
            raise DynamicsError("the claim 'same' needs margin=, the largest difference that would not matter")
        check_margin(margin)
        if level <= 0.5:
            raise DynamicsError(f"level must be above 0.5 for the claim 'same', got {level}: pass 0.95")
        tests = equivalence(a, b, margin=margin, paired=paired, alpha=1 - level)
        level = 2 * level - 1
        found = (paired_difference if paired else welch)(a, b, level=level)._replace(p=tests.p)
        status = "supported" if tests.equivalent else "inconclusive"
        if found.low >= margin or found.high <= -margin:
            status = "refuted"
    else:
        found = (paired_difference if paired else welch)(a, b, level=level)
        side = 1 if found.low > 0 else -1 if found.high < 0 else 0
        wanted = {"greater": 1, "less": -1, "different": side}[claim]
        status = "inconclusive" if side == 0 else "supported" if side == wanted else "refuted"
    more = 0 if status != "inconclusive" else _more_runs(found, margin, level, paired)
    text = _in_words(claim, margin, names, units)
    sentence = f"{status} {'whether' if status == 'inconclusive' else 'that'} {text}: "
    sentence += f"{_measured(found, level, names, units)}, from {_runs(found, a, b, paired)}"
    if status == "inconclusive":
        sentence += f"; {_advice(found, more, paired)}"
    interval = (found.low, found.high)
    return Comparison(status, claim, found.mean, interval, level, found.p, found.n, more, sentence)


def _more_runs(found: Difference, margin: float | None, level: float, paired: bool) -> int | None:
    effect, sd = abs(found.mean), found.sd
    try:
        if margin is None:
            needed = runs_needed(effect, sd, alpha=1 - level, paired=paired)
        elif effect < margin:
            needed = runs_needed_for_equivalence(margin, sd, effect=effect, alpha=(1 - level) / 2, paired=paired)
        else:
            needed = max(FEWEST, runs_needed(effect - margin, sd, alpha=1 - level, paired=paired))
    except DynamicsError:  # no spread, no effect, or more than anybody runs: no number to name
        return None
    return max(1, needed - found.n)


def _in_words(claim: str, margin: float | None, names: tuple[str, str], units: str) -> str:
    first, second = names
    if claim == "same":
        return f"{first} and {second} are the same within ±{margin:g}{units and ' '}{units}"
    if claim == "different":
        return f"{first} and {second} differ"
    return f"{first} is {claim} than {second}"


def _measured(found: Difference, level: float, names: tuple[str, str], units: str) -> str:
    value = f"{names[0]} - {names[1]} = {found.mean:.3g}{units and ' '}{units}"
    if math.isinf(found.low):
        return f"{value} (no interval)"
    p = f"p = {found.p:.2g}" if found.p >= 1e-4 else "p < 0.0001"
    return f"{value} ({100 * level:g} %: {found.low:.3g} to {found.high:.3g}, {p})"


def _runs(found: Difference, a: ArrayLike, b: ArrayLike, paired: bool) -> str:
    if paired:
        return f"{found.n} pair{'s' if found.n > 1 else ''} of runs"
    return f"{np.size(a)} and {np.size(b)} runs"


def _advice(found: Difference, more: int | None, paired: bool) -> str:
    if found.n == 1:
        return "one run has no error bar, run more seeds"
    if found.sd == 0:
        equal = "all differences are equal" if paired else "both sides are constant"
        return f"{equal}, which is no spread between seeds: compare other seeds, or judge it as an exact claim"
    if more is None:
        return "the measured difference is too near the border for any number of runs to tell"
    what = f"{'pair' if paired else 'run'}{'s' if more > 1 else ''}{'' if paired else ' on each side'}"
    return f"about {more:,} more {what} would tell, if the difference is what was measured (power 80 %)"
