"""The run folder: a manifest and immutable chunks, each written aside and renamed into place.

run.json            format, recipe, probes, data, environment: all that resuming needs
chunk-00000000.safetensors   the state that the run started from
chunk-00000250.safetensors   the state at step 250, and the readings since the chunk before
chunk-00000780-end.safetensors   the last one, when the run has finished or diverged

Readings and state are one file, so that no kill can leave one without the other, and safetensors runs no code on load.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import DynamicsError
from ..training import State, flatten, tree_map, unflatten

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Series:
    """One group's readings over a stretch of steps: variables [step, ...] and coordinates that do not change."""

    steps: list[int]
    variables: Mapping[str, tuple[tuple[str, ...], torch.Tensor, Mapping[str, Any]]]
    coords: Mapping[str, tuple[tuple[str, ...], list[Any]]]


@dataclass(frozen=True, eq=False)
class Chunk:
    """The state at a step, and what was read at the steps since the chunk before.

    status: "running", "finished" or "diverged"; detail: the step of the first loss that was not finite, if any.
    """

    state: State
    readings: Mapping[str, Series] = field(default_factory=dict)
    status: str = "running"
    detail: int | None = None


def create(folder: Path, manifest: Mapping[str, Any], chunks: Iterable[Chunk]) -> None:
    """Make a run folder, whole or not at all; raises DynamicsError where one exists or the place cannot be written."""
    # os.path answers no, where Path raises, for a name that the system refuses; making it then says so
    if os.path.exists(folder) and (not os.path.isdir(folder) or any(folder.iterdir())):
        raise DynamicsError(
            f"{folder} exists already: choose another folder, or continue that run with "
            f"resume({str(folder)!r}) or dynamics train --resume {folder}"
        )
    with _storage(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            aside.chmod(0o755)
            for chunk in chunks:
                write_chunk(aside, chunk)
            text = json.dumps({"format": FORMAT, **manifest}, indent=1, allow_nan=False)
            _write(aside / "run.json", text.encode())
            os.replace(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _sync(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; raises DynamicsError for what is not one, or is of a newer format."""
    path = folder / "run.json"
    if not os.path.isfile(path):
        raise DynamicsError(f"{folder} is not a run folder (no run.json in it): name one that train(out=...) wrote")
    try:
        manifest = json.loads(path.read_text())
        version = int(manifest["format"])
        missing = {"recipe", "probes", "data", "chunk_steps", "environment"} - set(manifest)
        if version <= FORMAT and missing:
            raise ValueError(f"it lacks {sorted(missing)[0]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DynamicsError(f"{path} cannot be read ({error}): restore it from a copy") from None
    if version > FORMAT:
        raise DynamicsError(
            f"{folder} has format {version}, this version reads up to {FORMAT}: pip install --upgrade training-dynamics"
        )
    return manifest


def chunk_paths(folder: Path) -> list[Path]:
    """Chunk files in the order of their steps; the last one of a run that has ended is marked "end"."""
    found = sorted(folder.glob("chunk-????????*.safetensors"), key=lambda p: (p.stem[:14], len(p.stem)))
    if not found:
        raise DynamicsError(f"{folder} has lost its chunks: restore chunk-*.safetensors from a copy")
    span = read_manifest(folder)["chunk_steps"]
    steps = [int(p.stem[6:14]) for p in found]
    for a, b, path in zip(steps, steps[1:], found[1:], strict=False):
        due = (a // span + 1) * span
        if b > due or (b < due and not path.stem.endswith("-end")):
            raise DynamicsError(f"{folder} has lost chunk-{due:08d}.safetensors: restore it from a copy")
    return found


def write_chunk(folder: Path, chunk: Chunk) -> None:
    """Write a chunk aside, then rename it into place."""
    state = tree_map(lambda t: t.detach().cpu().contiguous(), chunk.state)
    trees: dict[str, Any] = {"params": state.params, "buffers": state.buffers, "carries": state.carries}
    for name in ("opt", "average", "loss_scale"):
        if getattr(state, name) is not None:
            trees[name] = getattr(state, name)
    tensors = {f"state/{k}": t for k, t in flatten(trees).items()}
    groups: dict[str, Any] = {}
    for name, series in chunk.readings.items():
        tensors.update({f"readings/{name}/{v}": t.contiguous() for v, (_, t, _) in series.variables.items()})
        variables = {v: {"dims": dims, "attrs": attrs} for v, (dims, _, attrs) in series.variables.items()}
        groups[name] = {"steps": series.steps, "variables": variables, "coords": series.coords}
    meta = {"step": state.step, "status": chunk.status, "detail": chunk.detail, "has_opt": state.opt is not None,
            "has_average": state.average is not None, "carries": sorted(state.carries), "groups": groups}  # fmt: skip
    # a run may end at the step of its last regular chunk, which it must not replace
    path = folder / f"chunk-{state.step:08d}{'' if chunk.status == 'running' else '-end'}.safetensors"
    with _storage(folder):
        _write(path, save(tensors, {"dynamics": json.dumps(meta)}))
        _sync(folder)


def read_chunk(path: Path, *, readings: bool = True, state: bool = True) -> Chunk:
    """Read a chunk, or a part of it."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["dynamics"])
            keys = list(file.keys())
            tensors = {k: file.get_tensor(k) for k in keys if k.startswith("state/") and state}
            groups = {
                name: Series(
                    group["steps"],
                    {
                        v: (tuple(about["dims"]), file.get_tensor(f"readings/{name}/{v}"), about["attrs"])
                        for v, about in group["variables"].items()
                    },
                    {c: (tuple(dims), values) for c, (dims, values) in group["coords"].items()},
                )
                for name, group in (meta["groups"].items() if readings else ())
            }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DynamicsError(
            f"{path} is damaged ({error}): delete it and every later chunk, and resume the run to make them again"
        ) from None
    tree = unflatten({k.removeprefix("state/"): t for k, t in tensors.items()})
    opt = tree.get("opt", {}) if meta["has_opt"] else None
    # an empty dict leaves no tensors behind, but a probe may remember one
    carries = {k: tree.get("carries", {}).get(k, {}) for k in meta["carries"]}
    average = tree.get("average", {}) if meta.get("has_average") else None
    if average is not None:  # a net without buffers leaves no tensors behind
        average = {"buffers": {}, **average}
    weights = tree.get("params", {}), tree.get("buffers", {})
    point = State(meta["step"], *weights, opt, carries, average, tree.get("loss_scale"))
    return Chunk(point, groups, meta["status"], meta["detail"])


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Turn storage errors into one line that names the mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DynamicsError(
                f"no space left to write {path}: free some, then resume; everything up to the last chunk is kept"
            ) from None
        raise DynamicsError(f"cannot write {path} ({error.strerror}): choose a folder that you may write to") from None


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
