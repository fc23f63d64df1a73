"""What the benchmarks share: arguments, the line that says where the figures were measured, and tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamics import Split
    from dynamics.stats import Interval

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, whatever is installed


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Arguments of every benchmark: --quick, --threads and --json."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a trial of the script: too few samples for figures")
    made.add_argument("--threads", type=int, default=None, help="torch's threads (default: torch's own choice)")
    made.add_argument("--json", action="store_true", help="end with one line of JSON")
    return made


def parse(made: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Read the arguments; under --quick the defaults are these."""
    if made.parse_args().quick:
        made.set_defaults(**quick)
    return made.parse_args()


def machine(threads: int | None = None) -> dict[str, Any]:
    """Hardware and versions, to stand beside every number; sets torch's threads where a number is given."""
    import numpy
    import torch

    from dynamics.training import resolve_precision

    if threads is not None:
        torch.set_num_threads(threads)
    native = resolve_precision("auto", torch.device("cpu")) == "bf16"
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": "native" if native else "emulated",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
    }


def print_header(title: str, about: Mapping[str, Any], quick: bool = False) -> None:
    """The title, and one line of hardware and versions."""
    print(title)
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, bf16 {about['bf16']}; "
        f"Python {about['python']}, torch {about['torch']}, numpy {about['numpy']}; {about['system']}"
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.7:
        print(f"load average {load:.1f}: something else is running, and timings mean little")
    if quick:
        print("--quick: too few samples for figures")
    print(flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns of text: the first to the left, the others to the right."""
    cells = [list(columns), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
    print(flush=True)


def print_json(result: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    print(json.dumps({**result, "machine": dict(about)}, allow_nan=False))


def span(interval: Interval, digits: int = 3) -> str:
    """An interval as text."""
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def as_json(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def random_split(n: int, seed: int = 0) -> Split:
    """Random images and labels: what a step costs does not depend on what its pixels show."""
    import torch

    from dynamics import Split

    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 32, 32, 3), generator=draws, dtype=torch.uint8)
    labels = torch.randint(10, (n,), generator=draws)
    return Split.from_arrays(images, labels, classes=tuple(map(str, range(10))), name="random")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
