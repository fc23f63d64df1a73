"""`dynamics claims`: the ledger of what the sources claim, with the verdicts recorded here."""

from __future__ import annotations

import html
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DynamicsError

if TYPE_CHECKING:
    from ..claims.entry import Entry
    from ..claims.records import Record

OUTDATED = "outdated by the code since they were judged (make verdicts judges them again)"
STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
    "th,td{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}td.n{text-align:right}"
    "small{color:#555}.stale{color:#a40000}"
)


def claims(
    kinds: Annotated[list[str] | None, typer.Option("--class", help="E, D, A, H or Q; may be repeated")] = None,
    statuses: Annotated[
        list[str] | None, typer.Option("--status", help="supported, refuted, inconclusive or untested")
    ] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="post (all of them), 'post 1' to 'post 8', notes or report")
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="one claim in full, such as P5-9")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="write a page with everything that is known")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a list with one object a claim")] = False,
) -> None:
    """Print every claim of the sources with its class and its verdict here, the totals, and what is untested and why.

    Classes: E exact identity, D law of the dynamics, A statistic of accuracy, H hardware or time, Q qualitative.
    """
    from ..claims.ledger import LEDGER, select
    from ..claims.records import read_verdicts, stale

    records = read_verdicts()
    outdated = {id: changed for id, one in records.items() if (changed := stale(one, LEDGER.get(id)))}
    entries = select(records, ids=ids or (), kinds=kinds or (), statuses=statuses or (), sources=sources or ())
    if page is not None:
        _write(page, _page(entries, records, outdated))
    if as_json:
        objects = [_object(e, records.get(e.id), outdated.get(e.id, ())) for e in entries]
        print(json.dumps(objects, allow_nan=False))
        return
    if not entries:
        print("no claim fits all of these filters")
    elif ids:
        print("\n\n".join(_in_full(e, records, outdated) for e in entries))
    else:
        _print_table(entries, records, outdated)
        _print_totals(entries, records)
        _print_reasons(entries, records)
        _print_outdated(entries, outdated, {id for id in records if id not in LEDGER})
    if page is not None:
        print(f"\nthe page: {page}")


