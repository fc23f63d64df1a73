from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from dynamics import stats
from dynamics.errors import DynamicsError
from dynamics.stats import Interval, mean_interval, ratio_interval, rms


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
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(DynamicsError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_scipy_is_not_imported_with_the_module():
    tree = ast.parse(Path(stats.__file__).read_text(encoding="utf-8"))
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not any("scipy" in line for line in imported)
