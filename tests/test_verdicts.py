from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dynamics import theory
from dynamics.claims import MIME, Claim, Verdict, check, records, sources, table
from dynamics.claims.combine import LEAST_RUNS, claim_of, combine, is_control
from dynamics.claims.ledger import LEDGER, claim, summary
from dynamics.claims.records import VERDICTS, read_verdicts, source_hash, stale
from dynamics.cli import app
from dynamics.errors import DynamicsError
from dynamics.verdicts import SOURCES, Measurement, found, judge, measure, quadratics, runner, scales, tasks

ROOT = Path(__file__).parents[1]
PLANNED = tasks()


def test_S_7_the_reports_gains_multiply_to_more_than_it_reached():
    """Its table of hours: 2:42 as a baseline, 1:30 with stochastic depth, 0:49 on four GPUs, 0:32 with both."""
    baseline, half_the_blocks, four_gpus, both = 162, 90, 49, 32
    apart, together = (baseline / half_the_blocks) * (baseline / four_gpus), baseline / both
    assert round(baseline / half_the_blocks, 1) == 1.8 and round(baseline / four_gpus, 1) == 3.3
    assert round(1.8 * 3.3, 2) == 5.94 < apart and round(together, 2) == 5.06
    assert together < apart and round(together / 5.94, 2) == 0.85


# --- many verdicts, one status


def found_on(id: str, status: str, *, n: int = 3, source: str = "post", text: str = "") -> Verdict:
    return Verdict(Claim(id, text or f"{id} {status}", source, 0, 1), status, 0.5, (0.4, 0.6), n, 0.95)


def test_an_id_belongs_to_the_claim_before_its_letters():
    ids = {"P6-1": "P6-1", "P6-1w": "P6-1", "P7-13f": "P7-13", "T-11ab": "T-11", "S-9a": "S-9"}
    assert {id: claim_of(id) for id in ids} == ids
    assert [claim_of(id) for id in ("HVP", "HVP-a", "B18", "P6", "P6-w", "PyHessian", "P6-1-w")] == [None] * 7


@pytest.mark.parametrize(
    ("parts", "controls", "status"),
    [
        (["supported"], [], "supported"),
        (["supported", "supported"], ["supported"], "supported"),
        (["supported", "inconclusive"], ["supported"], "inconclusive"),
        (["inconclusive", "refuted"], ["supported"], "refuted"),
        (["supported"], ["refuted"], "inconclusive"),
        (["supported"], ["supported", "inconclusive"], "inconclusive"),
        (["refuted"], ["refuted"], "refuted"),
    ],
)
def test_one_refuted_quantity_refutes_and_a_failed_control_leaves_it_open(parts, controls, status):
    verdicts = [found_on("P6-1", s, text=f"part {i}") for i, s in enumerate(parts)]
    verdicts += [found_on("P6-1a", s, source="ablation", text=f"control {i}") for i, s in enumerate(controls)]
    for order in (verdicts, verdicts[::-1]):
        verdict, numbers = combine(claim("P6-1"), order)
        assert verdict.status == status
        assert len(numbers) == len(verdicts) - 1 and verdict.claim.text not in numbers
    if status in parts:
        assert verdict.claim.text == [f"part {i}" for i, s in enumerate(parts) if s == status][-1]


def test_too_few_runs_decide_no_law_of_the_dynamics_and_decide_an_identity():
    few = [found_on("P7-9", "supported", n=LEAST_RUNS), found_on("P7-9n", "supported", n=LEAST_RUNS - 1)]
    assert combine(claim("P7-9"), few).verdict.status == "inconclusive"
    assert combine(claim("P7-9"), few).verdict.n == LEAST_RUNS - 1
    assert combine(claim("P7-9"), few[:1]).verdict.status == "supported"
    assert combine(claim("P7-15"), [found_on("P7-15", "supported", n=1)]).verdict.status == "supported"


def test_controls_are_known_by_their_source_or_their_first_word():
    assert is_control(found_on("P6-1f", "supported", source="ablation"))
    assert is_control(found_on("P6-1f", "supported", text="ablation: frozen norms"))
    assert not is_control(found_on("P6-1g", "supported", text="with frozen norms, no ablation"))


# --- tests as a source

TOY = '''
import pytest

@pytest.mark.parametrize("n", [1, 2, 3])
def test_holds(n):
    """What holds."""
    assert n > 0  # always

def test_fails():
    assert 1 > 2

def test_is_skipped():
    pytest.skip("not here")

@pytest.fixture
def broken():
    raise ValueError

def test_cannot_begin(broken):
    pass
'''


