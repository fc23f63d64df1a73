"""Many recipes by many seeds on any executor, each run in a folder of its own."""

from __future__ import annotations

import os
import pickle
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import Split, load_data
from ..errors import DynamicsError
from ..probes import Probe
from ..runs.record import check_probes
from ..training import Recipe, world
from .grid import checked_seeds, named_recipes
from .local import LocalProcesses
from .lock import held
from .store import Sweep, agreed_manifest, new_manifest, reason_file, run_folder, status_of, write_sweep_manifest
from .work import Job, Source, identity_of, keep_reason, run_job, source_of

ATTEMPTS = 3
"""How often a run may lose its process at one place before it counts as failed."""

LOST = {
    "KilledWorker", "UncompletedJobError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError",
    "LocalRayletDiedError",
}  # fmt: skip
"""What dask, submitit and Ray call a worker that is gone; by name, since none of them need be installed."""

APPEARS = 60.0
"""Seconds after which what a worker has written is seen here, on a network disk that is slow to tell."""

POLL = 0.05
"""Seconds between two looks at what is done."""


def sweep(
    recipes: Recipe | Mapping[str, Recipe] | Sequence[Recipe],
    seeds: Iterable[int],
    *,
    out: str | Path,
    train: Split | str,
    valid: Split | None = None,
    probes: Mapping[str, Probe] | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    threads: int | None = None,
    retry: bool = False,
    progress: bool = True,
) -> Sweep:
    """Train every recipe with every seed, each run in its folder out/NAME/seed-S, and return the sweep.

    recipes: by name, such as grid(...) makes them, or a list, which is numbered. train: a Split, or a name for
    `load_data`, whose test split is then `valid` unless one is given. One seed gives the same initial weights, data
    order and augmentation to all recipes that share them, so that comparisons are paired.

    The folder is the memory: runs that have ended are not repeated, one that was interrupted goes on from its last
    chunk to a bit-identical end, one that failed is kept with its reason and tried again only with retry=True, and a
    run that diverged is a result. A folder may grow by seeds and recipes later.

    executor: anything with submit(function, argument) that returns futures, such as `dask_executor(address)`; its
    processes must see the folder. By default local processes, `workers` of them (as many as cores, or as runs if these
    are fewer), each with cores // workers `threads`, so that no core is oversubscribed; on a GPU, one. Runs agree bit
    by bit for one number of threads, which the folder remembers; an executor's are torch's own choice if not given.
    Raises DynamicsError for an empty sweep, repeated seeds, recipes that differ in nothing, a folder of another sweep
    or version, and one in which another sweep is under way.
    """
    named, listed, probes = named_recipes(recipes), checked_seeds(seeds), dict(probes or {})
    check_probes(probes)
    if world().size > 1:
        raise DynamicsError("a sweep starts its own processes: run it without torchrun")
    split, valid, names = _data(train, valid)
    count = len(named) * len(listed)
    given = threads
    if executor is None:
        workers, threads = _shares(workers, threads, count, split.device.type)
    elif workers is not None:
        raise DynamicsError("workers= is for local processes: an executor has its own number, so leave it out")
    folder = Path(os.path.abspath(os.path.expanduser(out)))
    data = {"train": identity_of(split), "valid": identity_of(valid)}
    with held(folder / ".lock", f"the sweep {folder}"):
        manifest = agreed_manifest(folder, new_manifest(named, listed, data, probes, threads), given)
        # the folder's runs began with another number, on another machine perhaps
        if manifest["threads"] not in (None, threads):
            threads = manifest["threads"]
            if executor is None:
                workers = min(workers, max(1, usable_cores() // threads))
        made = Sweep(folder, tuple(named), listed)
        if retry:
            for key in made:
                reason_file(run_folder(folder, *key)).unlink(missing_ok=True)
        write_sweep_manifest(folder, manifest)
        left = [key for key in _by_seed(made) if _to_do(run_folder(folder, *key))]
        if left:
            sources, call = _sources(split, valid, names, folder), uuid.uuid4().hex
            jobs = {
                (name, seed): Job(
                    replace(named[name], seed=seed),
                    str(run_folder(folder, name, seed)),
                    *sources,
                    probes,
                    threads,
                    call,
                )
                for name, seed in left
            }
            if executor is None:
                _check_pickles(jobs[left[0]])
            _work(jobs, executor or LocalProcesses(min(workers, len(left))), executor is None, made, split, progress)
        shutil.rmtree(folder / ".data", ignore_errors=True)
    failed = made.reasons
    if failed:
        (name, seed), reason = next(iter(failed.items()))
        warnings.warn(
            f"{len(failed)} of {count} runs failed; first {name}, seed {seed}: {reason.partition(chr(10))[0]}; "
            "sweep again with retry=True to try them again",
            stacklevel=2,
        )
    return made


def _work(
    jobs: Mapping[tuple[str, int], Job], executor: Executor, own: bool, made: Sweep, split: Split, progress: bool
) -> None:
    """Have all jobs done, one progress bar over them; the executor is shut down if it is our own."""
    from tqdm.auto import tqdm

    sizes = {key: _images(job.recipe, split) for key, job in jobs.items()}
    of_name = {name: size for (name, _), size in sizes.items()}
    total = sum(of_name.get(name, 0) for name, _ in made)
    deaths = dict.fromkeys(jobs, (0, 0))  # how many at this place, which is a number of chunks
    counts = {"runs": len(made) - len(jobs), "failed": 0, "diverged": 0}
    futures: dict[tuple[str, int], Any] = {}
    complete, told = False, 0.0
    # without smoothing, so that the time left is estimated from all that was done here
    bar = tqdm(total=total, initial=total - sum(sizes.values()), unit="image", unit_scale=True, smoothing=0,
               disable=not progress, mininterval=0.5)  # fmt: skip
    try:
        for key, job in jobs.items():
            futures[key] = _submit(executor, job)
        while futures:
            done = [key for key, future in futures.items() if future.done()]
            if not done:
                time.sleep(POLL)
                if time.monotonic() > told + 1:  # the time goes on where no run ends
                    bar.refresh()
                    told = time.monotonic()
            for key in done:
                job = jobs[key]
                status, why = _ended(futures.pop(key), job, own)
                if status == "lost":
                    (n, place), now = deaths[key], len(list(Path(job.folder).glob("chunk-*.safetensors")))
                    # one that gets further each time, such as on machines that are lent for an hour, is not at fault
                    deaths[key] = n + 1 if now == place else 1, now
                    if deaths[key][0] < ATTEMPTS:
                        futures[key] = _submit(executor, replace(job, call=f"{job.call}-{time.monotonic_ns()}"))
                        continue
                    keep_reason(Path(job.folder), f"its process died {ATTEMPTS} times at one place ({why})")
                    status = "failed"
                counts["runs"] += 1
                if status in counts:
                    counts[status] += 1
                shown = {k: v for k, v in counts.items() if v and k != "runs"}
                bar.set_postfix({"runs": f"{counts['runs']}/{len(made)}", **shown}, refresh=False)
                bar.update(sizes[key])
        complete = True
    finally:
        bar.close()
        for future in futures.values():
            with suppress(Exception):
                future.cancel()
        if own:
            executor.shutdown(cancel_futures=not complete)


def _submit(executor: Executor, job: Job) -> Any:
    try:
        return executor.submit(run_job, job)
    except (BrokenExecutor, RuntimeError) as error:  # broken, or shut down already
        raise _broken(error) from None


def _ended(future: Any, job: Job, own: bool) -> tuple[str, str]:
    """The status of a job's run by its store, or "lost" where its process died under it, and then why."""
    try:
        future.result()
    except DynamicsError:
        raise
    except CancelledError:
        raise _broken("it gave up a run: shut down, or the connection lost") from None
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        lost = own if isinstance(error, BrokenExecutor) else LOST & {kind.__name__ for kind in type(error).__mro__}
        if lost:
            return "lost", why
        if isinstance(error, BrokenExecutor):
            raise _broken(error) from None
        raise DynamicsError(
            f"the executor could not run a job ({why}): its processes need this package, and functions that they can "
            "import"
        ) from error
    deadline = time.monotonic() + APPEARS
    while (status := status_of(Path(job.folder))) in ("missing", "running"):
        if time.monotonic() > deadline:
            raise DynamicsError(
                f"a worker has ended {job.folder}, which is not to be seen here: workers must share the sweep's folder"
            )
        time.sleep(POLL)
    return status, ""


def _broken(error: Exception | str) -> DynamicsError:
    what = str(error).partition("\n")[0]
    return DynamicsError(f"the executor is broken ({what}): pass a new one, and the sweep goes on where it stopped")


def _by_seed(made: Sweep) -> list[tuple[str, int]]:
    """All recipes with one seed before the next seed, so that what is there after a kill can be compared in pairs."""
    return [(name, seed) for seed in made.seeds for name in made.names]


def _to_do(folder: Path) -> bool:
    # a lock of a process that was killed after its run had ended is the job's to remove
    return status_of(folder) in ("missing", "running") or folder.with_name(f"{folder.name}.lock").exists()


def _data(train: Split | str, valid: Split | None) -> tuple[Split, Split | None, tuple[str | None, str | None]]:
    """The splits, and the names by which other processes may load them."""
    if isinstance(train, Split):
        found, names = (train, valid), (None, None)
    else:
        data = load_data(train)
        test = valid is None
        found, names = (data.train, data.test if test else valid), (data.train.name, data.test.name if test else None)
    split, valid = found
    if valid is not None and (valid.classes, valid.mean, valid.std) != (split.classes, split.mean, split.std):
        raise DynamicsError(
            "valid has other classes or normalisation than train: make it with Split.from_arrays(..., like=train)"
        )
    return split, valid, names


def _sources(
    split: Split, valid: Split | None, names: tuple[str | None, str | None], folder: Path
) -> tuple[Source, Source | None]:
    found = []
    for part, data, name in zip(("train", "test"), (split, valid), names, strict=True):
        if data is None:
            found.append(None)
        elif name is not None:
            found.append(Source(data.fingerprint(), str(data.device), name, part))
        else:
            found.append(source_of(data, folder, part))
    return found[0], found[1]


def _images(recipe: Recipe, split: Split) -> int:
    """The training images that a run sees, which is what its time is nearly proportional to."""
    try:
        return max(1, recipe.steps_in(split) * recipe.batch_size)
    except DynamicsError:  # it will fail, and be kept with that reason
        return 1


def _shares(workers: int | None, threads: int | None, count: int, device: str) -> tuple[int, int]:
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise DynamicsError(f"{name} must be a whole number of at least 1, got {value!r}")
    cores = usable_cores()
    if workers is None:
        most = 1 if device != "cpu" else cores // threads if threads else cores
        workers = max(1, min(most, count))
    return workers, threads or max(1, cores // workers)


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_pickles(job: Job) -> None:
    try:
        pickle.dumps(job)
    except Exception as error:  # pickle raises a dozen kinds
        raise DynamicsError(
            f"local processes cannot be sent these recipes or probes ({error}): use functions defined in a module, or "
            "pass executor=dask_executor(...)"
        ) from None
