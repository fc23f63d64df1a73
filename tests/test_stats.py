from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from dynamics import stats
from dynamics.errors import DynamicsError
from dynamics.stats import (
    Interval,
    SignedRank,
    compare,
    effect_size,
    equivalence,
    equivalence_power,
    holm,
    mcnemar,
    mean_interval,
    pair_by_seed,
    paired_difference,
    power_of,
    ratio_interval,
    rms,
    runs_needed,
    runs_needed_for_equivalence,
    welch,
    wilcoxon,
)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [2, 3, 30, 1000])
def test_mean_interval_equals_scipy(n, level):
    samples = np.random.default_rng(n).normal(3.0, 2.0, n)
    interval = mean_interval(samples, level=level)
    expected = scipy.stats.t.interval(level, n - 1, loc=samples.mean(), scale=scipy.stats.sem(samples))
    np.testing.assert_allclose((interval.low, interval.high), expected, rtol=1e-10)
    assert interval.mean == pytest.approx(samples.mean(), rel=1e-14)
    assert (interval.n, interval.sd) == (n, pytest.approx(samples.std(ddof=1)))


def test_student_sleep_data_by_hand():
    """Student's 1908 differences in hours of sleep: mean 1.58, sd 1.2300, t(9) = 2.2622, so 0.70 to 2.46 hours."""
    interval = mean_interval([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert interval.mean == pytest.approx(1.58)
    assert interval.sd == pytest.approx(1.2300, abs=5e-5)
    assert interval.low == pytest.approx(1.58 - 2.262157 * 1.229995 / math.sqrt(10), abs=1e-5)
    assert (round(interval.low, 2), round(interval.high, 2)) == (0.70, 2.46)


@pytest.mark.parametrize("n", [2, 5])
def test_coverage_is_the_level(n):
    rng = np.random.default_rng(0)
    inside = [low <= 0 <= high for _, low, high, _, _ in (mean_interval(row) for row in rng.normal(size=(4000, n)))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_one_sample_and_identical_samples():
    one = mean_interval(2.5)
    assert one[:4] == (2.5, -math.inf, math.inf, 1) and math.isnan(one.sd)
    assert mean_interval([0.1] * 3) == Interval(0.1, 0.1, 0.1, 3, 0.0)


def test_ratio_interval_is_the_interval_of_logs():
    a, b = np.array([2.0, 4.2, 8.1, 3.9]), np.array([1.0, 2.0, 4.0, 2.0])
    interval = ratio_interval(a, b)
    expected = scipy.stats.t.interval(0.95, 3, loc=np.log(a / b).mean(), scale=scipy.stats.sem(np.log(a / b)))
    np.testing.assert_allclose((interval.low, interval.high), np.exp(expected), rtol=1e-12)
    assert interval.mean == pytest.approx(scipy.stats.gmean(a / b))
    assert interval.sd == pytest.approx(np.log(a / b).std(ddof=1))
    turned = ratio_interval(b, a)
    assert turned.low == pytest.approx(1 / interval.high) and turned.high == pytest.approx(1 / interval.low)
    assert ratio_interval([2.0], [1.0])[:4] == (2.0, 0.0, math.inf, 1)


def test_pairing_matters():
    """A noise that both partners share cancels: that is what pairs are for."""
    rng = np.random.default_rng(3)
    b = np.exp(rng.normal(size=20))
    a = 1.1 * b * np.exp(0.01 * rng.normal(size=20))
    paired, shuffled = ratio_interval(a, b), ratio_interval(a, np.roll(b, 1))
    assert paired.high - paired.low < 0.02 < shuffled.high - shuffled.low


def test_rms():
    assert rms([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))
    np.testing.assert_allclose(rms([[3.0, 4.0], [0.0, 2.0]], axis=1), [math.sqrt(12.5), math.sqrt(2.0)])


# Student 1908, hours of sleep gained by ten patients on two drugs (R's data set `sleep`)
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Hollander & Wolfe 1973, p. 29: depression scale at the first and second visit (the example of R's wilcox.test)
VISIT_1 = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
VISIT_2 = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


def test_paired_difference_of_students_sleep_data():
    """R prints for t.test(..., paired = TRUE): t = -4.0621, df = 9, p-value = 0.002833, -2.4598858 to -0.7001142."""
    found = paired_difference(SLEEP_1, SLEEP_2)
    assert (found.mean, found.n, found.df) == (pytest.approx(-1.58), 10, 9)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.low, found.high) == (pytest.approx(-2.4598858, abs=5e-8), pytest.approx(-0.7001142, abs=5e-8))
    theirs = scipy.stats.ttest_rel(SLEEP_1, SLEEP_2)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)


def test_welch_of_students_sleep_data():
    """R prints for t.test: t = -1.8608, df = 17.776, p-value = 0.07939, -3.3654832 to 0.2054832."""
    found = welch(SLEEP_1, SLEEP_2)
    assert (found.p, found.df) == (pytest.approx(0.07939, abs=5e-6), pytest.approx(17.776, abs=5e-4))
    assert (found.low, found.high) == (pytest.approx(-3.3654832, abs=5e-8), pytest.approx(0.2054832, abs=5e-8))


@pytest.mark.parametrize("n, m", [(2, 2), (3, 8), (20, 5)])
def test_welch_equals_scipy(n, m):
    rng = np.random.default_rng([n, m])
    a, b = rng.normal(1, 1, n), rng.normal(0, 3, m)
    found, theirs = welch(a, b, level=0.9), scipy.stats.ttest_ind(a, b, equal_var=False)
    expected = theirs.confidence_interval(0.9)
    np.testing.assert_allclose((found.low, found.high, found.p), (*expected, theirs.pvalue), rtol=1e-10)
    assert (found.n, found.sd) == (min(n, m), pytest.approx(math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)))


def test_a_constant_side_leaves_the_spread_of_the_other():
    found = welch([1.0, 1.0, 1.0], [0.0, 0.1, 0.4])
    theirs = mean_interval([0.0, 0.1, 0.4])
    assert (found.high - found.low) == pytest.approx(theirs.high - theirs.low) and found.df == pytest.approx(2)


@pytest.mark.parametrize(
    "found",
    [
        paired_difference([1.0], [0.5]),
        paired_difference([1.0, 2.0, 4.0], [0.9, 1.9, 3.9]),  # 0.1 each, up to rounding
        paired_difference([1.0, 2.0], [1.0, 2.0]),
        welch([1.0], [0.1, 0.2]),
        welch([1.0, 1.0], [0.5, 0.5]),
    ],
    ids=["one pair", "equal up to rounding", "identical", "one run", "two constants"],
)
def test_without_a_spread_an_interval_is_infinite(found):
    assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)


