"""Train and record: drive the training loop, call the probes that are due, and keep chunks."""

from __future__ import annotations

import math
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..data import Split, batches_per_epoch, load_data
from ..errors import DynamicsError
from ..probes import Probe
from ..probes.base import probe_from_json
from ..training import (
    Recipe,
    Snapshot,
    State,
    averaged,
    barrier,
    evaluate,
    first_process_first,
    initial_state,
    resolve_precision,
    steps,
    tree_map,
    world,
)
from .budget import Ledger
from .measure import Guard, Logs, measure
from .run import Run, assemble, load_run
from .store import Chunk, Series, chunk_paths, create, read_chunk, read_manifest, write_chunk

RESERVED = ("train", "hyperparameters", "valid", "ledger")
EPOCHS = {"units": "epoch"}
AT_THE_END = frozenset(("params", "buffers", "opt"))
MIN_CHUNK_STEPS = 250


def train(
    recipe: Recipe,
    train: Split,
    valid: Split | None = None,
    *,
    probes: Mapping[str, Probe] | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    start: State | None = None,
    chunk_steps: int | None = None,
    budget: float | None = None,
    progress: bool = True,
) -> Run:
    """Train a recipe, call the probes when they are due, and return what was recorded.

    Every step records the loss and the hyperparameters in force; every whole epoch, and the end, loss and accuracy on
    `valid`. out: a new folder, written in chunks of `chunk_steps` updates (by default whole epochs of at least 250
    updates together), from which `resume` goes on after any interruption to a bit-identical end. seed:
    replaces the recipe's. start: any State, to fork a run or to begin from other weights. budget: the share of training
    time that recording may take, such as 0.05: readings of every() are thinned to stay inside it, and run["ledger"]
    says what each probe cost and how often it was due and taken. A loss that is not finite ends the run early, kept and
    marked as diverged. Under fp16 run["train"] also says the loss scale and which steps were skipped, at which probes
    of gradients and updates are not due. Where torch.distributed is initialised every process measures and returns the
    same run, and rank 0 alone writes and shows progress. Raises DynamicsError for bad input before any training, and
    for a probe that writes to what it reads.
    """
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    probes = dict(probes or {})
    check_probes(probes)
    if valid is not None and (valid.classes, valid.mean, valid.std) != (train.classes, train.mean, train.std):
        raise DynamicsError(
            "valid has other classes or normalisation than train: make it with Split.from_arrays(..., like=train)"
        )
    per_epoch = batches_per_epoch(train, recipe.batch_size)
    train.padded(recipe.augment.pad)
    chunk_steps = per_epoch * math.ceil(MIN_CHUNK_STEPS / per_epoch) if chunk_steps is None else chunk_steps
    if not isinstance(chunk_steps, int) or chunk_steps < 1:
        raise DynamicsError(f"chunk_steps must be a whole number of at least 1, got {chunk_steps!r}")
    ledger = Ledger(budget, probes)
    start = (start or initial_state(recipe, train)).clone()
    # a fork's probes are its own, and so is what they remember
    start = replace(start, carries={k: v for k, v in start.carries.items() if k in probes})
    if start.step > recipe.steps_in(train):
        raise DynamicsError(
            f"the start is at step {start.step}, but the recipe ends at {recipe.steps_in(train)}: raise its epochs"
        )
    manifest = {
        "recipe": recipe.to_json(),
        "probes": {k: p.to_json() for k, p in probes.items()},
        "data": {"train": _identity(train), "valid": _identity(valid) if valid else None},
        "chunk_steps": chunk_steps,
        "budget": budget,
        "environment": environment(recipe, train.device),
    }
    snaps = steps(recipe, train, start)  # refuses what does not fit before a folder is made
    chunks = _chunks(snaps, recipe, train, valid, ledger, start, chunk_steps, progress)
    if out is None:
        return assemble({"format": 0, **manifest}, [Chunk(start), *chunks], None)
    if not world().rank:
        create(Path(out), manifest, [Chunk(start)])
    return _written(Path(out), chunks)