@dataclass(frozen=True)
class Checkout:
    root: Path

    def name(self, test: str) -> str:
        return f"tests/test_toy.py::{test}"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A folder with one file of tests that stands for the checkout, and an empty file of verdicts."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests" / "test_toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(found, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(records, "VERDICTS", tmp_path / "verdicts.json")
    return Checkout(tmp_path)


def test_outcomes_of_tests_become_verdicts(checkout: Checkout):
    names = [checkout.name(t) for t in ("test_holds", "test_fails", "test_is_skipped", "test_cannot_begin")]
    outcomes = found.run_tests(names, say=lambda _: None)
    holds, fails, skipped, broken = names
    assert outcomes == {holds: ["passed"] * 3, fails: ["failed"], skipped: ["skipped"], broken: ["failed"]}
    entry = claim("P5-9")

    def judged(*tests: str) -> tuple[str, int]:
        verdict = found.judged_by_tests(replace(entry, tested=(*tests, "chapter 06")), outcomes)
        return verdict.status, verdict.n

    assert judged(holds) == ("supported", 3)
    assert judged(holds, fails) == ("refuted", 4)
    assert judged(holds, skipped) == ("inconclusive", 4)
    assert judged(broken, skipped) == ("refuted", 2)
    with pytest.raises(DynamicsError, match=r"test_toy\.py::test_other did not run"):
        judged(holds, checkout.name("test_other"))
    with pytest.raises(DynamicsError, match="pytest ended with code 4 and judged nothing"):
        found.run_tests([checkout.name("test_that_is_not_there")], say=lambda _: None)


def test_a_test_is_hashed_with_what_parametrises_it_and_without_its_comments(checkout: Checkout):
    path = checkout.root / "tests" / "test_toy.py"
    before = {t: source_hash(checkout.name(t)) for t in ("test_holds", "test_fails")}
    path.write_text(TOY.replace("# always", "# for ever").replace("What holds", "A law"), encoding="utf-8")
    assert {t: source_hash(checkout.name(t)) for t in before} == before
    path.write_text("\n\n" + TOY.replace("1 > 2", "1 > 3"), encoding="utf-8")
    assert source_hash(checkout.name("test_holds")) == before["test_holds"]
    assert source_hash(checkout.name("test_fails")) != before["test_fails"]
    path.write_text(TOY.replace("[1, 2, 3]", "[1, 2]"), encoding="utf-8")
    assert source_hash(checkout.name("test_holds")) != before["test_holds"]
    with pytest.raises(DynamicsError, match=r"there is no 'tests/test_toy.py::test_gone'"):
        source_hash(checkout.name("test_gone"))


# --- chapters as a source


def chapter(path: Path, verdicts: list[Verdict], *, code: str = "x = 1", tags: tuple[str, ...] = ("verdicts",)) -> Path:
    output = {"output_type": "execute_result", "data": {MIME: table(verdicts).to_json(), "text/plain": ["..."]}}
    written = {"cell_type": "code", "source": [code], "metadata": {"tags": list(tags)}, "outputs": [output]}
    cells = [{"cell_type": "markdown", "source": ["words"], "metadata": {}}, written]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def test_verdicts_are_read_from_a_chapters_outputs_by_claim(tmp_path: Path):
    verdicts = [
        check(Claim("P6-1", "angle", "post 6", 0.9, 1.1), [0.99, 1.0, 1.01]),
        check(Claim("P6-1w", "worst", "post 6", -np.inf, 0.1), [0.04, 0.05, 0.06]),
        check(Claim("HVP", "no claim", "identity", 0, 1), [0.5]),
        check(Claim("P6-2", "never measured", "post 6", 0, 1), None),
    ]
    notebook = chapter(tmp_path / "06_x.ipynb", verdicts)
    assert found.judged_by_chapter(notebook) == {"P6-1": verdicts[:2]}
    assert found.judged_by_chapter(chapter(tmp_path / "07_x.ipynb", verdicts, tags=())) == {}
    notebook.write_text("{}", encoding="utf-8")
    with pytest.raises(DynamicsError, match="cannot be read as a chapter"):
        found.judged_by_chapter(notebook)


def test_a_chapter_is_hashed_by_its_code_and_not_by_its_words_and_outputs(checkout: Checkout):
    name = "notebooks/06_x.ipynb"
    verdict = check(Claim("P6-1", "angle", "post 6", 0.9, 1.1), [0.99, 1.0, 1.01])
    path = chapter(checkout.root / name, [verdict])
    before = source_hash(name)
    path.write_text(path.read_text(encoding="utf-8").replace("words", "other words"), encoding="utf-8")
    assert source_hash(name) == before
    chapter(path, [], code="x = 1  # one")
    assert source_hash(name) == before
    chapter(path, [verdict], code="x = 2")
    assert source_hash(name) != before


