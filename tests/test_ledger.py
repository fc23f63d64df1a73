from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dynamics import theory
from dynamics.claims import Claim, check, records
from dynamics.claims.entry import CLASSES, SCALES
from dynamics.claims.ledger import LEDGER, STATUSES, claim, reason, select, summary, totals, unjudged
from dynamics.claims.records import (
    VERDICTS,
    Record,
    key_of,
    name_of,
    read_verdicts,
    record,
    source_hash,
    stale,
    write_verdict,
)
from dynamics.cli.claims import claims
from dynamics.errors import DynamicsError

ROOT = Path(__file__).parents[1]

# Every claim of the sources as id, class and scale.
CLAIMS = """
P1-1 A/F  P1-2 A/M  P1-3 H/M  P1-4 H/M  P1-5 H/S
P2-1 A/M  P2-2 E/S  P2-3 D/S  P2-4 D/M  P2-5 D/M  P2-6 Q/M
P3-1 H/F  P3-2 H/M  P3-3 A/F  P3-4 A/F  P3-5 A/F
P4-1 A/F  P4-2 A/M  P4-3 A/F  P4-4 A/F  P4-5 A/F  P4-6 A/F  P4-7 A/F
P5-1 D/M  P5-2 D/S  P5-3 D/S  P5-4 D/S  P5-5 A/F  P5-6 D/M  P5-7 E/S  P5-8 D/S  P5-9 E/S  P5-10 D/S  P5-11 A/F
P6-1 D/S  P6-2 D/S  P6-3 D/S  P6-4 D/S  P6-5 D/S  P6-6 D/S  P6-7 D/M  P6-8 Q/S  P6-9 D/S
P7-1 D/M  P7-2 D/S  P7-3 D/S  P7-4 E/S  P7-5 D/S  P7-6 D/S  P7-7 D/S  P7-8 D/S  P7-9 D/M  P7-10 D/S  P7-11 D/S
P7-12 D/S  P7-13 D/S  P7-14 E/S  P7-15 E/S  P7-16 D/M  P7-17 Q/F  P7-18 D/S
P8-1 A/F  P8-2 H/F  P8-3 E/S  P8-4 A/F  P8-5 E/S  P8-6 A/F  P8-7 A/F  P8-8 A/F  P8-9 A/F  P8-10 A/F  P8-11 D/S
P8-12 E/S  P8-13 A/F  P8-14 E/S  P8-15 A/F  P8-16 E/S  P8-17 A/F  P8-18 E/S  P8-19 A/M  P8-20 A/F  P8-21 A/F
P8-22 A/F  P8-23 H/F
T-1 D/S  T-2 E/S  T-3 A/M  T-4 E/S  T-5 A/M  T-6 D/M  T-7 D/M  T-8 E/S  T-9 A/M  T-10 H/F  T-11 H/M
S-1 A/F  S-2 A/F  S-3 H/M  S-4 H/F  S-5 H/F  S-6 A/F  S-7 E/S  S-8 A/F  S-9 D/M  S-10 D/M
"""


def times_two(value: float) -> float:
    """A formula of its own, for hashes."""
    return 2 * value  # twice


def made(id: str = "P6-1", *, samples: tuple[float, ...] = (0.99, 1.0, 1.01, 1.0), **given: object) -> Record:
    """A record as `make verdicts` would make it."""
    verdict = check(Claim(id, "measured over formula", "here", 0.9, 1.1), samples)
    rest = dict(scale="fast", data="shapes", versions={"torch": "2.13.0"}, date="2026-11-21")
    return record(claim(id), verdict, **(rest | given))


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    error: BaseException | None


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file of verdicts that stands for the package's."""
    monkeypatch.setattr(records, "VERDICTS", tmp_path / "verdicts.json")
    return records.VERDICTS


def run(*words: object) -> Ended:
    app = typer.Typer()
    app.command()(claims)
    ended = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "120"})
    error = None if isinstance(ended.exception, SystemExit) else ended.exception
    return Ended(ended.exit_code, ended.stdout, error)


def listed(*words: object) -> list[dict]:
    ended = run("--json", *words)
    assert ended.error is None

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(ended.out, parse_constant=refuse)


# --- the ledger


