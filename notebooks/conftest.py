"""How nbval compares a chapter with its committed output: what is left out, and which numbers are noise."""

from __future__ import annotations

import os
from pathlib import Path

from dynamics.claims import MIME
from dynamics.sweeps.sweep import usable_cores

# Warnings and console progress bars go to stderr; a verdict's html carries the measured digits, its text/plain only its
# status and bounds, and the same digits are in a table's json. nbval itself leaves out images and widgets.
IGNORED = ("stderr", "text/html", MIME)

# Kernels of pytest-xdist's workers share the cores: more threads than cores wait for one another and cost double.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))


def pytest_collectstart(collector) -> None:
    """Called for every collected file; nbval's notebooks alone have a `skip_compare`."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += IGNORED
        # nbval opens the name as it stands, so a relative one would work from the repository's root alone
        collector.config.option.nbval_sanitize_with = str(Path(__file__).with_name("sanitize.cfg"))
