"""Intervals, tests, effect sizes, equivalence, families of tests, power, and comparisons in words.

Plain numbers in, named tuples out. A sample is one independent run (one seed), never a step, an image or an epoch of
one. `level` is the confidence of an interval (0.95), `alpha` the rate of false alarms of a test (0.05). A difference is
always a - b, and p-values are two-sided. scipy is imported where it is needed only.

    compare(a, b)               what two lists of runs say, in words
    paired_difference, welch    the same in numbers, for runs that share seeds (`pair_by_seed`) and for runs that do not
    wilcoxon                    the paired test without normality
    effect_size                 the difference in standard deviations
    equivalence                 "makes no difference", within a margin fixed beforehand
    holm                        several tests at once
    power_of, runs_needed       how many runs an effect takes; `runs_needed_for_equivalence` how many its absence
    mcnemar                     two models on the same test images

One run has an infinite interval. In comparisons so have differences that are all equal up to rounding: a spread of zero
is no estimate of the spread between seeds, but a sign of values rounded too coarsely, or of one seed run again. What
must hold exactly is judged sample by sample, by `dynamics.check(..., exact=True)`.
"""

from __future__ import annotations

from .comparison import Comparison, compare
from .decisions import Equivalence, Family, McNemar, equivalence, holm, mcnemar
from .differences import (
    Difference,
    Effect,
    SignedRank,
    effect_size,
    pair_by_seed,
    paired_difference,
    welch,
    wilcoxon,
)
from .intervals import Interval, mean_interval, ratio_interval, rms
from .power import equivalence_power, power_of, runs_needed, runs_needed_for_equivalence

__all__ = [
    "Comparison",
    "Difference",
    "Effect",
    "Equivalence",
    "Family",
    "Interval",
    "McNemar",
    "SignedRank",
    "compare",
    "effect_size",
    "equivalence",
    "equivalence_power",
    "holm",
    "mcnemar",
    "mean_interval",
    "pair_by_seed",
    "paired_difference",
    "power_of",
    "ratio_interval",
    "rms",
    "runs_needed",
    "runs_needed_for_equivalence",
    "welch",
    "wilcoxon",
]