def resume(
    folder: str | Path,
    train: Split | None = None,
    valid: Split | None = None,
    *,
    probes: Mapping[str, Probe] | None = None,
    progress: bool = True,
) -> Run:
    """Go on with a run folder where it stopped; a run that has ended is returned as it is.

    train, valid: only for data that `load_data` cannot find again by name. probes: only those that are not the
    package's own. Raises DynamicsError where data or probes are not those that the run began with.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    last = read_chunk(chunk_paths(folder)[-1], readings=False)
    barrier()  # no process writes before all have read where the run stopped
    if last.status != "running":
        return load_run(folder)
    if manifest["recipe"] is None:
        raise DynamicsError(f"{folder} was recorded by watch: it goes on in its own loop, with a new folder")
    recipe = Recipe.from_json(manifest["recipe"])
    given = dict(probes or {})
    named = {k: given.pop(k) if k in given else probe_from_json(k, v) for k, v in manifest["probes"].items()}
    for name, probe in named.items():
        if _schedule(probe.to_json()) != _schedule(manifest["probes"][name]):
            raise DynamicsError(
                f"the probe {name!r} began with another schedule: resume it with the same every() or at()"
            )
    if given:
        raise DynamicsError(f"this run has no probe {next(iter(given))!r}: its probes are {', '.join(named) or 'none'}")
    with first_process_first():  # it may have to make the data
        train, valid = _same_data(manifest["data"], train, valid)
        for aside in folder.glob(".chunk-*"):  # what a kill in the middle of writing left
            aside.unlink(missing_ok=True)
    # a run from before several processes could train was one's
    here, then = environment(recipe, train.device), {"world_size": 1, **manifest["environment"]}
    differ = [k for k in ("torch", "threads", "device", "precision", "cpu", "world_size") if here[k] != then[k]]
    if differ and not world().rank:
        told = ", ".join(f"{k} {then[k]} then and {here[k]} now" for k in differ)
        warnings.warn(f"resuming elsewhere ({told}): results agree to rounding only", stacklevel=2)
    snaps = steps(recipe, train, last.state, parts=then["world_size"])
    ledger = Ledger(manifest.get("budget"), named)
    chunks = _chunks(snaps, recipe, train, valid, ledger, last.state, manifest["chunk_steps"], progress)
    return _written(folder, chunks)


def _written(folder: Path, chunks: Iterable[Chunk]) -> Run:
    """Write chunks as they come, by rank 0 alone, and read the run when all of them are there."""
    for chunk in chunks:
        if not world().rank:
            write_chunk(folder, chunk)
    barrier()
    return load_run(folder)


def _chunks(
    snaps: Iterator[Snapshot],
    recipe: Recipe,
    split: Split,
    valid: Split | None,
    ledger: Ledger,
    start: State,
    chunk_steps: int,
    progress: bool,
) -> Iterator[Chunk]:
    """Go through the snapshots, yielding a chunk at every multiple of `chunk_steps` and one at the end."""
    from tqdm.auto import tqdm

    per_epoch, total = batches_per_epoch(split, recipe.batch_size), recipe.steps_in(split)
    carries: dict[str, Any] = dict(tree_map(lambda t: t.to(split.device), start.carries))
    logs = Logs()
    guard: Guard | None = None
    # a look at the loss makes an accelerator wait, so there it is looked at now and then only
    look = 1 if split.device.type == "cpu" else 50
    hidden = not progress or world().rank > 0

    def close(status: str) -> Chunk:
        if ledger.budget is not None:
            logs.add("ledger", snap.step, ledger.reading())
        return _close(logs, snap, carries, status)

    with tqdm(total=total, initial=start.step, unit="step", disable=hidden, mininterval=0.5) as bar:
        ledger.stepping()
        for snap in snaps:
            ledger.recording()
            guard = guard or Guard(snap)
            s, last = snap.step, snap.updates is None
            if s % chunk_steps == 0 and s > start.step and not last:
                with ledger.elsewhere():
                    chunk = close("running")
                    yield chunk
                if chunk.status == "diverged":
                    return
            if valid is not None and (last or s % per_epoch == 0) and s > 0:
                scored = _validate(snap, valid)
                logs.add("valid", s, scored)
                bar.set_postfix(valid_accuracy=f"{scored['accuracy'][1]:.3f}", refresh=False)
            no_update = last or snap.skipped
            due = [
                (name, probe)
                for name, probe in ledger.probes.items()
                if probe.due(s) and (not no_update or probe.reads <= AT_THE_END) and ledger.due(name)
            ]
            if due:
                carries = measure(due, snap, guard, carries, logs, ledger)
            if last:
                yield close("finished")
                return
            with ledger.elsewhere():
                _add_step(logs, snap)
            bar.update()
            if s % look == 0 and not math.isfinite(float(snap.loss)):
                yield close("running")
                return
            ledger.stepping()


def _add_step(logs: Logs, snap: Snapshot) -> None:
    """What is recorded at every step of every run: loss and time, and the hyperparameters in force."""
    reading = {"loss": ((), snap.loss, {"units": "nat"}), "epoch": ((), snap.epoch, EPOCHS)}
    if snap.state.loss_scale is not None:
        reading["loss_scale"] = ((), snap.state.loss_scale["scale"], {"units": "1"})
        reading["skipped"] = ((), float(snap.skipped), {"units": "1"})
    logs.add("train", snap.step, reading)
    logs.add_hyperparameters(snap.step, snap.hyperparameters)


def _validate(snap: Snapshot, valid: Split) -> dict[str, Any]:
    """Loss and accuracy of the weights, and of their average where the recipe keeps one."""
    scored = {"": evaluate(snap, valid)}
    if snap.state.average is not None:
        scored["average_"] = evaluate(snap, valid, state=averaged(snap))
    return {
        f"{whose}{what}": ((), getattr(score, what), {"units": units})
        for whose, score in scored.items()
        for what, units in (("loss", "nat"), ("accuracy", "1"))
    }


def _close(logs: Logs, snap: Snapshot, carries: dict[str, Any], status: str) -> Chunk:
    """Empty the logs into a chunk with the state at this step; a loss that was not finite makes it the run's last."""
    readings = logs.take()
    state = tree_map(lambda t: t.detach().cpu().clone(), replace(snap.state, carries=carries))
    bad = _not_finite(readings)
    return Chunk(state, readings, status if bad is None else "diverged", bad)