def signed_rank_twin(differences):
    """Every sign pattern of the midranks, one by one."""
    differences = np.array([d for d in differences if d])
    ranks = scipy.stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
            for signs in itertools.product((0, 1), repeat=len(ranks))]  # fmt: skip
    tails = np.mean(np.array(sums) <= observed), np.mean(np.array(sums) >= observed)
    return observed, min(1.0, 2 * min(tails))


@pytest.mark.parametrize(
    "differences",
    [[1, 2, 3, 4, 5], [3, -1, 4, 1, -5, 9, 2, 6], [1, 1, -1, 2, 2, -3, 3, 3, 0, 0], [2, -2], [-0.5], [1] * 9],
)
def test_wilcoxon_equals_the_enumeration_of_signs_ties_included(differences):
    found = wilcoxon(differences, np.zeros(len(differences)))
    assert (found.statistic, found.p) == pytest.approx(signed_rank_twin(differences))
    assert found.n == np.count_nonzero(differences)


def test_wilcoxon_of_hollander_and_wolfe():
    """V = 40; R prints p-value = 0.01953 for the one-sided test, and ours is two-sided."""
    found = wilcoxon(VISIT_1, VISIT_2)
    assert (found.statistic, found.n) == (40, 9)
    assert found.p == pytest.approx(2 * 0.01953, abs=1e-5)
    assert found.p == pytest.approx(scipy.stats.wilcoxon(VISIT_1, VISIT_2, method="exact").pvalue, rel=1e-12)


