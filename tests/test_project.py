"""The project's own files agree with one another, and nothing of one machine or of one afternoon is in them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge says something else than PyPI


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def direct_requirements() -> dict[str, Requirement]:
    """Canonical name -> requirement, the extras' too, without the package itself."""
    texts = project()["dependencies"] + [r for extra in project()["optional-dependencies"].values() for r in extra]
    requirements = {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}
    requirements.pop(canonicalize_name(project()["name"]), None)
    return requirements


def constraints() -> dict[str, str]:
    """Canonical name -> version of every line of constraints.txt."""
    lines = (line.split("#")[0].strip() for line in read("constraints.txt").splitlines())
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), "every line of constraints.txt is name==version"
    return {canonicalize_name(name): version for name, version in pairs}


def conda_packages() -> dict[str, str]:
    """Name -> version of environment.yml, its pip section included, without python, pip and the package itself."""
    entries = yaml.safe_load(read("environment.yml"))["dependencies"]
    pip = [name for entry in entries if isinstance(entry, dict) for name in entry["pip"]]
    assert "-e ." in pip, "the chapters' kernel starts in notebooks/, so the package has to be installed"
    conda = [entry for entry in entries if isinstance(entry, str) and not re.match(r"(python|pip)\b(?!-)", entry)]
    pairs = [re.split("==?", entry) for entry in conda + [entry for entry in pip if entry != "-e ."]]
    return dict(pairs)


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    pins = constraints()
    for name, requirement in direct_requirements().items():
        assert name in pins, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not admit the pin {pins[name]}"


def test_constraints_hold_on_every_machine() -> None:
    versions = constraints().values()
    assert not [v for v in versions if "+" in v or "/" in v], "no local versions (+cpu) and no paths in constraints.txt"


def test_conda_and_pip_install_the_same_versions() -> None:
    pins = constraints()
    expected = {CONDA_NAMES.get(name, name): pins[name] for name in direct_requirements()}
    assert conda_packages() == expected


def test_conda_takes_the_oldest_python_that_we_support() -> None:
    entries = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert f"python={project()['requires-python'].removeprefix('>=')}" in entries


def test_pre_commit_runs_the_pinned_ruff() -> None:
    (ruff,) = (repo for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] if "ruff" in repo["repo"])
    assert ruff["rev"] == f"v{constraints()['ruff']}"


def test_the_citation_carries_the_version() -> None:
    assert yaml.safe_load(read("CITATION.cff"))["version"] == project()["version"]


def test_every_import_of_the_package_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]}
    declared |= {"ipython", "nbformat", "nbclient", "traitlets"}  # parts of jupyterlab, ipywidgets and nbconvert
    for path in (ROOT / "dynamics").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (dotted.split(".")[0] for dotted in names):
                known = name == "dynamics" or name in sys.stdlib_module_names or canonicalize_name(name) in declared
                assert known, f"{path.relative_to(ROOT)} imports {name}: add it to pyproject.toml's dependencies"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.MULTILINE)
    shown = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in shown.stdout.splitlines()] == phony.split()


def test_ci_runs_what_the_readme_says() -> None:
    assert "make test" in read(".ci/run")
    assert os.access(ROOT / ".ci" / "run", os.X_OK), "git must keep .ci/run executable"


# --- what is in the repository ---------------------------------------------------------------------------------------


def repository_files() -> list[Path]:
    """Tracked files, and new ones that git does not ignore; skips where this is not a git checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def unrun(notebook: nbformat.NotebookNode) -> list[str]:
    """What shows that a notebook was committed without having been run from top to bottom."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    faults = [f"cell {i} has no execution count" for i, cell in enumerate(code) if cell.execution_count is None]
    faults += [
        f"cell {i} ended in {output.ename}"
        for i, cell in enumerate(code)
        for output in cell.outputs
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", [])
    ]
    counts = [cell.execution_count for cell in code if cell.execution_count is not None]
    if counts != list(range(1, len(counts) + 1)):
        faults.append(f"cells ran out of order: {counts}")
    if not any(cell.outputs for cell in code):
        faults.append("no cell has an output")
    return faults


