"""The folder of a sweep: what it is, its runs, and the reasons of those that failed.

sweep.json                 format, versions, recipes by name, seeds, data, probes, threads: what may go on here
NAME/seed-S/               a run folder, as train(out=...) writes it
NAME/seed-S.failed.txt     why a run failed; it is not tried again unless that is asked for
NAME/seed-S.lock, .lock    who works there now
.data/                     arrays for the processes that train, while the sweep goes on
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DynamicsError, unknown
from ..runs import Run, load_run
from ..runs.store import chunk_paths, read_chunk
from ..training import Recipe

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
STATUSES = ("missing", "running", "finished", "diverged", "failed")


def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / name / f"seed-{seed}"


def reason_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed.txt")


def status_of(folder: Path) -> str:
    """One of `STATUSES`: missing (not begun), running (begun and not ended), finished, diverged or failed."""
    if reason_file(folder).exists():
        return "failed"
    if not (folder / "run.json").exists():
        return "missing"
    # a run that has ended says so in the name of its last chunk, so that the others need not be read
    ended = next(iter(folder.glob("chunk-*-end.safetensors")), None)
    return "running" if ended is None else read_chunk(ended, readings=False, state=False).status


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, read from its folder when asked for: sweep["lr=0.1", 3] is a Run.

    names: the recipes' names; seeds: of every recipe.
    """

    folder: Path
    names: tuple[str, ...]
    seeds: tuple[int, ...]

    def __getitem__(self, key: tuple[str, int]) -> Run:
        name, seed = self._checked(key)
        folder = run_folder(self.folder, name, seed)
        status = status_of(folder)
        if status == "failed" and not folder.exists():
            raise DynamicsError(
                f"the run {name}, seed {seed} failed ({self.reason(name, seed)}): sweep again with retry=True"
            )
        if status == "missing":
            raise DynamicsError(f"the run {name}, seed {seed} has not begun: sweep again, and it will")
        return load_run(folder)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((name, seed) for name in self.names for seed in self.seeds)

    def __len__(self) -> int:
        return len(self.names) * len(self.seeds)

    def runs(self, name: str) -> dict[int, Run]:
        """The runs of one recipe that have finished, by seed."""
        self._checked((name, self.seeds[0]))
        folders = {seed: run_folder(self.folder, name, seed) for seed in self.seeds}
        return {seed: load_run(f) for seed, f in folders.items() if status_of(f) == "finished"}

    @property
    def statuses(self) -> dict[tuple[str, int], str]:
        """By name and seed: finished, diverged (which is a result), failed, running (unfinished) or missing."""
        return {key: status_of(run_folder(self.folder, *key)) for key in self}

    @property
    def reasons(self) -> dict[tuple[str, int], str]:
        """Why runs failed, in full, by name and seed."""
        files = {key: reason_file(run_folder(self.folder, *key)) for key in self}
        return {key: path.read_text() for key, path in files.items() if path.exists()}

    def reason(self, name: str, seed: int) -> str:
        """Why one run failed, in a line; empty if it did not."""
        path = reason_file(run_folder(self.folder, *self._checked((name, seed))))
        return path.read_text().partition("\n")[0] if path.exists() else ""

    def table(self) -> xr.Dataset:
        """The end of every run by recipe and seed; `.to_dataframe()` makes a pandas table of it.

        Variables [recipe, seed]: `accuracy` (share) and `loss` (nat) on the validation split, nan where there is none
        and for runs that have not finished; `average_accuracy` and `average_loss` where a recipe keeps an average of
        its weights; `status` and `reason`.
        """
        import xarray as xr

        shape = len(self.names), len(self.seeds)
        numbers = {k: np.full(shape, np.nan) for k in ("accuracy", "loss", "average_accuracy", "average_loss")}
        texts = {k: np.full(shape, "", dtype=object) for k in ("status", "reason")}
        for at, (name, seed) in zip(np.ndindex(shape), self, strict=True):
            folder = run_folder(self.folder, name, seed)
            texts["status"][at], texts["reason"][at] = status_of(folder), self.reason(name, seed)
            if texts["status"][at] == "finished":
                for key, value in _scores(folder).items():
                    numbers[key][at] = value
        used = {k: v for k, v in numbers.items() if k in ("accuracy", "loss") or not np.isnan(v).all()}
        units = {k: {"units": "nat" if k.endswith("loss") else "1"} for k in used}
        dims = ("recipe", "seed")
        return xr.Dataset(
            {**{k: (dims, v, units[k]) for k, v in used.items()}, **{k: (dims, v) for k, v in texts.items()}},
            {"recipe": list(self.names), "seed": list(self.seeds)},
        )

    def __repr__(self) -> str:
        found = list(self.statuses.values())
        counts = ", ".join(f"{found.count(s)} {s}" for s in STATUSES if s in found)
        return f"<Sweep of {len(self.names)} recipes and {len(self.seeds)} seeds in {self.folder}: {counts}>"

    def _checked(self, key: tuple[str, int]) -> tuple[str, int]:
        if not (isinstance(key, tuple) and len(key) == 2):
            raise DynamicsError(f"a run of a sweep has a name and a seed: sweep[{self.names[0]!r}, {self.seeds[0]}]")
        name, seed = key
        if name not in self.names:
            raise unknown("recipe of this sweep", name, self.names)
        if seed not in self.seeds:
            raise DynamicsError(f"this sweep has no seed {seed!r}: its seeds are {', '.join(map(str, self.seeds))}")
        return name, seed