def _not_finite(readings: Mapping[str, Series]) -> int | None:
    """The step of the first loss that is not finite, if any."""
    if "train" not in readings:
        return None
    bad = (~torch.isfinite(readings["train"].variables["loss"][1])).nonzero()
    return readings["train"].steps[int(bad[0])] if len(bad) else None


def check_probes(probes: Mapping[str, Any]) -> None:
    for name, probe in probes.items():
        if name in RESERVED or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise DynamicsError(f"a probe cannot be called {name!r}: use a word other than {', '.join(RESERVED)}")
        if not isinstance(probe, Probe):
            raise DynamicsError(
                f"the probe {name!r} has no schedule: write every(10, {getattr(probe, '__name__', probe)})"
            )


def _schedule(probe: Mapping[str, Any]) -> dict[str, Any]:
    # a function may be reached by another path where a run is resumed, such as __main__
    return {k: v for k, v in probe.items() if k != "measure"}


def _identity(split: Split) -> dict[str, Any]:
    return {"name": split.name, "n": len(split), "fingerprint": split.fingerprint()}


def _same_data(recorded: Mapping[str, Any], train: Split | None, valid: Split | None) -> tuple[Split, Split | None]:
    """The data that a run began with: what was given, or what `load_data` finds by name; other data are refused."""
    about = recorded["train"]
    if train is None:
        try:
            loaded = load_data(about["name"])
        except DynamicsError as error:
            raise DynamicsError(
                f"this run's data cannot be found again ({error}): pass them as resume(folder, train, valid)"
            ) from None
        train = loaded.train[: about["n"]] if about["n"] < len(loaded.train) else loaded.train
        if recorded["valid"] and valid is None:
            n = recorded["valid"]["n"]
            valid = loaded.test[:n] if n < len(loaded.test) else loaded.test
    for kind, split in (("train", train), ("valid", valid)):
        if (split is None) != (recorded[kind] is None) or (
            split and split.fingerprint() != recorded[kind]["fingerprint"]
        ):
            raise DynamicsError(f"the {kind} data are not those that this run began with: pass the same arrays")
    return train, valid


def environment(recipe: Recipe | None, device: torch.device) -> dict[str, Any]:
    """What a bit-exact repetition depends on besides the recipe: versions, hardware, processes and the threads of each,
    precision, code."""
    here = world()
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "dynamics": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} ({hardware})",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "world_size": here.size,
        "backend": here.backend,
        "precision": resolve_precision(recipe.precision, device) if recipe else None,
        "git": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _version() -> str | None:
    try:
        return version("training-dynamics")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _git(*arguments: str) -> str | None:
    """The state of the checkout that this package runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