def test_ids_classes_and_scales_are_those_of_the_sources():
    words = CLAIMS.split()
    wanted = {id: tuple(both.split("/")) for id, both in zip(words[::2], words[1::2], strict=True)}
    assert {e.id: (e.kind, e.scale) for e in LEDGER.values()} == wanted
    assert list(LEDGER) == list(wanted)
    assert Counter(e.kind for e in LEDGER.values()) == {"A": 36, "H": 12, "E": 16, "D": 38, "Q": 3}
    assert Counter(e.scale for e in LEDGER.values()) == {"F": 36, "M": 25, "S": 44}
    assert set(CLASSES) == {"E", "D", "A", "H", "Q"} and set(SCALES) == {"S", "M", "F"}


def test_sources_are_those_that_ids_name():
    for id, entry in LEDGER.items():
        series = id.split("-")[0]
        assert entry.source == {"T": "notes", "S": "report"}.get(series, f"post {series[1:]}")


def test_every_claim_is_one_sentence_of_its_own_with_a_way_to_test_it_or_a_reason():
    texts = [entry.text for entry in LEDGER.values()]
    assert len(set(texts)) == len(texts)
    for entry in LEDGER.values():
        assert re.fullmatch(r"[A-Z0-9].{30,}\.", entry.text), entry.id
        assert ". " not in entry.text and "  " not in entry.text, f"{entry.id} is one sentence"
        assert entry.tested or entry.untested, entry.id
        assert entry.published, f"{entry.id}: say what was published, if only a figure or a remark"


def test_what_is_said_to_test_a_claim_exists():
    for entry in LEDGER.values():
        for where in entry.tested:
            path, _, name = where.partition("::")
            if where.startswith("chapter "):
                found = list((ROOT / "notebooks").glob(f"{where.removeprefix('chapter ')}_*.ipynb"))
                assert len(found) == 1 and entry.id in found[0].read_text(encoding="utf-8"), (entry.id, where)
            elif path.startswith("tests/"):
                defined = re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
                assert name in defined, (entry.id, where)
            else:
                assert path.startswith(("benchmarks/", "dynamics/verdicts/")), (entry.id, where)
                assert (ROOT / path).is_file(), (entry.id, where)


