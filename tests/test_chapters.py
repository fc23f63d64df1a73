from __future__ import annotations

import json
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

import dynamics as dyn
from dynamics import theory
from dynamics.chapters import SCALES, at_scale, cifar10_on_disk, execute, find_chapter
from dynamics.claims import MIME
from dynamics.errors import DynamicsError

# --- the scale


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_the_environments(monkeypatch, scale):
    monkeypatch.setenv("DYNAMICS_SCALE", scale)
    assert at_scale(fast="fast", cpu="cpu", full="full") == scale


def test_the_scale_is_fast_where_none_is_set(monkeypatch):
    monkeypatch.delenv("DYNAMICS_SCALE", raising=False)
    assert at_scale(fast=1, cpu=2, full=3) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fats", "unknown DYNAMICS_SCALE 'fats': did you mean 'fast'"),
        ("gpu", "unknown DYNAMICS_SCALE 'gpu': did you mean 'cpu'"),
        ("FULL", "unknown DYNAMICS_SCALE 'FULL': choose one of cpu, fast, full"),
        ("", "unknown DYNAMICS_SCALE '': choose one of"),
    ],
)
def test_an_unknown_scale_is_named_with_the_nearest(monkeypatch, word, message):
    monkeypatch.setenv("DYNAMICS_SCALE", word)
    with pytest.raises(DynamicsError, match=message) as error:
        at_scale(fast=1, cpu=2, full=3)
    assert "\n" not in str(error.value)


SETTINGS = {"fast": {"data": "shapes"}, "cpu": {"data": "cifar10", "width": 16}, "full": {"data": "cifar10"}}


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_a_scale_whose_data_are_not_on_disk_is_told_in_one_line_and_starts_no_download(monkeypatch, tmp_path, scale):
    monkeypatch.setattr("dynamics.data.cifar10.download", lambda *_, **__: pytest.fail("a download was started"))
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path))
    monkeypatch.setenv("DYNAMICS_SCALE", scale)
    assert not cifar10_on_disk()
    with pytest.raises(DynamicsError, match=f"DYNAMICS_SCALE={scale} needs CIFAR-10") as error:
        at_scale(**SETTINGS)
    told = str(error.value)
    assert "\n" not in told and not list(tmp_path.iterdir())
    assert "`dynamics data cifar10` (170 MB)" in told and f"cifar-10-binary.tar.gz into {tmp_path}" in told
    assert "shapes" in told and "unset DYNAMICS_SCALE" in told
    assert at_scale(fast=1, cpu={"data": "shapes"}, full=3) in ({"data": "shapes"}, 3), "it asks for other data"


@pytest.mark.parametrize("file", ["cifar-10-batches-bin/test_batch.bin", "cifar-10-binary.tar.gz"])
def test_images_on_disk_are_found_unpacked_and_packed(monkeypatch, tmp_path, file):
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path))
    monkeypatch.setenv("DYNAMICS_SCALE", "cpu")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / f"{file}.part").write_bytes(b"")
    assert not cifar10_on_disk(), "a part of a download is not the data"
    (tmp_path / file).write_bytes(b"")
    assert cifar10_on_disk() and at_scale(**SETTINGS) == SETTINGS["cpu"]


def test_the_fast_scale_needs_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path))
    monkeypatch.delenv("DYNAMICS_SCALE", raising=False)
    assert at_scale(**SETTINGS) == SETTINGS["fast"]


# --- finding


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("06_weight_decay.ipynb", "07_batch_norm.ipynb", "notes.ipynb", "08_text.md"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"), [("06", "06_weight_decay"), ("07", "07_batch_norm"), ("07_batch_norm", "07_batch_norm")]
)
def test_a_chapter_is_found_by_number_and_by_name(folder, name, found):
    assert find_chapter(name, folder) == folder / f"{found}.ipynb"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("06_wieght_decay", "unknown chapter '06_wieght_decay': did you mean '06_weight_decay'"),
        ("99", "unknown chapter '99': choose one of 06_weight_decay, 07_batch_norm"),
        ("notes", "unknown chapter 'notes': choose one of"),
        ("", "unknown chapter '': choose one of"),
    ],
)
def test_an_unknown_chapter_is_named_with_the_nearest(folder, name, message):
    with pytest.raises(DynamicsError, match=message):
        find_chapter(name, folder)


def test_no_chapters(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DynamicsError, match=r"no chapters in .* checkout"):
            find_chapter("06", place)


def test_the_committed_chapters_are_found():
    place = Path(dyn.__file__).parents[1] / "notebooks"
    if not place.is_dir():
        pytest.skip("needs a checkout")
    for notebook in place.glob("[0-9][0-9]_*.ipynb"):
        assert find_chapter(notebook.stem[:2], place) == find_chapter(notebook.stem, place) == notebook


def test_the_map_of_the_course_leads_to_every_chapter():
    place = Path(dyn.__file__).parents[1] / "notebooks"
    if not place.is_dir():
        pytest.skip("needs a checkout")
    course = (place / "README.md").read_text(encoding="utf-8")
    missing = [p.name for p in place.glob("[0-9][0-9]_*.ipynb") if f"]({p.name})" not in course]
    assert not missing, f"give {missing} a row in the map of notebooks/README.md"


