"""`dynamics packs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import unknown


def packs(
    names: Annotated[list[str] | None, typer.Argument(help="which packs  [default: all]")] = None,
    out: Annotated[Path | None, typer.Option(help="where the files go  [default: notebooks/packs]")] = None,
    runs: Annotated[Path, typer.Option(help="where the runs are kept, so that a stopped recording goes on")] = Path(
        "runs/packs"
    ),
    workers: Annotated[int | None, typer.Option(help="processes of one thread each  [default: one a core]")] = None,
    listed: Annotated[bool, typer.Option("--list", help="only say which there are, and what they hold")] = False,
) -> None:
    """Record the sweeps that chapters draw (run packs), each as one small file."""
    from ..packs import FOLDER, RECORDINGS, record, save_pack

    for name in names or ():
        if name not in RECORDINGS:
            raise unknown("pack", name, RECORDINGS)
    for name in names or RECORDINGS:
        found = RECORDINGS[name]
        count = len(found.recipes) * len(found.seeds)
        what = f"{len(found.recipes)} recipes, {len(found.seeds)} seeds, {count} runs on {found.data}"
        print(f"{name:24} chapter {found.chapter}: {what}", flush=True)
        if not listed:
            path = save_pack(record(name, found, runs=runs, workers=workers), (out or FOLDER) / f"{name}.json")
            print(f"wrote {path} ({path.stat().st_size / 1e3:.0f} kB)")