def test_wilcoxon_equals_scipy_for_many_pairs():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.3, 1, 45), rng.normal(0, 1, 45)
    assert wilcoxon(a, b).p == pytest.approx(scipy.stats.wilcoxon(a, b, method="exact").pvalue, rel=1e-9)


def test_differences_that_rounding_alone_tells_apart_are_tied():
    assert wilcoxon([0.3, 0.2, 1.0], [0.1, 0.0, 2.0]) == wilcoxon([2, 2, 0], [0, 0, 5])
    assert wilcoxon([0.1 + 0.2], [0.3]) == SignedRank(0.0, 1.0, 0)


def test_effect_sizes_of_the_sleep_data():
    """By hand: d_z = -1.58 / 1.229995 and g = -1.58 / 1.898625 (1 - 3/71), whose factor is approximate to 1e-4."""
    pairs, sides = effect_size(SLEEP_1, SLEEP_2), effect_size(SLEEP_1, SLEEP_2, paired=False)
    assert pairs.value == pytest.approx(-1.58 / 1.229995, abs=1e-6)
    assert sides.value == pytest.approx(-1.58 / 1.898625 * (1 - 3 / 71), abs=2e-4)


@pytest.mark.parametrize("paired", [True, False])
def test_an_effects_interval_inverts_the_noncentral_t(paired):
    found = effect_size(SLEEP_1, SLEEP_2, paired=paired, level=0.9)
    root = math.sqrt(10 if paired else 5)
    t, df = (found.value * root, 9) if paired else (-1.58 / 1.898625233630317 * root, 18)
    for bound, chance in ((found.low, 0.95), (found.high, 0.05)):
        assert scipy.stats.nct.cdf(t, df, bound * root) == pytest.approx(chance, abs=1e-5)


def test_hedges_factor_removes_the_bias():
    rng = np.random.default_rng(11)
    values = [effect_size(rng.normal(1, 1, 4), rng.normal(0, 1, 4), paired=False).value for _ in range(3000)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - 1) < 3.5 * error < 0.09, "uncorrected it is 15 % too large"


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_is_two_one_sided_tests_of_scipy(paired):
    for margin in (0.5, 1.0, 2.0, 3.0):
        found = equivalence(SLEEP_1, SLEEP_2, margin=margin, paired=paired)
        tails = []
        for shift, side in ((-margin, "greater"), (margin, "less")):
            moved = np.array(SLEEP_1) - shift
            if paired:
                tails.append(scipy.stats.ttest_rel(moved, SLEEP_2, alternative=side).pvalue)
            else:
                tails.append(scipy.stats.ttest_ind(moved, SLEEP_2, equal_var=False, alternative=side).pvalue)
        assert found.p == pytest.approx(max(tails), rel=1e-9)
        assert found.equivalent == (max(tails) < 0.05) == (-margin < found.low and found.high < margin)
    assert found.equivalent is paired  # the last margin, 3 hours: from pairs only


def test_a_difference_of_nothing_but_zeros_shows_no_equivalence():
    assert equivalence(SLEEP_1, SLEEP_1, margin=1.0)[:2] == (False, 1.0)


def holm_twin(p, alpha):
    """The step-down procedure as Holm states it: stop at the first that is not small enough."""
    rejected = [False] * len(p)
    for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected[i] = True
    return tuple(rejected)


def test_holm_by_hand():
    """Four p-values that Wikipedia's article on the method works through: two fall, at 4 × 0.005 and 3 × 0.01."""
    family = holm([0.01, 0.04, 0.03, 0.005])
    assert family.adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert family.rejected == (True, False, False, True)


def test_holm_equals_the_step_down_procedure():
    rng = np.random.default_rng(7)
    for _ in range(300):
        p = np.round(rng.random(rng.integers(1, 9)) ** 3, 3).tolist()
        assert holm(p, alpha=0.05).rejected == holm_twin(p, 0.05)
    assert holm([0.7, 0.9]).adjusted == (1.0, 1.0) and holm([0.02]).adjusted == (0.02,)


def answers(both, only_a, only_b, neither):
    table = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    a, b = np.array(table).T
    return a, b


