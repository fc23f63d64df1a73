"""How the verdicts on several quantities make one status of a claim."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from .entry import Entry
from .judge import Verdict

LEAST_RUNS = 3
"""Fewer independent runs than these decide no law of the dynamics, wherever they lie."""


class Combined(NamedTuple):
    """The verdict that speaks for a claim, with the claim's status, and the other measured values by their words."""

    verdict: Verdict
    numbers: Mapping[str, float]


def claim_of(id: str) -> str | None:
    """The claim that a verdict's id belongs to: that of the ledger's form before its letters; None for other ids.

    "P6-1w" and "P6-1" belong to P6-1; "HVP" to none.
    """
    found = re.fullmatch(r"((?:P\d|T|S)-\d+)[a-z]*", id)
    return found[1] if found else None


def is_control(verdict: Verdict) -> bool:
    """Whether a verdict is on an ablation: its claim's source, or the first word of its text, says so."""
    return "ablation" in (verdict.claim.source, re.split(r"\W", verdict.claim.text)[0])


def combine(entry: Entry, verdicts: Sequence[Verdict]) -> Combined:
    """One verdict of all those that were found on quantities of one claim; there is at least one.

    The claim is refuted if one of them is, else inconclusive if one of them is, else supported. Ablations are controls:
    one that does not come out as expected says that the measurement does not see what it should, so it leaves a claim
    inconclusive that would be supported, and refutes none. A law of the dynamics (class D) stays inconclusive
    where a quantity comes from fewer than `LEAST_RUNS` runs, however far from its bounds.
    The verdict that is returned is the first that has the status which results, or the first of all, with n the fewest.
    """
    controls = [v for v in verdicts if is_control(v)]
    parts = [v for v in verdicts if not is_control(v)] or controls
    fewest = min(v.n for v in parts)
    statuses = {v.status for v in parts}
    if entry.kind == "D" and fewest < LEAST_RUNS:
        status = "inconclusive"
    elif "refuted" in statuses:
        status = "refuted"
    elif statuses == {"supported"} and all(v.status == "supported" for v in controls):
        status = "supported"
    else:
        status = "inconclusive"
    main = next((v for v in (*parts, *controls) if v.status == status), parts[0])
    others = {v.claim.text: v.measured for v in verdicts if v is not main and v.measured is not None}
    return Combined(replace(main, status=status, n=fewest), others)
