"""Falsifiable statements with bounds, and the judgement of samples against them.

The text of a verdict, which notebooks compare strictly, has the status and the bounds; the measured digits, which
differ between machines, are in its html and in `to_json`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DynamicsError
from ..stats import mean_interval

MIME = "application/vnd.dynamics.verdicts+json"
"""How a table of verdicts lies in a notebook's output, for programs that grade or print it."""

SYMBOLS = {"supported": "✓", "refuted": "✗", "inconclusive": "?", "untested": "○"}


@dataclass(frozen=True)
class Claim:
    """A statement that a measured quantity lies in [low, high], in `units`; a missing bound is -inf or inf.

    Raises DynamicsError where low > high or a bound is nan.
    """

    id: str
    text: str
    source: str
    low: float
    high: float
    units: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise DynamicsError(f"claim {self.id}: low {self.low:g} is not below high {self.high:g}: swap or mend them")


@dataclass(frozen=True, repr=False)
class Verdict:
    """A claim and what the samples say of it.

    `status` is supported, refuted, inconclusive or untested. `measured` and `interval` are the mean and its confidence
    interval at `level`; of an exact claim, where `level` is None, the worst sample and the range of all. None untested.
    """

    claim: Claim
    status: str
    measured: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    level: float | None = None

    def __repr__(self) -> str:
        return f"{self.claim.id}: {self.status} (claimed: {_bounds(self.claim)})"

    def _repr_html_(self) -> str:
        text, source = html.escape(self.claim.text), html.escape(self.claim.source)
        return (
            f"<div><b>{_status(self)}</b> {html.escape(self.claim.id)}: {text}<br>"
            f"claimed: {html.escape(_bounds(self.claim))}; measured: {html.escape(_measured(self))} "
            f"<small>({source})</small></div>"
        )

    def to_json(self) -> dict[str, str | float | int | None]:
        """A flat record for json.dumps(..., allow_nan=False): every number is finite or null."""
        low, high = self.interval or (None, None)
        return {
            "id": self.claim.id,
            "text": self.claim.text,
            "source": self.claim.source,
            "units": self.claim.units,
            "low": _finite(self.claim.low),
            "high": _finite(self.claim.high),
            "status": self.status,
            "measured": _finite(self.measured),
            "interval_low": _finite(low),
            "interval_high": _finite(high),
            "n": self.n,
            "level": self.level,
        }


def check(claim: Claim, samples: ArrayLike | None, *, level: float = 0.95, exact: bool = False) -> Verdict:
    """Judge independent samples, [n], by the interval of their mean, or every one of them where the claim is `exact`.

    Supported where the whole interval (of an exact claim: every sample) is within the bounds, which belong to them;
    refuted where the whole interval (any sample) is outside; inconclusive otherwise, as a single sample is; untested
    for None or no samples.
    Raises DynamicsError for samples that are nan or infinite, as `stats.mean_interval`.
    """
    if samples is None or np.size(samples) == 0:
        return Verdict(claim, "untested")
    mean, low, high, n, _ = mean_interval(samples, level=level)
    if exact:
        values = np.atleast_1d(np.asarray(samples, dtype=np.float64))
        worst = float(values[np.argmax(np.maximum(claim.low - values, values - claim.high))])
        status = "supported" if claim.low <= worst <= claim.high else "refuted"
        return Verdict(claim, status, worst, (float(values.min()), float(values.max())), n)
    if claim.low <= low and high <= claim.high:
        status = "supported"
    elif high < claim.low or claim.high < low:
        status = "refuted"
    else:
        status = "inconclusive"
    return Verdict(claim, status, mean, (low, high), n, level)


@dataclass(frozen=True, repr=False)
class VerdictTable:
    """Verdicts as one aligned table; iterates over them."""

    verdicts: tuple[Verdict, ...]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    def __repr__(self) -> str:
        rows = [("claim", "status", "claimed", "text")]
        rows += [(v.claim.id, v.status, _bounds(v.claim), _short(v.claim.text)) for v in self.verdicts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        left, whole = "style='text-align: left'", "style='text-align: left; white-space: nowrap'"
        names = ("claim", "status", "claimed", "measured", "text", "source")
        head = "".join(f"<th {left}>{name}</th>" for name in names)
        body = "".join(
            f"<tr><td {whole}>{html.escape(v.claim.id)}</td><td {whole}><b>{_status(v)}</b></td>"
            f"<td {whole}>{html.escape(_bounds(v.claim))}</td><td {left}>{html.escape(_measured(v))}</td>"
            f"<td {left}>{html.escape(v.claim.text)}</td><td {left}>{html.escape(v.claim.source)}</td></tr>"
            for v in self.verdicts
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {MIME: self.to_json()}

    def to_json(self) -> list[dict[str, str | float | int | None]]:
        """`Verdict.to_json` of each."""
        return [verdict.to_json() for verdict in self.verdicts]


def table(verdicts: Iterable[Verdict]) -> VerdictTable:
    """The verdicts in their order as a `VerdictTable`."""
    return VerdictTable(tuple(verdicts))


def _bounds(claim: Claim) -> str:
    low, high, units = claim.low, claim.high, f" {claim.units}" if claim.units else ""
    if low == high:
        return f"= {low:g}{units}"
    if math.isinf(low) and math.isinf(high):
        return "any value"
    if math.isinf(low):
        return f"<= {high:g}{units}"
    if math.isinf(high):
        return f">= {low:g}{units}"
    return f"{low:g} to {high:g}{units}"


def _measured(verdict: Verdict) -> str:
    if verdict.measured is None or verdict.interval is None:
        return "nothing"
    units = f" {verdict.claim.units}" if verdict.claim.units else ""
    low, high = verdict.interval
    if verdict.level is None:
        return f"{verdict.measured:.4g}{units}, the worst of n = {verdict.n} ({low:.4g} to {high:.4g})"
    if verdict.n == 1:
        return f"{verdict.measured:.4g}{units}, n = 1: no interval"
    return f"{verdict.measured:.4g}{units} ({100 * verdict.level:g} %: {low:.4g} to {high:.4g}; n = {verdict.n})"


def _status(verdict: Verdict) -> str:
    return f"{SYMBOLS[verdict.status]} {verdict.status}"


def _short(text: str, width: int = 56) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