def test_a_test_named_by_a_claim_stands_in_that_claims_entry():
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for name in re.findall(r"^def (test_(?:P\d|T|S)_\d+_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            series, number = name.split("_")[1:3]
            of_the_series = [w for e in LEDGER.values() if e.id == f"{series}-{number}" for w in e.tested]
            assert any(where.startswith(f"tests/{path.name}::") for where in of_the_series), name


def test_formulas_are_functions_that_exist():
    for entry in LEDGER.values():
        for formula in entry.formulas:
            module, name = formula.split(":")
            assert callable(getattr(sys.modules[module], name)), (entry.id, formula)
            assert len(source_hash(formula)) == 64


def test_an_unknown_id_is_answered_with_the_nearest():
    assert claim("p5-9") is LEDGER["P5-9"]
    with pytest.raises(DynamicsError, match=r"unknown claim 'P9-10': did you mean .*'P[1-8]-10'"):
        claim("P9-10")


# --- verdicts on file


def test_the_committed_file_can_be_read_and_names_claims_of_the_ledger():
    assert VERDICTS.is_file()
    assert set(read_verdicts()) <= set(LEDGER)


def test_a_verdict_is_read_as_it_was_written(file: Path):
    one = made(numbers={"worst": 1.01}, recipes=[{"lr": 0.1, "knots": (0, 2)}], functions=[times_two])
    write_verdict(one)
    assert read_verdicts() == {"P6-1": one}
    assert one.status == "supported" and one.n == 4 and one.interval[0] < one.measured < one.interval[1]
    assert one.recipes == ({"lr": 0.1, "knots": [0, 2]},)
    before = file.read_bytes()
    write_verdict(one)
    assert file.read_bytes() == before


def test_a_bound_that_is_missing_and_an_exact_verdict_survive_strict_json(file: Path):
    verdict = check(Claim("P5-9", "cosine", "here", -math.inf, 1e-10), np.array([1e-13, 3e-12]), exact=True)
    write_verdict(record(claim("P5-9"), verdict, scale="fast", data="toy", versions={}, date="2026-11-21"))
    one = read_verdicts()["P5-9"]
    assert (one.low, one.high, one.level, one.measured) == (None, 1e-10, None, 3e-12)
    json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_one_claims_verdict_is_replaced_and_the_others_stay_in_order(file: Path):
    for id in ("P6-1", "P5-10", "P5-9"):
        write_verdict(made(id))
    write_verdict(made("P6-1", samples=(2.0, 2.1, 2.0)))
    found = read_verdicts()
    assert list(found) == ["P5-9", "P5-10", "P6-1"]
    assert [one.status for one in found.values()] == ["supported", "supported", "refuted"]
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing is left beside it"


def test_no_file_is_no_verdict_and_a_damaged_one_is_one_line(file: Path):
    assert read_verdicts() == {}
    write_verdict(made())
    whole = file.read_text(encoding="utf-8")
    for text, told in (
        (whole[:-20], "cannot be read as verdicts"),
        ("[]", "cannot be read as verdicts"),
        (whole.replace('"format": 1', '"format": 2'), "has format 2, this version reads 1"),
        (whole.replace('"n": 4', '"n": NaN'), "NaN is no JSON"),
        (whole.replace('"n": 4', '"n": 4, "odd": 1'), "unknown field 'odd'"),
        (whole.replace('"supported"', '"certain"'), "status 'certain' is none of supported, refuted, inconclusive"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DynamicsError, match=told) as error:
            read_verdicts()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(samples=()), "status 'untested'"),
        (dict(numbers={"worst": math.nan}), "not finite"),
        (dict(date="21 November"), "is not YYYY-MM-DD"),
        (dict(functions=["dynamics.theory:no_such_law"]), "there is no 'dynamics.theory:no_such_law'"),
        (dict(functions=[lambda: None]), "cannot be found again"),
        (dict(functions=[math.sqrt]), "has no Python source"),
        (dict(recipes=[{"lr": math.nan}]), "is not JSON"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(given: dict, told: str):
    with pytest.raises(DynamicsError, match=told):
        made(**given)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    with pytest.raises(DynamicsError, match="choose a place that can be written"):
        write_verdict(made(), tmp_path / "missing" / "verdicts.json")


# --- keys


def test_a_key_follows_claim_recipe_and_functions_and_nothing_else():
    entry, recipe = claim("P6-1"), {"lr": 0.1, "epochs": 5}
    key = key_of(entry, [recipe], [times_two, theory.equilibrium_angle])
    assert re.fullmatch(r"[0-9a-f]{64}", key)
    assert key_of(entry, [dict(reversed(recipe.items()))], [theory.equilibrium_angle, times_two]) == key
    assert key_of(entry, [recipe], [name_of(times_two), name_of(theory.equilibrium_angle)]) == key
    assert key_of(replace(entry, tested=(), published="other"), [recipe], [times_two, theory.equilibrium_angle]) == key
    others = {
        key_of(replace(entry, text="Another."), [recipe], [times_two, theory.equilibrium_angle]),
        key_of(entry, [recipe | {"lr": 0.2}], [times_two, theory.equilibrium_angle]),
        key_of(entry, [], [times_two, theory.equilibrium_angle]),
        key_of(entry, [recipe], [times_two]),
        key_of(entry, [recipe], [times_two, theory.raw_step]),
    }
    assert len(others) == 5 and key not in others


def test_a_key_of_a_claim_with_bounds_follows_its_bounds():
    one = Claim("P6-1", "a", "here", 0, math.inf)
    assert key_of(one, [], []) != key_of(replace(one, high=1.0), [], [])


PLAIN = """
def law(lr, decay="a # b"):
    if lr:
        return 2 * lr
    return 0
"""
DRESSED = '''
    def law(lr, decay="a # b"):  # of the post
        """What it is,

        at length: "η".
        """

        # why it is so
        if lr:
            return 2 * lr   # twice

        return 0
'''


def test_comments_docstrings_blank_lines_and_indentation_do_not_make_stale(tmp_path, monkeypatch):
    found = {}
    variants = {
        "plain": PLAIN,
        "dressed": f"class Holder:\n{DRESSED}",
        "other": PLAIN.replace("2 * lr", "3 * lr"),
        "hash": PLAIN.replace("a # b", "a # c"),
        "dedented": PLAIN.replace("    return 0", "        return 0"),
    }
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in variants.items():
        (tmp_path / f"law_{name}.py").write_text(text, encoding="utf-8")
        found[name] = source_hash(f"law_{name}:{'Holder.law' if name == 'dressed' else 'law'}")
    assert found["plain"] == found["dressed"]
    assert len({found[n] for n in ("plain", "other", "hash", "dedented")}) == 4


def test_classes_and_modules_can_be_named():
    assert len({source_hash(f) for f in (theory, "dynamics.theory.stability", Claim, "dynamics.claims:Claim")}) == 3


# --- staleness


def test_a_verdict_goes_stale_when_a_formula_changes_and_stands_when_it_is_restored(monkeypatch):
    one = made(functions=[times_two])
    assert "dynamics.theory:equilibrium_angle" in one.functions, "the entry's own formula counts without being named"
    assert stale(one, claim("P6-1")) == ()
    with monkeypatch.context() as patch:
        patch.setattr(theory, "equilibrium_angle", times_two)
        assert stale(one, claim("P6-1")) == ("dynamics.theory:equilibrium_angle has changed",)
        patch.delattr(theory, "equilibrium_angle")
        assert stale(one, claim("P6-1")) == ("dynamics.theory:equilibrium_angle is gone",)
    assert stale(one, claim("P6-1")) == ()


def test_a_verdict_goes_stale_when_its_claim_or_its_record_changes():
    one, entry = made(recipes=[{"lr": 0.1}]), claim("P6-1")
    assert stale(one, replace(entry, text="Something else holds.")) == ("the claim or its recipe has changed",)
    assert stale(replace(one, recipes=({"lr": 0.2},)), entry) == ("the claim or its recipe has changed",)
    assert stale(one, replace(entry, formulas=(*entry.formulas, "dynamics.theory:raw_step"))) == (
        "dynamics.theory:raw_step is new",
    )
    assert stale(one, None) == ("the claim is no longer in the ledger",)
    assert stale(one, replace(entry, tested=(), published="about 1")) == ()


# --- totals and filters


def test_totals_count_every_claim_once():
    found = {"P5-9": made("P5-9"), "P6-1": made("P6-1", samples=(2.0, 2.1, 2.0))}
    counts = totals(LEDGER.values(), found)
    assert counts["E"] == {"supported": 1, "refuted": 0, "inconclusive": 0, "untested": 15}
    assert counts["D"] == {"supported": 0, "refuted": 1, "inconclusive": 0, "untested": 37}
    assert sum(sum(row.values()) for row in counts.values()) == 105
    assert summary(LEDGER.values(), found) == "105 claims: 1 supported, 1 refuted, 0 inconclusive, 103 untested"
    why = unjudged(LEDGER.values(), found)
    assert sum(map(len, why.values())) == 103
    assert all(reason(claim(id)) == text for text, ids in why.items() for id in ids)


def test_filters_agree_with_a_slow_loop():
    found = {"P5-9": made("P5-9"), "P6-1": made("P6-1", samples=(2.0, 2.1, 2.0))}
    everything = list(LEDGER.values())
    assert select(found) == everything
    assert select(found, kinds=["e", "Q"]) == [e for e in everything if e.kind in "EQ"]
    assert select(found, sources=["post 5", "notes"]) == [e for e in everything if re.match("P5|T", e.id)]
    assert select(found, sources=["post"]) == [e for e in everything if e.id[0] == "P"]
    assert [e.id for e in select(found, statuses=["supported", "refuted"])] == ["P5-9", "P6-1"]
    assert [e.id for e in select(found, ids=["P6-1", "P1-5"], kinds=["D"])] == ["P6-1"]
    assert len(select(found, statuses=["untested"])) == 103


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(ids=["P5-99"]), "unknown claim 'P5-99': did you mean"),
        (dict(kinds=["X"]), "unknown class 'X': choose one of A, D, E, H, Q"),
        (dict(statuses=["suported"]), "did you mean 'supported'"),
        (dict(sources=["post 9"]), "unknown source 'post 9': did you mean 'post"),
    ],
)
def test_unknown_values_of_filters_are_answered_with_the_nearest(given: dict, told: str):
    with pytest.raises(DynamicsError, match=told):
        select({}, **given)