def test_mcnemar_of_two_culture_media():
    """Armitage & Berry 1994, p. 127: fifty specimens, 12 grew on one medium alone and 2 on the other; P = 0.0129."""
    found = mcnemar(*answers(20, 12, 2, 16))
    assert (found.n, found.only_a, found.only_b, found.difference) == (50, 12, 2, pytest.approx(0.2))
    assert found.p == pytest.approx(0.0129, abs=5e-5)
    a, b, n = 13 / 52, 3 / 52, 52  # Bonett and Price: one more image on each side
    half = scipy.stats.norm.ppf(0.975) * math.sqrt((a + b - (a - b) ** 2) / n)
    assert (found.low, found.high) == pytest.approx((a - b - half, a - b + half))


def test_mcnemar_equals_the_enumeration_of_coin_throws():
    for only_a, only_b in itertools.product(range(6), repeat=2):
        throws = [sum(coins) for coins in itertools.product((0, 1), repeat=only_a + only_b)]
        fair = np.mean([abs(2 * k - len(coins_of)) >= abs(only_a - only_b)
                        for k in throws for coins_of in [range(only_a + only_b)]])  # fmt: skip
        found = mcnemar(*answers(3, only_a, only_b, 2))
        assert found.p == pytest.approx(fair) and found.difference == pytest.approx((only_a - only_b) / found.n)


def test_mcnemar_turned_round_and_of_a_model_with_itself():
    a, b = answers(20, 12, 2, 16)
    there, back = mcnemar(a, b), mcnemar(b, a)
    assert (there.p, there.low, there.high) == (back.p, pytest.approx(-back.high), pytest.approx(-back.low))
    same = mcnemar(a, a)
    assert (same.p, same.difference) == (1.0, 0.0) and same.low == -same.high < 0


def test_mcnemar_in_words():
    assert mcnemar(*answers(20, 12, 2, 16)).in_words(("old", "new")) == (
        "supported that old is right more often: accuracy old - new = 0.2 (95 %: 0.0509 to 0.334, p = 0.013), from 12 "
        "images that old alone has right and 2 that new alone has right, of 50; other seeds may say otherwise"
    )
    assert mcnemar(*answers(0, 2, 12, 0)).in_words().startswith("supported that B is right more often")
    assert mcnemar(*answers(5, 2, 3, 0)).in_words().startswith("inconclusive whether either is right more often")


def test_mcnemars_interval_covers_by_enumeration():
    """All tables of 40 images, weighted by their chance: the interval holds the true difference in 93 to 99 %."""
    n = 40
    for chance_a, chance_b in ((0.1, 0.1), (0.2, 0.1), (0.3, 0.1)):
        covered = 0.0
        for i in range(n + 1):
            for j in range(n + 1 - i):
                chance = scipy.stats.multinomial.pmf(
                    [i, j, n - i - j], n, [chance_a, chance_b, 1 - chance_a - chance_b]
                )
                if chance > 1e-7:
                    found = mcnemar(*answers(n - i - j, i, j, 0))
                    covered += chance * (found.low <= chance_a - chance_b <= found.high)
        assert 0.93 < covered < 0.99


def test_power_of_rs_examples():
    """R's power.t.test: n = 20, delta = 1, sd = 1 has power 0.8689528; power 0.90 takes n = 22.02110."""
    assert power_of(20, 1, 1, paired=False) == pytest.approx(0.8689528, abs=1e-6)
    assert runs_needed(1, 1, power=0.9, paired=False) == 23


def test_runs_needed_of_cohens_medium_effect():
    """Cohen 1988, table 2.4.1: d = 0.5 at 5 % and power 0.80 takes 64 a side; 34 pairs of d_z = 0.5 (G*Power)."""
    assert runs_needed(0.5, 1, paired=False) == 64
    assert runs_needed(0.5, 1) == 34


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("effect", [0.2, 0.9, 4.0])
def test_runs_needed_are_the_fewest(effect, paired):
    n = runs_needed(effect, 2.0, power=0.7, alpha=0.01, paired=paired)
    chance = [power_of(k, effect, 2.0, alpha=0.01, paired=paired) for k in range(1, n + 1)]
    assert n == 1 + next(k for k, value in enumerate(chance) if value >= 0.7)


