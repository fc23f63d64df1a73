from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from dynamics.claims import SYMBOLS, Claim, Verdict, check, table
from dynamics.errors import DynamicsError

ANGLE = Claim("P6-1", "measured over predicted angle, every convolution", "Page, post 6", 0.8, 1.2)
AT_LEAST = Claim("P7-1", "diverging lr with norm over without", "Page, post 7", 10.0, math.inf, "times")
EXACT = Claim("P5-9", "cosine of w and its gradient", "Page, post 5", -1e-10, 1e-10)


@pytest.mark.parametrize(
    ("claim", "samples", "status"),
    [
        (ANGLE, [0.98, 1.01, 1.03], "supported"),
        (ANGLE, [1.48, 1.51, 1.53], "refuted"),
        (ANGLE, [0.48, 0.51, 0.53], "refuted"),
        (ANGLE, [1.18, 1.21, 1.22], "inconclusive"),
        (ANGLE, [0.2, 1.0, 2.5], "inconclusive"),  # wider than the bounds on both sides
        (ANGLE, [1.0], "inconclusive"),
        (ANGLE, [5.0], "inconclusive"),
        (ANGLE, 1.0, "inconclusive"),
        (ANGLE, [], "untested"),
        (ANGLE, None, "untested"),
        (ANGLE, [1.2, 1.2, 1.2], "supported"),  # the bounds belong to the claim
        (ANGLE, [0.8, 0.8], "supported"),
        (ANGLE, [np.nextafter(1.2, 2)] * 3, "refuted"),
        (AT_LEAST, [20.0, 24.0, 22.0], "supported"),
        (AT_LEAST, [2.0, 2.4, 2.2], "refuted"),
        (Claim("x", "", "", 0.0, 0.0), [0.0, 0.0], "supported"),
        (Claim("x", "", "", -math.inf, math.inf), [1.0, 2.0], "supported"),
    ],
)
def test_status(claim, samples, status):
    assert check(claim, samples).status == status


@pytest.mark.parametrize(
    ("claim", "samples", "status", "worst"),
    [
        (EXACT, [1e-12, -3e-11, 2e-11], "supported", -3e-11),
        (EXACT, [1e-12, -3e-11, 2e-10], "refuted", 2e-10),
        (EXACT, [-1.0, *[0.0] * 999], "refuted", -1.0),  # one counterexample is enough, whatever the mean
        (EXACT, [1e-10], "supported", 1e-10),
        (EXACT, 2e-10, "refuted", 2e-10),
        (AT_LEAST, [30.0, 10.0, 11.0], "supported", 10.0),
        (Claim("x", "", "", 1.0, 1.0), [1.0, 1.0], "supported", 1.0),
    ],
)
def test_exact_claims_are_judged_by_their_worst_sample(claim, samples, status, worst):
    verdict = check(claim, samples, exact=True)
    assert (verdict.status, verdict.measured, verdict.level) == (status, worst, None)
    assert verdict.interval == (np.min(samples), np.max(samples)) and verdict.n == np.size(samples)


def test_exact_without_samples_is_untested():
    assert check(EXACT, [], exact=True) == Verdict(EXACT, "untested")