def test_the_committed_chapters_judge_laws_of_weight_decay():
    (path,) = (ROOT / "notebooks").glob("06_*.ipynb")
    judged = found.judged_by_chapter(path)
    assert {"P5-8", "P5-10", "P6-1", "P6-2", "P6-3", "P6-9"} <= set(judged)
    assert all(claim_of(v.claim.id) == id for id, verdicts in judged.items() for v in verdicts)
    assert len(judged["P6-1"]) > 2 and any(is_control(v) for v in judged["P6-1"])


# --- which source judges what


def test_exact_claims_are_judged_by_their_tests_and_laws_never_are():
    assert set(SOURCES) == {task.source for task in PLANNED.values()}
    for id, entry in LEDGER.items():
        task = PLANNED.get(id)
        if entry.kind == "E":
            assert task is not None and task.source == "tests" and task.rests_on == found.tests_of(entry), id
        elif entry.kind == "D":
            assert task is None or task.source != "tests", id
        elif task is not None:
            assert not entry.untested, id


def test_measurements_are_of_claims_whose_entries_name_them_and_have_runs_enough():
    for one in runner._all_measurements():
        entry = claim(one.claim.id)
        assert one.claim.id == entry.id and PLANNED[entry.id].source == "measurements"
        assert one.seeds >= LEAST_RUNS
        where = one.sample.__module__.replace(".", "/") + ".py"
        assert where in entry.tested and not entry.untested, entry.id
        assert one.sample.__module__ in PLANNED[entry.id].rests_on
        names = [m.claim.text for m in PLANNED[entry.id].measurements]
        assert len(set(names)) == len(names), f"{entry.id}: numbers are told apart by their words"
        assert not all(m.claim.source == "ablation" for m in PLANNED[entry.id].measurements)


# --- the runner


def of_seed(seed: int) -> float:
    return 1.0 + 0.01 * seed


def fails(seed: int) -> float:
    return float("nan")


def toy(id: str, sample=of_seed, high: float = 1.1) -> Measurement:
    return Measurement(Claim(id, "of the seed", "here", 0.9, high), sample)


def test_the_runner_writes_each_verdict_when_it_is_found_and_goes_on_after_an_interruption(checkout, monkeypatch):
    said: list[str] = []
    made: list[str] = []

    def stops(seed: int) -> float:
        raise KeyboardInterrupt

    def counted(seed: int) -> float:
        made.append("T-1")
        return of_seed(seed)

    counted.__module__ = stops.__module__ = __name__
    chapter(checkout.root / "notebooks" / "06_x.ipynb", [check(Claim("P6-1", "angle", "x", 0.9, 1.1), [1.0, 1.0, 1.0])])
    first = (toy("T-1", counted), toy("S-9", stops))
    monkeypatch.setattr(runner, "_all_measurements", lambda: first)
    monkeypatch.setattr(found, "tests_of", lambda entry: ())
    with pytest.raises(KeyboardInterrupt):
        judge(say=said.append)
    known = read_verdicts(records.VERDICTS)
    assert {id: one.status for id, one in known.items()} == {"P6-1": "supported", "T-1": "supported"}
    assert known["P6-1"].functions.keys() == {"notebooks/06_x.ipynb", *claim("P6-1").formulas}
    assert known["T-1"].functions.keys() == {__name__, *claim("T-1").formulas}
    assert known["T-1"].n == 3 and known["T-1"].quantity == "of the seed" and set(known["T-1"].versions) >= {"torch"}

    monkeypatch.setattr(runner, "_all_measurements", lambda: (first[0], toy("S-9", fails), toy("P8-11", high=1.005)))
    assert [text.split(":")[0] for text in judge(say=said.append)] == ["S-9"]
    assert len(made) == 3, "what stands is not measured again"
    assert read_verdicts(records.VERDICTS)["P8-11"].status == "inconclusive"
    assert "4 claims are judged here, 2 of them already: 2 to do" in said
    assert any("not judged: " in line for line in said)
    judge(["T-1"], again=True, say=said.append)
    assert len(made) == 6


def test_what_the_code_has_outdated_is_judged_again(checkout, monkeypatch):
    monkeypatch.setattr(runner, "_all_measurements", lambda: (toy("P6-1"),))
    said: list[str] = []
    judge(["P6-1"], say=said.append)
    judge(["P6-1"], say=said.append)
    assert said[-1].endswith("1 of them already: 0 to do")
    monkeypatch.setattr(theory, "equilibrium_angle", of_seed)
    assert stale(read_verdicts(records.VERDICTS)["P6-1"], claim("P6-1"))
    judge(["P6-1"], say=said.append)
    assert not stale(read_verdicts(records.VERDICTS)["P6-1"], claim("P6-1"))
    chapter(checkout.root / "notebooks" / "06_x.ipynb", [check(Claim("P6-1", "angle", "x", 0.9, 1.1), [1.0, 1.0, 1.0])])
    monkeypatch.setattr(runner, "_all_measurements", lambda: ())
    judge(["P6-1"], say=said.append)
    assert "notebooks/06_x.ipynb" in read_verdicts(records.VERDICTS)["P6-1"].functions, "another source judges it now"