def _print_table(entries: Sequence[Entry], records: Mapping[str, Record], outdated: Mapping[str, Any]) -> None:
    rows = [("id", "class", "status")] + [(e.id, e.kind, _status(e, records, outdated)) for e in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, text in zip(rows, ["claim", *(e.text for e in entries)], strict=True):
        print(_wrapped("  ".join(map(str.ljust, row, widths)) + "  ", text))


def _print_totals(entries: Sequence[Entry], records: Mapping[str, Record]) -> None:
    from ..claims.entry import CLASSES
    from ..claims.ledger import STATUSES, summary, totals

    counts = totals(entries, records)
    print()
    print("  ".join(["class".ljust(22), *STATUSES]))
    for kind, name in CLASSES.items():
        numbers = (str(counts[kind][s]).rjust(len(s)) for s in STATUSES)
        print("  ".join([f"{kind} {name}".ljust(22), *numbers]))
    print(summary(entries, records))


def _print_reasons(entries: Sequence[Entry], records: Mapping[str, Record]) -> None:
    from ..claims.ledger import unjudged

    reasons = unjudged(entries, records)
    if reasons:
        print("\nuntested here, and why")
    for why, ids in reasons.items():
        print(_wrapped("  ", f"{why} ({len(ids)}): {', '.join(ids)}"))


def _print_outdated(entries: Sequence[Entry], outdated: Mapping[str, Sequence[str]], lost: set[str]) -> None:
    shown = {e.id for e in entries} | lost
    if any(id in shown for id in outdated):
        print(f"\n{OUTDATED}")
    for id, changed in outdated.items():
        if id in shown:
            print(_wrapped(f"  {id}: ", "; ".join(changed)))


def _in_full(entry: Entry, records: Mapping[str, Record], outdated: Mapping[str, Sequence[str]]) -> str:
    from ..claims.entry import CLASSES, SCALES
    from ..claims.ledger import reason

    found = records.get(entry.id)
    facts = {
        "claim": entry.text,
        "source": entry.source,
        "published": entry.published or "nothing",
        "class": f"{entry.kind}, {CLASSES[entry.kind]}",
        "scale": f"{entry.scale}, {SCALES[entry.scale]}",
        "tested by": ", ".join(entry.tested) or "nothing",
        "status": _status(entry, records, outdated),
    }
    if found is None:
        facts["why"] = reason(entry)
    else:
        facts |= {"measured": _measured(found), "on": _circumstances(found), "rests on": ", ".join(found.functions)}
    if entry.id in outdated:
        facts["outdated"] = "; ".join(outdated[entry.id])
    return "\n".join([entry.id, *(_wrapped(f"  {name:<10}", text) for name, text in facts.items())])


def _object(entry: Entry, found: Record | None, changed: Sequence[str]) -> dict[str, Any]:
    from ..claims.ledger import reason

    return {
        "id": entry.id,
        "class": entry.kind,
        "scale": entry.scale,
        "status": found.status if found else "untested",
        "text": entry.text,
        "source": entry.source,
        "published": entry.published or None,
        "tested": list(entry.tested),
        "untested": None if found else reason(entry),
        "stale": list(changed),
        "verdict": found.to_json() if found else None,
    }


def _status(entry: Entry, records: Mapping[str, Record], outdated: Mapping[str, Any]) -> str:
    from ..claims.ledger import status

    return status(entry.id, records) + (", stale" if entry.id in outdated else "")


def _measured(found: Record) -> str:
    units = f" {found.units}" if found.units else ""
    text = "nothing" if found.measured is None else f"{found.measured:.4g}{units}"
    text = f"{found.quantity}: {text}" if found.quantity else text
    if found.interval is not None:
        low, high = found.interval
        how = "of all samples" if found.level is None else f"{100 * found.level:g} %"
        text += f" ({how}: {low:.4g} to {high:.4g})"
    text += f"; n = {found.n}"
    low, high = (f"{b:g}" if b is not None else None for b in (found.low, found.high))
    if low or high:
        text += "; claimed: " + (f"{low} to {high}" if low and high else f">= {low}" if low else f"<= {high}") + units
    return "; ".join([text, *(f"{name} {value:.4g}" for name, value in found.numbers.items())])


def _circumstances(found: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return f"{found.data}, scale {found.scale}, {found.date}" + (f" ({versions})" if versions else "")


def _wrapped(head: str, text: str) -> str:
    width = min(max(shutil.get_terminal_size((120, 24)).columns, 60), 120)
    lines = textwrap.wrap(text, width - len(head), break_long_words=False, break_on_hyphens=False)
    return head + f"\n{' ' * len(head)}".join(lines)


def _page(entries: Sequence[Entry], records: Mapping[str, Record], outdated: Mapping[str, Sequence[str]]) -> str:
    from ..claims.entry import CLASSES, SCALES
    from ..claims.ledger import STATUSES, reason, summary, totals

    counts = totals(entries, records)
    head = "".join(f"<th>{s}</th>" for s in ("class", *STATUSES))
    body = "".join(
        f"<tr><td>{kind} {name}</td>{''.join(f'<td class=n>{counts[kind][s]}</td>' for s in STATUSES)}</tr>"
        for kind, name in CLASSES.items()
    )
    rows = []
    for entry in entries:
        found = records.get(entry.id)
        status = f"<b>{found.status}</b>" if found else f"untested<br><small>{html.escape(reason(entry))}</small>"
        if entry.id in outdated:
            status += f"<br><small class=stale>stale: {html.escape('; '.join(outdated[entry.id]))}</small>"
        measured = "<br>".join(html.escape(f(found)) for f in (_measured, _circumstances)) if found else ""
        cells = (
            entry.id,
            f"<span title='{CLASSES[entry.kind]}; {SCALES[entry.scale]}'>{entry.kind}/{entry.scale}</span>",
            status,
            html.escape(entry.text),
            html.escape(entry.published),
            measured,
            entry.source,
            "<br>".join(map(html.escape, entry.tested)),
        )
        rows.append(f"<tr id='{entry.id}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("id", "class", "status", "claim", "published", "measured here", "source", "tested by")
    return (
        f"<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Ledger of claims</title><style>{STYLE}</style>"
        f"</head><body><h1>Ledger of claims</h1><p>{summary(entries, records)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p></p>"
        f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></body></html>\n"
    )


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DynamicsError(f"cannot write {target} ({error}): choose another place") from None
