"""Verdicts that lie elsewhere: in the outcome of tests, and in the chapters' outputs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..claims import MIME, Claim, Verdict, check
from ..claims.combine import claim_of
from ..claims.entry import Entry
from ..claims.sources import ROOT
from ..errors import DynamicsError

Outcomes = Mapping[str, Sequence[str]]
"""By a test's name, "tests/FILE.py::NAME": passed, failed or skipped, of each of its parameters."""


def tests_of(entry: Entry) -> tuple[str, ...]:
    """The tests that an entry of the ledger names."""
    return tuple(where for where in entry.tested if where.startswith("tests/"))


def run_tests(names: Iterable[str], *, root: Path | None = None, say: Callable[[str], None] = print) -> Outcomes:
    """Run tests of the checkout in one call of pytest, which prints its progress.

    Raises DynamicsError where there is no pytest, or where it cannot run one of them.
    """
    root, names = root or ROOT, list(dict.fromkeys(names))
    if importlib.util.find_spec("pytest") is None:
        raise DynamicsError("there is no pytest, which judges exact claims: pip install -e '.[test]'")
    say(f"running {len(names)} tests ...")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = (f"--rootdir={root}", "-o", "addopts=", "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
        command = [sys.executable, "-m", "pytest", *options, *names]
        # the package that runs is the one to test, wherever it was installed from
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        ended = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": path})
        if ended.returncode not in (0, 1) or not report.exists():
            raise DynamicsError(
                f"pytest ended with code {ended.returncode} and judged nothing: mend what it says above"
            )
        cases = list(ElementTree.parse(report).iter("testcase"))
    found: dict[str, list[str]] = {name: [] for name in names}
    for case in cases:
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').split('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found.setdefault(name, []).append(outcome)
    return found


def judged_by_tests(entry: Entry, outcomes: Outcomes) -> Verdict:
    """Supported where every test that the entry names passed, refuted where one failed; n is their number.

    A test that was skipped leaves the claim inconclusive. Raises DynamicsError where one was not run.
    """
    names = tests_of(entry)
    if missing := [name for name in names if not outcomes.get(name)]:
        raise DynamicsError(f"{missing[0]} did not run: name a test that does in the ledger's entry of {entry.id}")
    all_of_them = [outcome for name in names for outcome in outcomes[name]]
    claim = Claim(entry.id, "tests passed, of those that state it", entry.source, 1, 1)
    verdict = check(claim, [float(outcome != "failed") for outcome in all_of_them], exact=True)
    if verdict.status == "supported" and "skipped" in all_of_them:
        return replace(verdict, status="inconclusive")
    return verdict


def judged_by_chapter(notebook: Path) -> dict[str, list[Verdict]]:
    """The verdicts in the outputs of a chapter's cells tagged `verdicts`, by the claim that their ids belong to.

    Ids that belong to no claim are left out, as is an output without verdicts. Raises DynamicsError for a file that
    is no notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "verdicts" in c.get("metadata", {}).get("tags", ())]
        outputs = [o.get("data", {}).get(MIME, []) for c in tagged for o in c.get("outputs", ())]
        flat = [one for output in outputs for one in (json.loads(output) if isinstance(output, str) else output)]
        verdicts = [_verdict(one) for one in flat]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynamicsError(f"{notebook} cannot be read as a chapter ({error}): restore it from git") from None
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if (id := claim_of(verdict.claim.id)) is not None and verdict.status != "untested":
            found.setdefault(id, []).append(verdict)
    return found


def _verdict(one: Mapping[str, Any]) -> Verdict:
    low = -math.inf if one["low"] is None else one["low"]
    high = math.inf if one["high"] is None else one["high"]
    ends = (one["interval_low"], one["interval_high"])
    claim = Claim(one["id"], one["text"], one["source"], low, high, one["units"])
    return Verdict(claim, one["status"], one["measured"], None if None in ends else ends, one["n"], one["level"])
