"""Verdicts as `make verdicts` recorded them, and which of them the code has outdated since.

The file is `verdicts.json` beside this module: {"format": 1, "verdicts": {id: the fields of `Record` but the id}}, in
strict JSON, ids in order. A verdict rests on a claim, recipes and functions; their hashes are kept with it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import DynamicsError
from .entry import Entry
from .judge import SYMBOLS, Claim, Verdict
from .sources import Source, can_be_found, hash_of, name_of, source_hash

VERDICTS = Path(__file__).with_name("verdicts.json")
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """A recorded verdict on a claim of the ledger.

    `measured` and `interval` are those of `Verdict` in `units`, with its bounds `low` and `high` (None: unbounded) and
    confidence `level` (None: every sample was judged); `quantity` says in words what it is, and `numbers` are other
    measured values by theirs. `n` counts independent samples. `scale` is that of the run (fast, cpu, full), `data` the
    data set's name, `versions` those of packages by name, `date` YYYY-MM-DD. `key` is `key_of` of what the verdict
    rests on: `recipes` as JSON, and `functions`, the hash of each by its name.
    Raises DynamicsError for an unknown status, numbers that are not finite or a date of another form.
    """

    id: str
    status: str
    measured: float | None
    interval: tuple[float, float] | None
    n: int
    scale: str
    data: str
    versions: Mapping[str, str]
    date: str
    key: str
    level: float | None = None
    low: float | None = None
    high: float | None = None
    units: str = ""
    quantity: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    recipes: tuple[Mapping[str, Any], ...] = ()
    functions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in SYMBOLS or self.status == "untested":
            judged = ", ".join(s for s in SYMBOLS if s != "untested")
            raise DynamicsError(f"verdict on {self.id}: status {self.status!r} is none of {judged}")
        ends = self.interval or ()
        values = [v for v in (self.measured, *ends, self.level, self.low, self.high) if v is not None]
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in (*values, *self.numbers.values())):
            raise DynamicsError(f"verdict on {self.id}: a number is not finite: leave it out or record None")
        if len(ends) not in (0, 2):
            raise DynamicsError(f"verdict on {self.id}: an interval has two ends, not {len(ends)}")
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.date):
            raise DynamicsError(f"verdict on {self.id}: date {self.date!r} is not YYYY-MM-DD")

    def to_json(self) -> dict[str, Any]:
        """The fields but the id, for json.dumps(..., allow_nan=False)."""
        return {name: value for name, value in asdict(self).items() if name != "id"}


def record(
    entry: Entry,
    verdict: Verdict,
    *,
    scale: str,
    data: str,
    versions: Mapping[str, str],
    date: str,
    recipes: Iterable[Any] = (),
    functions: Iterable[Source] = (),
    numbers: Mapping[str, float] | None = None,
) -> Record:
    """A judged verdict as the record of a claim of the ledger; the entry's own formulas are among its functions.

    Raises DynamicsError for an untested verdict and for functions that are not found by their names, and as `key_of`.
    """
    recipes, functions = [_json(r) for r in recipes], [*entry.formulas, *functions]
    flat = verdict.to_json()
    ends = (flat["interval_low"], flat["interval_high"])
    return Record(
        id=entry.id,
        status=verdict.status,
        measured=flat["measured"],
        interval=None if None in ends else ends,
        n=verdict.n,
        scale=scale,
        data=data,
        versions=dict(versions),
        date=date,
        key=key_of(entry, recipes, functions),
        level=verdict.level,
        low=flat["low"],
        high=flat["high"],
        units=verdict.claim.units,
        quantity=verdict.claim.text,
        numbers=dict(numbers or {}),
        recipes=tuple(recipes),
        functions={name_of(f): source_hash(name_of(f)) for f in functions},
    )


def read_verdicts(path: str | Path | None = None) -> dict[str, Record]:
    """The recorded verdicts by id, those of the package where no path is given; none where there is no file.

    Raises DynamicsError for a file that is not of this format.
    """
    path = Path(path) if path is not None else VERDICTS
    if not path.exists():
        return {}
    mend = "restore it from git, or write it anew with make verdicts"
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if found["format"] != FORMAT:
            raise DynamicsError(f"{path} has format {found['format']!r}, this version reads {FORMAT}: {mend}")
        return {id: _from_json(id, one) for id, one in found["verdicts"].items()}
    except DynamicsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynamicsError(f"{path} cannot be read as verdicts ({error}): {mend}") from None


def write_verdict(verdict: Record, path: str | Path | None = None) -> None:
    """Put one verdict into the file in place of an older one on the same claim; what else is in it stays.

    The file is replaced as a whole, so that a process that is killed leaves the old one. Raises DynamicsError where it
    cannot be written, and as `read_verdicts`.
    """
    path = Path(path) if path is not None else VERDICTS
    all_of_them = {**read_verdicts(path), verdict.id: verdict}
    known = {id: one.to_json() for id, one in sorted(all_of_them.items(), key=lambda item: _order(item[0]))}
    text = json.dumps({"format": FORMAT, "verdicts": known}, indent=1, allow_nan=False, ensure_ascii=False)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DynamicsError(f"cannot write {path} ({error}): choose a place that can be written") from None


def key_of(claim: Entry | Claim, recipes: Iterable[Any], functions: Iterable[Source]) -> str:
    """The hash, 64 hexadecimal digits, of all that a verdict rests on.

    It is that of what the claim states, of the recipes as JSON (values with `to_json`, or JSON already), in their
    order, and of the names and sources of the functions, in any order. Comments, docstrings, blank lines and how far a
    block is indented as a whole do not count; what a function calls counts only where it is named too.
    Raises DynamicsError for functions without Python source and names that lead nowhere.
    """
    return key_from(claim, recipes, {name_of(f): source_hash(f) for f in functions})


def key_from(claim: Entry | Claim, recipes: Iterable[Any], hashes: Mapping[str, str]) -> str:
    """`key_of` where the functions' hashes are known."""
    stated = {
        name: repr(getattr(claim, name))
        for name in ("id", "kind", "scale", "text", "low", "high", "units")
        if hasattr(claim, name)
    }
    parts = [stated, [_json(r) for r in recipes], sorted(hashes.items())]
    return hash_of(json.dumps(parts, sort_keys=True, ensure_ascii=False))