def test_verdict_carries_the_measurement():
    verdict = check(ANGLE, [0.9, 1.0, 1.1], level=0.9)
    assert (verdict.claim, verdict.n, verdict.level) == (ANGLE, 3, 0.9)
    assert verdict.measured == pytest.approx(1.0)
    half = 2.919986 * 0.1 / math.sqrt(3)  # t(2), 95th percentile
    assert verdict.interval == pytest.approx((1 - half, 1 + half), abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_true_mean_on_the_bound_is_rarely_supported(n):
    """One-sided, 2.5 % of intervals lie wholly on either side of the truth."""
    claim = Claim("x", "", "", 0.0, math.inf)
    rng = np.random.default_rng(n)
    statuses = np.array([check(claim, row).status for row in rng.normal(0.0, 1.0, (3000, n))])
    assert np.mean(statuses == "supported") < 0.035
    assert np.mean(statuses == "refuted") < 0.035
    assert np.mean(statuses == "supported") > 0.015


def test_false_claims_turn_refuted_and_true_ones_supported_with_enough_samples():
    rng = np.random.default_rng(0)
    assert {check(ANGLE, row).status for row in rng.normal(1.0, 0.1, (50, 20))} == {"supported"}
    assert {check(ANGLE, row).status for row in rng.normal(1.5, 0.1, (50, 20))} == {"refuted"}


@pytest.mark.parametrize(
    ("claim", "bounds"),
    [
        (ANGLE, "0.8 to 1.2"),
        (AT_LEAST, ">= 10 times"),
        (Claim("x", "", "", -math.inf, 1e-10), "<= 1e-10"),
        (Claim("x", "", "", 0, 0), "= 0"),
        (Claim("x", "", "", -math.inf, math.inf), "any value"),
    ],
)
def test_text_has_status_and_bounds(claim, bounds):
    for samples in (None, [1.23456, 1.34567]):
        verdict = check(claim, samples)
        assert str(verdict) == repr(verdict) == f"{claim.id}: {verdict.status} (claimed: {bounds})"


def test_text_has_no_measured_digits_and_html_has():
    quiet = Claim("P", "no digits", "post", 0, 9)
    one, two = check(quiet, [4.3217, 4.3218]), check(quiet, [5.6781, 5.6782])
    assert str(one) == str(two) and str(table([one])) == str(table([two]))
    assert set(re.findall(r"[\d.]+", f"{one} {table([one])}")) == {"0", "9"}
    assert one._repr_html_() != two._repr_html_()
    for page in (one._repr_html_(), table([one])._repr_html_()):
        assert "4.322" in page and "95 %" in page and "n = 2" in page
    assert "no interval" in check(quiet, [4.0])._repr_html_()
    assert "the worst of n = 2" in check(quiet, [4.0, 5.0], exact=True)._repr_html_()
    assert "nothing" in check(quiet, None)._repr_html_()


def test_table_is_aligned_and_shortened():
    long = Claim("P8-21", "speed gains\n translate to converged accuracy " * 4, "post 8", 0.3, math.inf, "%")
    shown = table([check(ANGLE, [1.0, 1.01]), check(long, None), check(EXACT, [0.0], exact=True)])
    lines = str(shown).splitlines()
    assert lines[0].split() == ["claim", "status", "claimed", "text"] and len(lines) == 4
    starts = {line.index(text) for line, text in zip(lines, ("text", "measured", "speed", "cosine"), strict=True)}
    assert len(starts) == 1
    assert lines[2].endswith("...") and max(map(len, lines)) <= 100
    assert not any(line != line.rstrip() for line in lines)
    assert len(shown) == 3 and [v.claim.id for v in shown] == ["P6-1", "P8-21", "P5-9"]
    assert str(table(iter([]))).split() == ["claim", "status", "claimed", "text"]


def test_html_is_escaped_and_says_the_status_in_words_without_colour():
    nasty = Claim("<i>id</i>", "<script>a & b</script>", "Smith & <b>Co</b>", 0, 1, "<u>")
    for samples in (None, [0.5, 0.6], [2.0, 2.1], [0.9, 1.1]):
        verdict = check(nasty, samples)
        for page in (verdict._repr_html_(), table([verdict])._repr_html_()):
            assert not {"<script", "<i>", "<u>", "<b>Co"} & set(re.findall(r"<\w+>?(?:Co)?", page))
            assert "&lt;script&gt;a &amp; b&lt;/script&gt;" in page and "Smith &amp; &lt;b&gt;Co" in page
            assert f"{SYMBOLS[verdict.status]} {verdict.status}" in page
            assert "color" not in page and "background" not in page
        whole = re.findall(r"nowrap'>(?:<b>)?([^<]*)", table([verdict])._repr_html_())
        assert f"{SYMBOLS[verdict.status]} {verdict.status}" in whole  # a narrow page does not break it


def test_json_is_strict():
    verdicts = [check(AT_LEAST, [22.0, 22.2]), check(AT_LEAST, [20.0]), check(ANGLE, None)]
    verdicts.append(check(EXACT, [0], exact=True))
    records = json.loads(json.dumps(table(verdicts).to_json(), allow_nan=False))
    assert [record["status"] for record in records] == ["supported", "inconclusive", "untested", "supported"]
    first, single, untested, exact = records
    assert first["low"] == 10 and first["high"] is None and first["measured"] == 22.1 and first["n"] == 2
    assert single["interval_low"] is None and single["interval_high"] is None and single["level"] == 0.95
    assert untested["measured"] is None and untested["n"] == 0
    assert exact["level"] is None and exact["interval_low"] == 0
    assert {"id", "text", "source", "units", "status"} <= set(first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Claim("P1", "", "", 1.2, 0.8), "claim P1: low 1.2"),
        (lambda: Claim("P1", "", "", math.nan, 0.8), "claim P1"),
        (lambda: Claim("P1", "", "", 0.0, math.nan), "claim P1"),
        (lambda: check(ANGLE, [1.0, math.nan]), r"samples\[1\] is nan"),
        (lambda: check(EXACT, [math.nan], exact=True), r"samples\[0\] is nan"),
        (lambda: check(ANGLE, [1.0, 1.1], level=95), "level"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(DynamicsError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