# --- the command


def test_the_command_makes_sense_without_any_verdict(file: Path):
    text = run().out
    assert "105 claims: 0 supported, 0 refuted, 0 inconclusive, 105 untested" in text
    assert "untested here, and why" in text and "outdated" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for id in LEDGER:
        assert re.search(rf"^{id} +[EDAHQ] +untested ", text, re.MULTILINE), id
    assert {one["status"] for one in listed()} == {"untested"}


def test_the_command_prints_verdicts_and_which_the_code_has_outdated(file: Path, monkeypatch):
    write_verdict(made("P6-1"))
    write_verdict(made("P6-9", samples=(2.0, 2.1, 2.0)))
    assert "outdated" not in run().out
    monkeypatch.setattr(theory, "equilibrium_angle", times_two)
    text = run().out
    assert re.search(r"^P6-1 +D +supported, stale +In equilibrium", text, re.MULTILINE)
    assert re.search(r"^P6-9 +D +refuted +Where", text, re.MULTILINE)
    assert "make verdicts judges them again" in text
    assert "  P6-1: dynamics.theory:equilibrium_angle has changed" in text
    assert "outdated" not in run("--id", "P6-9").out
    assert "outdated" not in run("--class", "E").out


def test_json_has_one_strict_object_a_claim(file: Path, monkeypatch):
    write_verdict(made("P6-1"))
    monkeypatch.setattr(theory, "equilibrium_angle", times_two)
    objects = listed()
    assert [one["id"] for one in objects] == list(LEDGER)
    assert {one["class"] for one in objects} == set(CLASSES) and {one["status"] for one in objects} <= set(STATUSES)
    by_id = {one["id"]: one for one in objects}
    judged, other = by_id["P6-1"], by_id["P1-1"]
    assert judged["status"] == "supported" and judged["untested"] is None and judged["verdict"]["n"] == 4
    assert judged["stale"] == ["dynamics.theory:equilibrium_angle has changed"]
    assert other["verdict"] is None and "CIFAR-10" in other["untested"] and other["stale"] == []
    assert all(set(one) == set(judged) for one in objects)


