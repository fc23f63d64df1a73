"""Chapters: the scale they run at, and how one is executed from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .claims import MIME
from .data.cifar10 import ARCHIVE, FOLDER, present
from .data.load import data_folder
from .errors import DynamicsError, unknown

SCALES = ("fast", "cpu", "full")
WIDGET = "application/vnd.jupyter.widget-view+json"
T = TypeVar("T")


def at_scale(*, fast: T, cpu: T, full: T) -> T:
    """The one of three settings that the environment variable DYNAMICS_SCALE asks for; fast where it is not set.

    fast: the embedded data and narrow nets, minutes on two cores; cpu: real CIFAR-10 and narrow nets; full: the
    published setting, on a GPU. Raises DynamicsError for any other word, and where the setting is a mapping whose
    "data" is "cifar10" and that is not on disk: a chapter starts no download by itself.
    """
    scale = chosen_scale()
    setting = {"fast": fast, "cpu": cpu, "full": full}[scale]
    if isinstance(setting, Mapping) and setting.get("data") == "cifar10" and not cifar10_on_disk():
        raise DynamicsError(
            f"DYNAMICS_SCALE={scale} needs CIFAR-10, which is not on disk: get it with `dynamics data cifar10` "
            f"({ARCHIVE.size / 1e6:.0f} MB) or put {ARCHIVE.name} into {data_folder()}; to stay on the embedded "
            "images (shapes), unset DYNAMICS_SCALE and restart the kernel"
        )
    return setting


def chosen_scale() -> str:
    """The scale that DYNAMICS_SCALE names, fast where it is not set; raises DynamicsError for an unknown one."""
    scale = os.environ.get("DYNAMICS_SCALE", "fast")
    if scale not in SCALES:
        raise unknown("DYNAMICS_SCALE", scale, SCALES)
    return scale


def cifar10_on_disk() -> bool:
    """Whether load_data("cifar10") finds its images, unpacked or in the archive, without a download."""
    folder = data_folder()
    return present(folder / FOLDER) or (folder / ARCHIVE.name).exists()


def find_chapter(name: str, folder: Path) -> Path:
    """The notebook of this number (06) or name; raises DynamicsError with the nearest names."""
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise DynamicsError(
            f"no chapters in {folder}: run this in a checkout of the project, or name a folder of notebooks"
        )
    found = [p for p in notebooks if p.stem == name or p.stem.split("_")[0] == name]
    if not found:
        raise unknown("chapter", name, [p.stem for p in notebooks])
    return found[0]


def execute(notebook: Path, out: Path, *, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Execute a chapter; write its page (html, figures inside) and the executed notebook to `out`; return its verdicts.

    The verdicts are those of the cells tagged `verdicts`. say: is told each code cell as it begins. Raises
    DynamicsError where a cell fails, naming it, and for an unknown DYNAMICS_SCALE before any cell runs.
    """
    chosen_scale()
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    if out.resolve() == notebook.parent.resolve():
        raise DynamicsError(f"{out} is where the chapters are, which this would overwrite: choose another folder")
    try:
        book = nbformat.read(notebook, as_version=4)
        out.mkdir(parents=True, exist_ok=True)
    except nbformat.reader.NotJSONError:
        raise DynamicsError(f"{notebook} is not a notebook: restore it with git checkout") from None
    except OSError as error:
        raise DynamicsError(f"cannot write {out} ({error.strerror}): choose another --out") from None
    code = [i for i, cell in enumerate(book.cells) if cell.cell_type == "code"]
    client = NotebookClient(
        book,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook.parent)}},
        # the kernel's notice about its transport would be taken for the chapter's
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    try:
        with client.setup_kernel():
            for n, index in enumerate(code, start=1):
                lines = book.cells[index].source.splitlines()
                first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
                say(f"  cell {n} of {len(code)}: {first[:80]}")
                client.execute_cell(book.cells[index], index, execution_count=n)
    except CellExecutionError as error:
        if error.ename == "DynamicsError":  # which names its mend
            raise DynamicsError(f"{notebook.name}, code cell {n}: {error.evalue}") from None
        reason = f"{error.ename}: {error.evalue}".splitlines()[0]
        raise DynamicsError(
            f"{notebook.name} failed in code cell {n} ({reason}): open it with `dynamics lab`"
        ) from None
    except (CellTimeoutError, DeadKernelError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DynamicsError(
            f"{notebook.name} stopped in code cell {n} ({reason}): free memory, and run it again"
        ) from None
    finally:
        nbformat.write(book, out / notebook.name)
    for cell in book.cells:  # a finished progress bar is a widget, whose stand-in on a page stays at 0 %
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", ())]
    page, _ = HTMLExporter().from_notebook_node(book)
    (out / notebook.with_suffix(".html").name).write_text(page, encoding="utf-8")
    told = [cell for cell in book.cells if "verdicts" in cell.metadata.get("tags", ())]
    outputs = [o for cell in told for o in cell.get("outputs", ()) if "data" in o]
    found = [o["data"][MIME] for o in outputs if MIME in o["data"]]
    return [v for part in found for v in (json.loads(part) if isinstance(part, str) else part)]