def load_sweep(folder: str | Path) -> Sweep:
    """The sweep in a folder, ended or not; raises DynamicsError for what is not one, or of another version."""
    folder = Path(folder)
    manifest = read_sweep_manifest(folder)
    if manifest is None:
        raise DynamicsError(f"{folder} is not a sweep (no sweep.json in it): name one that sweep(out=...) wrote")
    return Sweep(folder, tuple(manifest["recipes"]), tuple(manifest["seeds"]))


def read_sweep_manifest(folder: Path) -> dict[str, Any] | None:
    """What sweep.json says, None where there is none; raises DynamicsError for one of another version."""
    path = folder / "sweep.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        written = int(found["format"])
        missing = {"dynamics", "recipes", "seeds", "data", "probes", "threads"} - set(found)
        if written <= FORMAT and missing:
            raise ValueError(f"it lacks {sorted(missing)[0]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DynamicsError(f"{path} cannot be read ({error}): restore it from a copy") from None
    if written != FORMAT:
        raise DynamicsError(
            f"{folder} was written in format {written}, and this version reads {FORMAT}: use the version that wrote it "
            f"(training-dynamics {found.get('dynamics')}), or sweep into a new folder"
        )
    return found


def agreed_manifest(folder: Path, wanted: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
    """The manifest of a store after this sweep has begun in it, from what it says now and what is wanted.

    A store may grow: by recipes beside those that it has, and by seeds. Raises DynamicsError where it belongs to
    another version, or to another sweep.
    """
    found = read_sweep_manifest(folder)
    if found is None:
        if folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
            raise DynamicsError(f"{folder} has other things in it and is not a sweep: choose a new folder")
        return dict(wanted)
    if found["dynamics"] != wanted["dynamics"]:
        raise DynamicsError(
            f"{folder} was written by training-dynamics {found['dynamics']}, and this is {wanted['dynamics']}: "
            "sweep into a new folder, or use that version"
        )
    another = f"{folder} is the store of another sweep"
    for kind in ("train", "valid"):
        then, now = found["data"][kind], wanted["data"][kind]
        if then != now:
            told = ["no data" if d is None else f"{d['n']} images of {d['name']}" for d in (then, now)]
            same = " (the same in name, not in content)" if told[0] == told[1] else ""
            raise DynamicsError(f"{another}, whose {kind} data are {told[0]} and not {told[1]}{same}: choose another")
    if found["probes"] != wanted["probes"]:
        told = ", ".join(found["probes"]) or "none"
        raise DynamicsError(f"{another}, with other probes ({told}, or their schedules): choose another folder")
    shared = [name for name in wanted["recipes"] if name in found["recipes"]]
    if not shared:
        raise DynamicsError(f"{another}, of {', '.join(found['recipes'])}: choose another folder")
    for name in shared:
        if found["recipes"][name] != wanted["recipes"][name]:
            what = first_difference(found["recipes"][name], wanted["recipes"][name])
            raise DynamicsError(f"{another}, whose recipe {name!r} has {what}: choose another folder or name")
    if None not in (threads, found["threads"]) and found["threads"] != threads:
        raise DynamicsError(
            f"the runs in {folder} took {found['threads']} threads each, not {threads}: leave threads= out, or choose "
            "another folder"
        )
    recipes = {**found["recipes"], **wanted["recipes"]}
    try:
        alike = {Recipe.from_json(r) for r in recipes.values()}
    except DynamicsError:  # it holds parts that are not loaded here; then they are not among ours either
        alike = set(recipes)
    if len(alike) < len(recipes):
        raise DynamicsError(f"{folder} has one of these recipes under another name: use the name that it has there")
    return {**found, "recipes": recipes, "seeds": list(dict.fromkeys([*found["seeds"], *wanted["seeds"]]))}


def new_manifest(
    recipes: Mapping[str, Recipe],
    seeds: tuple[int, ...],
    data: Mapping[str, Any],
    probes: Mapping[str, Any],
    threads: int | None,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dynamics": _version(),
        "torch": torch.__version__,
        "recipes": {name: r.to_json() for name, r in recipes.items()},
        "seeds": list(seeds),
        "data": dict(data),
        "probes": {name: p.to_json() for name, p in probes.items()},
        "threads": threads,
    }


def write_sweep_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write sweep.json aside and rename it, where it is not there already."""
    text = json.dumps(manifest, indent=1, allow_nan=False)
    path, aside = folder / "sweep.json", folder / ".sweep.json"
    if path.exists() and path.read_text() == text:
        return
    with open(aside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def first_difference(a: Any, b: Any, path: str = "") -> str:
    """Where two JSON values differ first: "batch_size 64 and not 128"."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if a.get(key) != b.get(key):
                inner = "" if key == "arguments" else key
                return first_difference(a.get(key), b.get(key), f"{path}.{inner}" if path and inner else path or inner)
    return f"{path} {json.dumps(a)} and not {json.dumps(b)}"


def _scores(folder: Path) -> dict[str, float]:
    """The last validation of a run that has finished, which its last chunk has."""
    series = read_chunk(chunk_paths(folder)[-1], state=False).readings.get("valid")
    return {} if series is None else {k: float(v[1][-1]) for k, v in series.variables.items()}


def _version() -> str | None:
    try:
        return version("training-dynamics")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