def test_options_filter_and_may_be_repeated(file: Path):
    write_verdict(made("P5-9"))
    assert [one["id"] for one in listed("--class", "Q")] == ["P2-6", "P6-8", "P7-17"]
    assert [one["id"] for one in listed("--status", "supported")] == ["P5-9"]
    assert {one["source"] for one in listed("--source", "report", "--source", "post 3")} == {"report", "post 3"}
    assert [one["id"] for one in listed("--id", "S-7", "--id", "P1-5")] == ["P1-5", "S-7"]
    assert listed("--class", "Q", "--status", "supported") == []
    assert run("--class", "Q", "--status", "supported").out == "no claim fits all of these filters\n"


def test_one_claim_is_printed_in_full(file: Path):
    write_verdict(made("P6-1", numbers={"worst": 1.01}))
    text = run("--id", "P6-1").out
    for part in ("sqrt(2 lr weight_decay)", "chapter 06", "supported", "95 %", "n = 4", "0.9 to 1.1", "worst 1.01"):
        assert part in text, part
    assert "shapes, scale fast, 2026-11-21 (torch 2.13.0)" in text
    text = run("--id", "P1-1").out
    assert "untested" in text and "needs full CIFAR-10" in text and "356 s" in text


def test_an_unknown_id_ends_the_command_with_the_nearest():
    ended = run("--id", "P5-99")
    assert isinstance(ended.error, DynamicsError) and "'P5-9'" in str(ended.error)


def test_the_page_has_every_claim_and_escapes_what_it_shows(file: Path, tmp_path: Path):
    write_verdict(made("P6-1", data="<images>"))
    page = tmp_path / "ledger.html"
    assert f"the page: {page}" in run("--html", page).out.replace("\n", " ")
    text = page.read_text(encoding="utf-8")
    assert all(f"<tr id='{id}'>" in text for id in LEDGER)
    assert "&lt;images&gt;" in text and "<images>" not in text
    assert "105 claims: 1 supported" in text
    ended = run("--html", tmp_path / "missing" / "ledger.html")
    assert isinstance(ended.error, DynamicsError) and "choose another place" in str(ended.error)
