"""Every claim of the sources, by id, with the verdicts that were recorded for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from ..errors import DynamicsError, unknown
from . import notes_and_report, post1to4, post5to6, post7, post8
from .entry import CLASSES, NOT_YET, Entry
from .judge import SYMBOLS
from .records import Record

STATUSES = tuple(SYMBOLS)


def _by_id(entries: Iterable[Entry]) -> Mapping[str, Entry]:
    ledger: dict[str, Entry] = {}
    for entry in entries:
        if entry.id in ledger:
            raise DynamicsError(f"the ledger has two claims {entry.id}: rename one of them")
        ledger[entry.id] = entry
    return MappingProxyType(ledger)


LEDGER = _by_id(
    entry
    for module in (post1to4, post5to6, post7, post8, notes_and_report)
    for entry in module.ENTRIES
)  # fmt: skip


def claim(id: str) -> Entry:
    """The ledger's entry of that id, in either case; raises DynamicsError with the nearest ids for an unknown one."""
    found = LEDGER.get(id.upper())
    if found is None:
        raise unknown("claim", id, LEDGER)
    return found


def status(id: str, records: Mapping[str, Record]) -> str:
    """The recorded status of a claim, and untested where nothing is recorded."""
    return records[id].status if id in records else "untested"


def reason(entry: Entry) -> str:
    """Why a claim has no verdict here."""
    return entry.untested or "no verdict is recorded: run make verdicts"


def select(
    records: Mapping[str, Record],
    *,
    ids: Iterable[str] = (),
    kinds: Iterable[str] = (),
    statuses: Iterable[str] = (),
    sources: Iterable[str] = (),
) -> list[Entry]:
    """The entries that fit every filter, in the ledger's order; an empty filter lets everything pass.

    A source is "post 1" to "post 8", "notes" or "report", or "post" for all eight. Raises DynamicsError for a value
    that no claim has.
    """
    wanted = {claim(id).id for id in ids}
    kinds = _known("class", (k.upper() for k in kinds), CLASSES)
    statuses = _known("status", (s.lower() for s in statuses), STATUSES)
    known = {entry.source for entry in LEDGER.values()} | {"post"}
    sources = _known("source", (s.lower() for s in sources), known)
    tests: tuple[Callable[[Entry], bool], ...] = (
        lambda e: not wanted or e.id in wanted,
        lambda e: not kinds or e.kind in kinds,
        lambda e: not statuses or status(e.id, records) in statuses,
        lambda e: not sources or e.source in sources or e.source.split()[0] in sources,
    )
    return [entry for entry in LEDGER.values() if all(test(entry) for test in tests)]


def totals(entries: Iterable[Entry], records: Mapping[str, Record]) -> dict[str, dict[str, int]]:
    """How many of the entries have each status, by class; every class and every status has its number."""
    counts = {kind: dict.fromkeys(STATUSES, 0) for kind in CLASSES}
    for entry in entries:
        counts[entry.kind][status(entry.id, records)] += 1
    return counts


def summary(entries: Iterable[Entry], records: Mapping[str, Record]) -> str:
    """The totals in one line, as the README has them."""
    entries = list(entries)
    by_status = {s: sum(status(e.id, records) == s for e in entries) for s in STATUSES}
    return f"{len(entries)} claim{'s' * (len(entries) != 1)}: " + ", ".join(f"{n} {s}" for s, n in by_status.items())


def unjudged(entries: Iterable[Entry], records: Mapping[str, Record]) -> dict[str, list[str]]:
    """The ids of untested claims by the reason, those that could be tested here last."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if status(entry.id, records) == "untested":
            found.setdefault(reason(entry), []).append(entry.id)
    ours = (NOT_YET, "no verdict")
    return dict(sorted(found.items(), key=lambda item: item[0].startswith(ours)))


def _known(kind: str, given: Iterable[str], known: Iterable[str]) -> set[str]:
    given, known = set(given), set(known)
    for name in sorted(given - known):
        raise unknown(kind, name, known)
    return given