def test_every_notebook_carries_its_outputs() -> None:
    """nbval compares outputs with committed ones: a notebook stripped of them passes without being tested."""
    for path in repository_files():
        if path.suffix == ".ipynb":
            faults = unrun(nbformat.read(path, as_version=4))
            assert not faults, f"{path.relative_to(ROOT)}: {'; '.join(faults)}; run it from top to bottom and save it"


def test_a_stripped_notebook_would_be_seen() -> None:
    cell = nbformat.v4.new_code_cell("print(1)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text="1\n")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("one"), cell])
    assert unrun(notebook) == []
    cell.execution_count = 3
    assert unrun(notebook) == ["cells ran out of order: [3]"]
    cell.execution_count, cell.outputs = None, []
    assert unrun(notebook) == ["cell 0 has no execution count", "no cell has an output"]


# A path in a home folder, or a temporary file of a cell, at the start of a word. The lookbehind leaves out web pages
# and the base64 of figures; \n and \t are the escapes of the JSON in a notebook.
MACHINE_PATH = re.compile(
    rb"""(?:(?<![\w+/=.~-])|(?<=\\[nt]))/(?:(?:home|Users)/[\w.-]+/|(?:root)/|(?:private/)?tmp/ipykernel)"""
    rb"""|\b[A-Z]:\\+Users\\+[\w.-]+"""
)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = {
        str(path.relative_to(ROOT)): match.group().decode(errors="replace")
        for path in repository_files()
        if (match := MACHINE_PATH.search(path.read_bytes()))
    }
    assert not found, f"paths of one machine: {found}"


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ('open("/{}/ada/data")', True),
        ("in /{}/ada/data", True),
        (json.dumps("error\n/{}/ada/x.py:3"), True),
        ("https://example.org/{}/ada/data", False),
        ("aGVsbG8/{}/ada/aGVsbG8", False),
        ("~/{}/ada/", False),
    ],
)
@pytest.mark.parametrize("folder", ["home", "Users", "root"])
def test_a_path_of_somebodys_machine_would_be_seen(text: str, hit: bool, folder: str) -> None:
    assert bool(MACHINE_PATH.search(text.format(folder).encode())) is hit


# --- how the chapters are compared ------------------------------------------------------------------------------------

CELLS = {
    "same": "print('norm 1.25')",
    "changed": "print('norm 1.25')",
    "stderr": "import sys\nprint('a warning', file=sys.stderr)",
    "html": "from IPython.display import HTML\nHTML('<b>1.2345</b>')",
    "noise": "print('trained in 12.5 s at 3,400 images/s')\nobject()",
    "bar": "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    pass",
    "figure": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
}


def test_the_chapters_comparison_sees_what_matters_and_nothing_else(tmp_path: Path) -> None:
    """A notebook is executed, every output but the first is falsified, and nbval runs over it with our settings."""
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    _, changed, stderr, html, noise, _, figure = notebook.cells
    changed.outputs[0].text = "norm 1.26\n"
    stderr.outputs[0].text = "another warning\n"
    html.outputs[0].data["text/html"] = "<b>9.8765</b>"
    noise.outputs[0].text = "trained in 2 minutes at 12 images/s\n"
    figure.outputs[0].data["image/png"] = "AAAA"
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    for name in ("conftest.py", "sanitize.cfg"):
        shutil.copy(ROOT / "notebooks" / name, tmp_path)

    options = tomllib.loads(read("pyproject.toml"))["tool"]["pytest"]["ini_options"]["addopts"]
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = " + " ".join(options), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "chapter.ipynb"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"Cell \d+ (PASSED|FAILED|ERROR|SKIPPED)", result.stdout)
    assert dict(zip(CELLS, verdicts, strict=True)) == dict.fromkeys(CELLS, "PASSED") | {"changed": "FAILED"}, (
        result.stdout
    )
