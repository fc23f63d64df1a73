"""What `import dynamics` costs, against `import torch` alone, which it contains.

Fresh interpreters in pairs, the first of a pair alternating, each timing its own import statement, so that the start
of Python itself is not in the ratio. Modules that a session may never need must not be loaded by it.
"""

from __future__ import annotations

import subprocess
import sys

from _common import ROOT, as_json, machine, parse, parser, print_header, print_json, print_table, span

from dynamics.stats import ratio_interval

HEAVY = ("xarray", "pandas", "matplotlib", "scipy", "ipywidgets", "tqdm", "IPython", "typer", "pooch", "pyhessian")
TIMED = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"
LOADED = "import sys, {0}; print(*(m for m in {1!r} if m in sys.modules))"


def fresh(code: str) -> str:
    """What a new interpreter prints, started in the checkout."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=15)
    args = parse(arguments, pairs=3)
    if args.pairs < 2:
        arguments.error("an interval needs at least 2 pairs")
    about = machine(args.threads)
    print_header("What importing costs", about, args.quick)

    modules = ("torch", "dynamics")
    seconds: dict[str, list[float]] = {m: [] for m in modules}
    for pair in range(-1, args.pairs):
        for module in modules if pair % 2 == 0 else modules[::-1]:
            took = float(fresh(TIMED.format(module)))
            if pair >= 0:  # the pair before fills the file cache and compiles what is not compiled yet
                seconds[module].append(took)
    by_torch = set(fresh(LOADED.format("torch", HEAVY)).split())
    heavy = [m for m in fresh(LOADED.format("dynamics", HEAVY)).split() if m not in by_torch]

    print_table(
        ("import", "mean (s)", "fastest (s)", "slowest (s)"),
        [(m, *(f"{v:.2f}" for v in (sum(s) / len(s), min(s), max(s)))) for m, s in seconds.items()],
    )
    ratio = ratio_interval(seconds["dynamics"], seconds["torch"])
    print(f"dynamics / torch: {ratio.mean:.3f}, 95 % interval {span(ratio)}, {ratio.n} pairs")
    print(f"heavy modules loaded by import dynamics: {', '.join(heavy) or 'none'}")
    if args.json:
        result = {"import_ratio": ratio.mean, "interval": as_json(ratio), "heavy_modules": heavy, "quick": args.quick}
        print_json(result, about)


if __name__ == "__main__":
    main()