@pytest.mark.parametrize(
    ("ids", "given", "told"),
    [
        (["P9-9"], {}, "unknown claim 'P9-9'"),
        ((), {"source": "test"}, "unknown source of verdicts 'test': did you mean 'tests'"),
        (["P1-1"], {}, "nothing here judges P1-1: see why with dynamics claims --id P1-1"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_line(ids, given, told):
    with pytest.raises(DynamicsError, match=told):
        judge(ids, say=lambda _: None, **given)


def test_an_installed_package_judges_nothing_and_outdates_nothing(checkout, monkeypatch, tmp_path):
    known = {id: replace(one) for id, one in read_verdicts(VERDICTS).items() if LEDGER[id].kind == "E"}
    monkeypatch.setattr(sources, "ROOT", tmp_path / "site-packages")
    assert not any(stale(one, LEDGER[id]) for id, one in known.items())
    with pytest.raises(DynamicsError, match="in a checkout"):
        judge(root=tmp_path / "site-packages", say=lambda _: None)


def test_the_command_records_and_prints_the_totals(checkout, monkeypatch):
    monkeypatch.setattr(runner, "_all_measurements", lambda: (toy("T-1"), toy("S-9", fails)))
    ended = CliRunner().invoke(app, ["verdicts", "--from", "measurements"])
    assert ended.exit_code == 1
    assert "105 claims: 1 supported, 0 refuted, 0 inconclusive, 104 untested" in ended.stdout
    assert "1 could not be judged: S-9 (reasons above)" in ended.stdout


# --- the repository's own verdicts


def test_recorded_verdicts_still_stand():
    outdated = {id: changed for id, one in read_verdicts().items() if (changed := stale(one, LEDGER.get(id)))}
    assert not outdated, "run make verdicts, and put its last line into README.md"


def test_the_readme_has_the_totals():
    assert summary(LEDGER.values(), read_verdicts()) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_exact_claim_and_fifteen_laws_are_decided():
    decided = [id for id, one in read_verdicts().items() if one.status in ("supported", "refuted")]
    assert {id for id, entry in LEDGER.items() if entry.kind == "E"} <= set(decided)
    assert sum(LEDGER[id].kind == "D" for id in decided) >= 15


def test_make_verdicts_is_the_command():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(
        r"^verdicts: \$\(INSTALLED_DEV\) ## .+\n(?:\t@echo .+\n)?\t@\$\(BIN\)/python -m dynamics verdicts\n",
        makefile,
        re.M,
    )


# --- measurements and their slow twins


def test_measure_judges_the_samples_of_its_seeds():
    one = toy("T-1")
    assert measure(one) == check(one.claim, [1.0, 1.01, 1.02])
    assert measure(replace(one, exact=True)) == check(one.claim, [1.0, 1.01, 1.02], exact=True)
    with pytest.raises(DynamicsError):
        measure(toy("T-1", fails))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_contraction_of_heavy_ball_is_its_largest_spectral_radius(momentum):
    h, lr = np.array([0.3, 1.0, 4.0]), 0.2
    radii = [np.abs(np.linalg.eigvals([[1 + momentum - lr * c, -momentum], [1, 0]])).max() for c in h]
    assert quadratics._contraction(h, lr, momentum) == pytest.approx(max(radii), rel=2e-3)


def test_decay_alone_leaves_of_a_scale_what_it_left_in_post_8s_run_of_eighteen_epochs():
    """Its product at the end is 0.073 (P8-11), and a quarter is reached in mid-training."""
    alone = scales.by_decay_alone()
    assert alone[-1] == pytest.approx(0.073, rel=0.1)
    assert 0.3 < np.argmax(alone <= 0.25) / (len(alone) - 1) < 0.6


def test_tuned_momentum_holds_the_whole_range_of_curvature_robust():
    for seed in range(3):
        h = quadratics._curvatures(seed)
        momentum, lr = quadratics.tuned(h)
        low, high = theory.robust_region(h, momentum=momentum)
        assert (low <= lr * (1 + 1e-9)).all() and (lr <= high * (1 + 1e-9)).all()
        assert h.max() / h.min() == pytest.approx(((1 + momentum**0.5) / (1 - momentum**0.5)) ** 2)