# --- executing

CELLS = [
    ("print('hello from', 6 * 7)", ()),
    ("", ()),
    ("\n%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", ()),
    (
        "import math\nfrom dynamics.claims import Claim, check, table\n"
        "near = Claim('T1', 'near <one>', 'a source', 0.9, 1.1, 'm')\n"
        "above = Claim('T2', 'above', 'a source', 0, math.inf)\ntable([check(near, [5.5, 5.6])])",
        (),
    ),
    ("table([check(near, [1.0321, 1.0322]), check(above, None)])", ("verdicts",)),
    ("print('no table')\ntable([check(above, [3.0])])", ("verdicts", "nbval-ignore-output")),
]


def write(path: Path, cells) -> Path:
    made = [nbformat.v4.new_markdown_cell("# A chapter")]
    made += [nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}) for source, tags in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The source, the folder of what was written, the verdicts, and what was said."""
    place, said = tmp_path_factory.mktemp("chapter"), []
    notebook = write(place / "notebooks" / "01_tiny.ipynb", CELLS)
    before = notebook.read_bytes()
    verdicts = execute(notebook, place / "deep" / "out", say=said.append)
    assert notebook.read_bytes() == before, "the chapter itself is not touched"
    return place / "deep" / "out", verdicts, said


def test_a_page_and_an_executed_notebook_are_written(executed):
    out, _, said = executed
    assert sorted(p.name for p in out.iterdir()) == ["01_tiny.html", "01_tiny.ipynb"]
    page = (out / "01_tiny.html").read_text(encoding="utf-8")
    assert "hello from 42" in page and "data:image/png;base64," in page and "near &lt;one&gt;" in page
    book = nbformat.read(out / "01_tiny.ipynb", as_version=4)
    nbformat.validate(book)
    counts = [c.execution_count for c in book.cells if c.cell_type == "code" and c.source.strip()]
    assert None not in counts and counts == sorted(set(counts))
    outputs = [o for c in book.cells for o in c.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert len(said) == len(CELLS)
    assert "cell 1 of 6: print('hello from', 6 * 7)" in said[0] and said[2].endswith("%matplotlib inline")


def test_the_verdicts_of_tagged_cells_are_returned(executed):
    verdicts = executed[1]
    assert [(v["id"], v["status"]) for v in verdicts] == [
        ("T1", "supported"), ("T2", "untested"), ("T2", "inconclusive"),
    ]  # fmt: skip
    first, untested, single = verdicts
    assert (first["low"], first["high"], first["n"]) == (0.9, 1.1, 2) and first["measured"] == pytest.approx(1.03215)
    assert untested["high"] is None and untested["measured"] is None and untested["n"] == 0
    assert single["measured"] == 3.0 and single["interval_low"] is None  # an infinite interval
    numbers = [v for record in verdicts for v in record.values() if isinstance(v, float)]
    assert numbers and all(map(math.isfinite, numbers))
    json.dumps(verdicts, allow_nan=False)


def test_a_tables_text_has_no_measured_digits(executed):
    book = nbformat.read(executed[0] / "01_tiny.ipynb", as_version=4)
    cell = next(c for c in book.cells if c.source == CELLS[4][0])
    (data,) = [o.data for o in cell.outputs]
    assert {"text/plain", "text/html", MIME} <= set(data)
    assert "1.032" in data["text/html"] and "1.032" in json.dumps(data[MIME])
    assert set(re.findall(r"\d[\d.]*", data["text/plain"].replace("T1", "").replace("T2", ""))) == {"0.9", "1.1", "0"}


def test_a_cell_that_fails_is_named_and_kept(tmp_path):
    cells = [("a = 1", ()), ("print('so far')\nraise ValueError('two\\nlines')", ()), ("never = True", ())]
    notebook = write(tmp_path / "02_broken.ipynb", cells)
    with pytest.raises(DynamicsError, match=r"02_broken\.ipynb failed in code cell 2 \(ValueError: two\)") as error:
        execute(notebook, tmp_path / "out", say=lambda line: None)
    assert "\n" not in str(error.value)
    book = nbformat.read(tmp_path / "out" / "02_broken.ipynb", as_version=4)
    outputs = [o.output_type for c in book.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs == ["stream", "error"]
    assert not (tmp_path / "out" / "02_broken.html").exists()


def test_an_error_that_names_its_mend_is_told_in_its_own_words(tmp_path):
    cell = "from dynamics.errors import DynamicsError\nraise DynamicsError('no such data: fetch them')"
    notebook = write(tmp_path / "02_broken.ipynb", [("a = 1", ()), (cell, ())])
    with pytest.raises(DynamicsError) as error:
        execute(notebook, tmp_path / "out", say=lambda line: None)
    assert str(error.value) == "02_broken.ipynb, code cell 2: no such data: fetch them"


def test_an_unknown_scale_is_told_before_a_kernel_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNAMICS_SCALE", "fats")
    notebook, said = write(tmp_path / "01_tiny.ipynb", CELLS[:1]), []
    with pytest.raises(DynamicsError, match="unknown DYNAMICS_SCALE 'fats': did you mean 'fast'"):
        execute(notebook, tmp_path / "out", say=said.append)
    assert said == [] and not (tmp_path / "out").exists()


def test_a_kernel_that_dies_is_told_in_one_line(tmp_path):
    """As when the machine runs out of memory."""
    notebook = write(tmp_path / "03_killed.ipynb", [("print('so far')", ()), ("import os\nos._exit(9)", ())])
    with pytest.raises(DynamicsError, match=r"03_killed\.ipynb .*cell 2") as error:
        execute(notebook, tmp_path / "out", say=lambda line: None)
    assert "\n" not in str(error.value)
    assert "so far" in (tmp_path / "out" / "03_killed.ipynb").read_text()


def test_what_is_no_notebook_is_told_in_one_line(tmp_path):
    (tmp_path / "04_text.ipynb").write_text("not a notebook")
    with pytest.raises(DynamicsError, match="04_text") as error:
        execute(tmp_path / "04_text.ipynb", tmp_path / "out", say=lambda line: None)
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_told_before_any_cell_runs(tmp_path):
    notebook, said = write(tmp_path / "01_tiny.ipynb", CELLS[:1]), []
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DynamicsError, match="cannot write"):
            execute(notebook, out, say=said.append)
    assert said == [] and (tmp_path / "file").read_text() == "mine"


def test_progress_bars_are_in_the_notebook_and_not_on_the_page(tmp_path):
    cell = "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='three seeds'):\n    pass\nprint('done')"
    notebook = write(tmp_path / "01_tiny.ipynb", [(cell, ())])
    execute(notebook, tmp_path / "out", say=lambda line: None)
    assert "widget-view" in (tmp_path / "out" / "01_tiny.ipynb").read_text()
    page = (tmp_path / "out" / "01_tiny.html").read_text()
    assert "done" in page and "three seeds:" not in page


def test_a_chapter_is_not_written_over_itself(tmp_path):
    notebook = write(tmp_path / "01_tiny.ipynb", CELLS[:1])
    before = notebook.read_bytes()
    with pytest.raises(DynamicsError, match=r"another (folder|place)"):
        execute(notebook, tmp_path, say=lambda line: None)
    assert notebook.read_bytes() == before


# --- a broken law turns the table

LR, DECAY, MOMENTUM = 0.1, 5e-3, 0.9
CLAIM = dyn.Claim("P6-1", "heavy ball: angle over formula, median layer", "Page, post 6", 0.96, 1.04)


def walk(seed: int, dim: int = 400, steps: int = 900) -> float:
    """The rms angle of a step of heavy ball on a scale-invariant weight with random gradients, once settled."""
    draw, angles = np.random.default_rng(seed), []
    w, velocity = draw.normal(size=dim), np.zeros(dim)
    w *= 1.5 / np.linalg.norm(w)
    for _ in range(steps):
        g = draw.normal(size=dim)
        g -= w * (g @ w) / (w @ w)
        g *= 1 / (np.linalg.norm(g) * np.linalg.norm(w))  # G = 1
        velocity = MOMENTUM * velocity + g + DECAY * w
        after = w - LR * velocity
        angles.append(math.acos(w @ after / math.sqrt((w @ w) * (after @ after))))
        w = after
    return float(np.sqrt(np.mean(np.square(angles[steps // 2 :]))))


@pytest.fixture(scope="module")
def walks() -> list[float]:
    return [walk(seed) for seed in range(3)]


def verdict(measured: list[float]) -> dyn.Verdict:
    law = theory.equilibrium_angle(LR, DECAY, momentum=MOMENTUM)
    return dyn.check(CLAIM, np.array(measured) / law)


MUTANTS = {
    "exponent": lambda true: lambda lr, decay, **given: true(lr, decay, **given) ** 1.1,
    "momentum left out": lambda true: lambda lr, decay, *, momentum, **given: true(lr, decay, **given),
    "Nesterov's": lambda true: lambda lr, decay, **given: true(lr, decay, **{**given, "nesterov": True}),
    "decoupled": lambda true: lambda lr, decay, **given: true(lr, decay, **{**given, "decoupled": True}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_law_turns_its_claim_and_the_printed_table(monkeypatch, walks, mutant):
    before = verdict(walks)
    assert before.status == "supported", before.to_json()
    monkeypatch.setattr(theory, "equilibrium_angle", MUTANTS[mutant](theory.equilibrium_angle))
    after = verdict(walks)
    assert after.status == "refuted", after.to_json()
    assert str(dyn.table([before])) != str(dyn.table([after]))  # which is what nbval compares


def test_a_repetition_with_other_digits_prints_the_same_table(walks):
    nudged = [w * (1 + 1e-3) for w in walks]
    assert verdict(walks).measured != verdict(nudged).measured
    assert str(dyn.table([verdict(walks)])) == str(dyn.table([verdict(nudged)]))