def test_power_equals_the_noncentral_t_of_scipy():
    for n, effect in ((2, 1.0), (5, 0.0), (5, -1.3), (40, 0.4)):
        df, bound = n - 1, scipy.stats.t.ppf(0.975, n - 1)
        shift = effect * math.sqrt(n)
        expected = scipy.stats.nct.sf(bound, df, shift) + scipy.stats.nct.cdf(-bound, df, shift)
        assert power_of(n, effect, 1) == pytest.approx(expected, abs=1e-10)
    assert power_of(5, 0, 1) == pytest.approx(0.05) and power_of(1, 9, 1) == 0 and power_of(2, 1e6, 1) == 1


def test_equivalence_power_equals_an_integral_over_the_spread():
    for n, effect, margin, paired in ((8, 0.0, 1.0, True), (12, 0.3, 0.8, False), (8, 0.0, 0.3, True)):
        df, error = (n - 1, 1 / math.sqrt(n)) if paired else (2 * n - 2, math.sqrt(2 / n))

        s = np.linspace(0, 4, 4001)[1:]
        reach = scipy.stats.t.ppf(0.95, df) * error * s
        low, high = (scipy.stats.norm.cdf(bound, effect, error) for bound in (reach - margin, margin - reach))
        density = scipy.stats.chi.pdf(s * math.sqrt(df), df) * math.sqrt(df)
        expected = (np.maximum(0, high - low) * density).sum() * (s[1] - s[0])
        assert equivalence_power(n, effect, 1, margin=margin, paired=paired) == pytest.approx(expected, abs=1e-3)


def test_equivalence_takes_at_least_eight_runs():
    assert runs_needed_for_equivalence(100, 1) == 8
    n = runs_needed_for_equivalence(0.5, 1)
    assert equivalence_power(n - 1, 0, 1, margin=0.5) < 0.8 <= equivalence_power(n, 0, 1, margin=0.5)


def test_runs_are_paired_by_their_seeds():
    a, b, seeds = pair_by_seed([3, 1, 2], [0.3, 0.1, 0.2], [1, 2, 3], [1.0, 2.0, 3.0])
    assert (a.tolist(), b.tolist(), seeds) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], (1, 2, 3))


def status(mean, *, sd=1.0, n=9, **arguments):
    """What is said of differences of this mean and sd exactly."""
    shape = np.arange(n) - (n - 1) / 2
    return compare(mean + sd * shape / shape.std(ddof=1), np.zeros(n), **arguments).status


def test_a_comparison_is_judged_by_where_the_interval_lies():
    half = scipy.stats.t.ppf(0.975, 8) / 3  # 0.769
    for claim, expected in {
        "different": ("supported", "inconclusive", "inconclusive", "supported"),
        "greater": ("refuted", "inconclusive", "inconclusive", "supported"),
        "less": ("supported", "inconclusive", "inconclusive", "refuted"),
    }.items():
        means = (-1.01 * half, -0.99 * half, 0.99 * half, 1.01 * half)
        assert tuple(status(mean, claim=claim) for mean in means) == expected
    half = scipy.stats.t.ppf(0.95, 8) / 3
    means = (0.0, 2 - 1.01 * half, 2 - 0.99 * half, 2 + 0.99 * half, 2 + 1.01 * half)
    expected = ["supported", "supported", "inconclusive", "inconclusive", "refuted"]
    assert [status(mean, margin=2.0) for mean in means] == expected
    assert [status(-mean, margin=2.0) for mean in means] == expected


