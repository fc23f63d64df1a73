"""Imports point one way, leaves first: what each module may import is this table and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dynamics"
EVERYTHING = "everything"

# Each module beside the ones directly below it; it may import those and whatever lies below them.
BELOW = {
    "errors": (),
    "rng": ("errors",),
    "data": ("errors", "rng"),
    "nets": ("errors", "rng"),
    "optim": ("errors", "rng"),
    "invariance": ("errors", "rng", "nets"),
    "theory": ("errors",),
    "stats": ("errors",),
    "curvature": ("errors", "rng"),
    "training": ("data", "nets", "optim"),
    "recipes": ("training",),
    "probes": ("training", "curvature"),
    "runs": ("training", "probes", "theory", "invariance"),
    "sweeps": ("runs", "stats"),
    "packs": ("slices", "recipes"),
    "slices": ("sweeps",),
    "claims": ("stats",),
    "chapters": ("claims", "data"),
    "verdicts": ("sweeps", "claims"),
    "plots": ("runs",),
    "live": ("runs", "plots"),
    "cli": (EVERYTHING,),
    "__init__": (EVERYTHING,),
    "__main__": ("cli",),
}


def reachable(module: str, below: dict[str, tuple[str, ...]] = BELOW) -> set[str]:
    """Every module that `module` may import, itself included (a package's files may import one another)."""
    if EVERYTHING in below[module]:
        return set(below) - {"__main__"}
    return {module}.union(*(reachable(lower, below) for lower in below[module]))


def imported(source: str, package: str) -> set[str]:
    """The modules of `dynamics` that a source text imports anywhere, inside functions too; `package` is the dotted
    name that its relative imports start from. A name taken from the package itself counts as `__init__`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) + 1 - node.level] if node.level else []
            base = ".".join(start + ([node.module] if node.module else []))
            # `from dynamics import x` may name a module x or a public name of dynamics/__init__
            names = [f"dynamics.{alias.name}" for alias in node.names] if base == "dynamics" else [base]
        else:
            continue
        for name in names:
            root, *rest = name.split(".")
            if root == "dynamics":
                found.add(rest[0] if rest and rest[0] in BELOW else "__init__")
    return found


def sources() -> list[tuple[str, Path]]:
    """(top-level module, file) for every Python file of the package."""
    return sorted((path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize(("module", "path"), sources(), ids=lambda value: getattr(value, "stem", value))
def test_imports_point_down(module: str, path: Path) -> None:
    assert module in BELOW, f"place {module!r} in the table of tests/test_imports.py: which modules lie below it?"
    package = ".".join(["dynamics", *path.relative_to(PACKAGE).parts[:-1]])
    upward = imported(path.read_text(encoding="utf-8"), package) - reachable(module)
    assert not upward, f"{path.relative_to(PACKAGE.parent)} imports {sorted(upward)}, which do not lie below {module!r}"


def test_the_table_has_no_cycle() -> None:
    for module, below in BELOW.items():
        for lower in set(below) - {EVERYTHING}:
            assert module not in reachable(lower), f"{module} and {lower} lie below each other"


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import torch, os.path", "dynamics", set()),
        ("import dynamics.runs as r", "dynamics", {"runs"}),
        ("from dynamics.probes.weights import norms", "dynamics", {"probes"}),
        ("from dynamics import runs, train", "dynamics", {"runs", "__init__"}),
        ("from . import stats", "dynamics", {"stats"}),
        ("from .training import steps", "dynamics", {"training"}),
        ("from ..training import steps", "dynamics.probes", {"training"}),
        ("from .weights import norms", "dynamics.probes", {"probes"}),
        ("from .. import plots", "dynamics.probes", {"plots"}),
        ("def f():\n    from dynamics.cli import main", "dynamics", {"cli"}),
        ("from dynamics.nonsense import x", "dynamics", {"__init__"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, package: str, expected: set[str]) -> None:
    assert imported(source, package) == expected


def test_an_upward_import_would_be_seen() -> None:
    assert "runs" not in reachable("training")
    assert "training" in reachable("runs")
    assert "__init__" not in reachable("probes"), "the package's public names lie above every module"
