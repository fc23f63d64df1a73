"""What one job of a sweep does, in whatever process it finds itself: train or resume one run, through the store.

A job is a value that can be pickled, and its function is this module's, so that any executor can carry it. Nothing
comes from the parent's memory: data are loaded by name, or mapped from files in the store.
"""

from __future__ import annotations

import json
import shutil
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import Split, load_data
from ..errors import DynamicsError
from ..probes import Probe
from ..runs import resume, train
from ..training import Recipe
from .lock import held
from .store import reason_file, status_of

ONE_AT_A_TIME = threading.Lock()
"""Threads and random numbers of torch are a process's own, so a process that is given several jobs does one by one."""


@dataclass(frozen=True)
class Source:
    """Where a process finds a split: `load_data(name)`'s, or files that can be mapped. Equal sources are equal."""

    fingerprint: str
    device: str
    name: str | None = None
    part: str = "train"
    files: str | None = None


@dataclass(frozen=True)
class Job:
    """One run of a sweep: recipe (with its seed), data, probes, and the run folder.

    threads: torch's, None for its own choice. call: of one call of sweep, since dask takes equal jobs for one.
    """

    recipe: Recipe
    folder: str
    train: Source
    valid: Source | None
    probes: Mapping[str, Probe]
    threads: int | None
    call: str = ""


def run_job(job: Job) -> str:
    """Train a job's run, or go on with it, and return its status; a failure is kept in the store with its reason.

    A run that has ended is left as it is. Another process that works on the same run is waited for.
    """
    folder = Path(job.folder)
    with ONE_AT_A_TIME, _threads(job.threads), held(_lock_file(folder), f"the run {folder}", wait=True):
        status = status_of(folder)
        if status in ("missing", "running"):
            try:
                _train(job, folder)
            except Exception as error:
                keep_reason(folder, error)
            status = status_of(folder)
    return status


def _train(job: Job, folder: Path) -> None:
    for aside in folder.parent.glob(f".{folder.name}-*"):  # what a kill in the middle of making the folder left
        shutil.rmtree(aside, ignore_errors=True)
    data, valid = split_of(job.train), split_of(job.valid) if job.valid else None
    if folder.exists():
        resume(folder, data, valid, probes=job.probes, progress=False)
    else:
        train(job.recipe, data, valid, probes=job.probes, out=folder, progress=False)


def keep_reason(folder: Path, error: BaseException | str) -> None:
    """Write why a run failed: the error in a line, and below it where it came from."""
    if isinstance(error, str):
        text = f"{error}\n"
    else:
        line = str(error).partition("\n")[0]
        kind = "" if isinstance(error, DynamicsError) else f"{type(error).__name__}: "
        text = f"{kind}{line}\n\n{''.join(traceback.format_exception(error))}"
    path = reason_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(text)
    aside.replace(path)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if n is not None and n != before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if n is not None and n != before:
            torch.set_num_threads(before)


def source_of(split: Split, out: Path, part: str) -> Source:
    """Write a split's arrays into the store, for other processes to map, and say where they are."""
    fingerprint = split.fingerprint()
    folder = out / ".data" / fingerprint
    if not (folder / "split.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", split.images.cpu().numpy())
        np.save(folder / "labels.npy", split.labels.cpu().numpy())
        about = {"classes": split.classes, "mean": split.mean, "std": split.std, "name": split.name}
        # last, so that a folder with it is whole
        (folder / ".split.json").write_text(json.dumps(about))
        (folder / ".split.json").replace(folder / "split.json")
    return Source(fingerprint, str(split.device), part=part, files=str(folder))


@lru_cache(maxsize=4)
def split_of(source: Source) -> Split:
    """The split of a source, once a process."""
    if source.files is None:
        data = load_data(source.name, device=source.device, progress=False)
        split = data.train if source.part == "train" else data.test
        if split.fingerprint() != source.fingerprint:
            raise DynamicsError(
                f"the {source.part} images of {source.name!r} are not the same on this machine as where the sweep was "
                "begun: pass them as a Split"
            )
        return split
    folder = Path(source.files)
    try:
        about = json.loads((folder / "split.json").read_text())
        # copy on write: nothing is read before it is needed, and processes of one machine share it
        images, labels = (np.load(folder / f"{k}.npy", mmap_mode="c") for k in ("images", "labels"))
    except (OSError, ValueError) as error:
        raise DynamicsError(
            f"the sweep's data cannot be read in {folder} ({error}): workers must see the sweep's folder, by this path"
        ) from None
    split = Split(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        tuple(about["classes"]),
        tuple(about["mean"]),
        tuple(about["std"]),
        about["name"],
    )
    return split.to(source.device)


def identity_of(split: Split | None) -> dict[str, Any] | None:
    return None if split is None else {"name": split.name, "n": len(split), "fingerprint": split.fingerprint()}