def test_a_comparison_in_words():
    found = compare(SLEEP_1, SLEEP_2, units="h")
    assert found.sentence == (
        "supported that A and B differ: A - B = -1.58 h (95 %: -2.46 to -0.7, p = 0.0028), from 10 pairs of runs"
    )
    assert (found.status, found.n, found.more_runs, found.claim) == ("supported", 10, 0, "different")
    assert found.interval == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    found = compare(SLEEP_1, SLEEP_2, paired=False, names=("old", "new"))
    assert found.sentence == (
        "inconclusive whether old and new differ: old - new = -1.58 (95 %: -3.37 to 0.205, p = 0.079), from 10 and 10 "
        "runs; about 14 more runs on each side would tell, if the difference is what was measured (power 80 %)"
    )
    assert found.more_runs == 14 == runs_needed(1.58, 1.898625, paired=False) - 10
    refuted = compare(SLEEP_1, SLEEP_2, claim="greater")
    assert refuted.sentence.startswith("refuted that A is greater than B: A - B = -1.58")
    assert refuted.more_runs == 0
    same = compare(SLEEP_1, SLEEP_2, margin=3)
    assert same.sentence.startswith(
        "supported that A and B are the same within ±3: A - B = -1.58 (90 %: -2.29 to -0.867"
    )
    assert same.p == equivalence(SLEEP_1, SLEEP_2, margin=3).p


def test_more_runs_for_equivalence_and_against_it():
    nearly = compare(SLEEP_1, SLEEP_2, margin=2.0)
    needed = runs_needed_for_equivalence(2.0, 1.2299955, effect=1.58)
    assert (nearly.status, nearly.more_runs) == ("inconclusive", needed - 10)
    beyond = compare(SLEEP_1, SLEEP_2, margin=1.2)
    assert (beyond.status, beyond.more_runs) == ("inconclusive", runs_needed(0.38, 1.2299955, alpha=0.1) - 10)


def test_comparisons_that_no_number_of_runs_settles_say_why():
    for found, words in (
        (compare([1.0], [2.0]), "one run has no error bar"),
        (compare([1.0, 2.0], [0.5, 1.5]), "all differences are equal"),
        (compare([1.0, 1.0], [0.5, 0.5], paired=False), "both sides are constant"),
        (compare(SLEEP_1, SLEEP_1, margin=1.0), "all differences are equal"),
        (compare([1.0, -1.0], [0.0, 0.0]), "too near the border"),
    ):
        assert (found.status, found.more_runs) == ("inconclusive", None) and words in found.sentence
        assert "\n" not in found.sentence and "inf" not in found.sentence and "nan" not in found.sentence