def stale(verdict: Record, entry: Entry | None) -> tuple[str, ...]:
    """What has changed since the verdict was recorded, in words; nothing where it still stands.

    `entry` is the ledger's, None where it has none of that id any more. An installed package has neither tests nor
    chapters, and cannot tell whether they have changed.
    """
    if entry is None:
        return ("the claim is no longer in the ledger",)
    changed = []
    for name, before in verdict.functions.items():
        if not can_be_found(name):
            continue
        try:
            if source_hash(name) != before:
                changed.append(f"{name} has changed")
        except DynamicsError:
            changed.append(f"{name} is gone")
    missing = [f"{name} is new" for name in entry.formulas if name not in verdict.functions]
    if changed or missing:
        return (*changed, *missing)
    if key_from(entry, verdict.recipes, verdict.functions) != verdict.key:
        return ("the claim or its recipe has changed",)
    return ()


def _json(recipe: Any) -> Any:
    value = recipe.to_json() if hasattr(recipe, "to_json") else recipe
    try:
        return json.loads(json.dumps(value, allow_nan=False))  # tuples become lists, as they are when read again
    except (TypeError, ValueError) as error:
        raise DynamicsError(f"a recipe behind a verdict is not JSON ({error}): pass Recipe values") from None


def _from_json(id: str, one: dict[str, Any]) -> Record:
    known = {f.name for f in fields(Record)} - {"id"}
    if odd := sorted(set(one) - known):
        raise ValueError(f"{id} has the unknown field {odd[0]!r}")
    interval = one.get("interval")
    return Record(
        id, **{**one, "interval": tuple(interval) if interval else None, "recipes": tuple(one.get("recipes", ()))}
    )


def _order(id: str) -> tuple[str, int]:
    series, _, number = id.partition("-")
    return series, int(number) if number.isdigit() else 0


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