def test_simulated_comparisons_keep_their_promises():
    """600 trials a promise (benchmarks/simulated.py has 2,000): the promised bounds and two standard errors."""
    rng = np.random.default_rng(2)
    trials, slack = 600, 2 * math.sqrt(0.05 * 0.95 / 600)

    def draw(effect, n):
        luck = rng.normal(0, 2, n)  # of a seed, which partners share
        return luck + rng.normal(effect, math.sqrt(0.5), n), luck + rng.normal(0, math.sqrt(0.5), n)

    covered = [(f := paired_difference(*draw(1.0, 5))).low <= 1.0 <= f.high for _ in range(trials)]
    assert 0.93 - slack <= np.mean(covered) <= 0.97 + slack
    alarms = [compare(*draw(0.0, 5)).status == "supported" for _ in range(trials)]
    assert np.mean(alarms) <= 0.06 + slack
    same = [equivalence(*draw(1.0, 10), margin=1.0).equivalent for _ in range(trials)]
    assert np.mean(same) <= 0.06 + slack
    n = runs_needed(1.0, 1.0)
    found = [compare(*draw(1.0, n)).status == "supported" for _ in range(trials)]
    assert np.mean(found) == pytest.approx(power_of(n, 1.0, 1.0), abs=0.05)
    n = runs_needed_for_equivalence(1.0, 1.0)
    found = [equivalence(*draw(0.0, n), margin=1.0).equivalent for _ in range(trials)]
    assert np.mean(found) == pytest.approx(equivalence_power(n, 0.0, 1.0, margin=1.0), abs=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "empty"),
        (lambda: mean_interval([1.0, math.nan]), r"samples\[1\] is nan: leave out"),
        (lambda: mean_interval([math.inf, 1.0]), r"samples\[0\] is inf"),
        (lambda: mean_interval([[1.0, 2.0]]), "one number for each"),
        (lambda: mean_interval([1.0, 2.0], level=95), "level must lie between 0 and 1"),
        (lambda: ratio_interval([1.0, 2.0], [1.0]), "differ in length"),
        (lambda: ratio_interval([1.0, 2.0], [1.0, 0.0]), "positive"),
        (lambda: ratio_interval([1.0, 2.0], [1.0, math.nan]), r"pairs_b\[1\] is nan"),
        (lambda: rms([]), "no values"),
        (lambda: rms([1.0, math.nan]), "nan"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "differ in length, 2 and 1: pass one b for each a"),
        (lambda: paired_difference([1.0, math.nan], [1.0, 2.0]), r"a\[1\] is nan: leave out"),
        (lambda: paired_difference([], []), "a are empty"),
        (lambda: welch([1.0, 2.0], [math.inf]), r"b\[0\] is inf"),
        (lambda: welch([1.0, 2.0], [1.0, 3.0], level=0), "level must lie"),
        (lambda: wilcoxon([1.0], [1.0, 2.0]), "differ in length"),
        (lambda: wilcoxon(np.arange(1.0, 1002.0), np.zeros(1001)), "1001 pairs: take paired_difference"),
        (lambda: effect_size([1.0], [2.0]), "at least two runs that differ"),
        (lambda: effect_size([1.0, 1.0], [2.0, 2.0], paired=False), "at least two runs that differ"),
        (lambda: effect_size([1.0], [2.0, 3.0], paired=False), "at least two runs that differ"),
        (lambda: equivalence([1.0] * 5, [2.0] * 5, margin=1), "at least 8 pairs, got 5: run 3 more seeds"),
        (lambda: equivalence([1.0] * 9, [2.0] * 7, margin=1, paired=False), "8 runs on each side, got 7: run 1 more"),
        (lambda: equivalence(SLEEP_1, SLEEP_2, margin=0), "margin must be positive"),
        (lambda: equivalence(SLEEP_1, SLEEP_2, margin=1, alpha=0.95), "alpha must lie between 0 and 0.5"),
        (lambda: holm([]), "p_values are empty"),
        (lambda: holm([0.1, 1.2]), r"p_values\[1\] is 1.2"),
        (lambda: holm([0.1, math.nan]), r"p_values\[1\] is nan"),
        (lambda: mcnemar([True, False], [True]), "2 and 1 images"),
        (lambda: mcnemar([0.9, 0.2], [0.8, 0.1]), r"dtype float64 .* pass \(predictions == labels\)"),
        (lambda: mcnemar(np.zeros(0, bool), np.zeros(0, bool)), "right_a has"),
        (lambda: power_of(0, 1, 1), "n must be at least 1"),
        (lambda: power_of(5, 1, 0), "sd must be positive"),
        (lambda: power_of(5, math.nan, 1), "effect must be finite"),
        (lambda: runs_needed(0, 1), "effect of zero"),
        (lambda: runs_needed(1, 1, power=80), "power must lie between 0 and 1"),
        (lambda: runs_needed(1e-6, 1), "more than 1,000,000 runs"),
        (lambda: runs_needed_for_equivalence(1, 1, effect=1), "not within the margin"),
        (lambda: equivalence_power(1, 0, 1, margin=1), "n must be at least 2"),
        (lambda: pair_by_seed([1, 1], [0.1, 0.2], [1, 2], [0.1, 0.2]), "a holds seed 1 twice"),
        (lambda: pair_by_seed([1, 2], [0.1, 0.2], [1, 3], [0.1, 0.2]), "only a has seed 2"),
        (lambda: pair_by_seed([1, 2], [0.1, 0.2], [1], [0.1, 0.2]), "b has 2 values and 1 seeds"),
        (lambda: compare(SLEEP_1, SLEEP_2, claim="grater"), "did you mean 'greater'"),
        (lambda: compare(SLEEP_1, SLEEP_2, claim="same"), "needs margin="),
        (lambda: compare(SLEEP_1, SLEEP_2, claim="less", margin=1), "margin belongs to"),
        (lambda: compare([1.0, 2.0], [1.0, 2.5], margin=1), "run 6 more seeds"),
        (lambda: compare(SLEEP_1, SLEEP_2[:9]), "differ in length"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(DynamicsError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(Path(stats.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_scipy_is_not_imported_with_the_module(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not any("scipy" in line for line in imported)
