from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same, plain_net, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.sweeps import LocalProcesses, grid, load_arm, load_sweep, samples, sweep
from dynamics.sweeps.grid import checked_seeds, named_recipes
from dynamics.sweeps.local import WorkerDied
from dynamics.sweeps.lock import held

TRAIN = toy_split(40)
VALID = toy_split(20, seed=1, like=TRAIN)
RECIPE = toy_recipe(net=dyn.Net("helpers:dropout_net"), epochs=3)
ARMS = grid(RECIPE, {"optimizer.lr": [0.02, 0.05]})
SEEDS = (0, 3)
PROBES = {"norms": dyn.every(1, dyn.weight_norms)}


def run_sweep(out: Path, recipes=ARMS, seeds=SEEDS, **given) -> object:
    """In this process, one run after another, unless the test says otherwise."""
    given = {"train": TRAIN, "valid": VALID, "probes": PROBES, "progress": False, "threads": 1, **given}
    if "workers" in given:
        return sweep(recipes, seeds, out=out, **given)
    with ThreadPoolExecutor(2) as executor:
        return sweep(recipes, seeds, out=out, **{"executor": executor, **given})


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store by its path, but for the command that each run's process was started with."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        if path.name == "run.json":
            about = json.loads(path.read_text())
            del about["environment"]["command"]
            found[str(path.relative_to(folder))] = json.dumps(about).encode()
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A sweep that nothing disturbed; read only."""
    folder = tmp_path_factory.mktemp("sweeps") / "store"
    run_sweep(folder)
    return folder


def copy(store: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(store, to))


# which recipes


def test_a_grid_is_every_combination_and_the_last_field_varies_fastest():
    made = grid(RECIPE, {"optimizer.lr": [0.1, 0.2], "batch_size": np.array([5, 10])})
    assert list(made) == ["lr=0.1,batch_size=5", "lr=0.1,batch_size=10", "lr=0.2,batch_size=5", "lr=0.2,batch_size=10"]
    assert made["lr=0.2,batch_size=5"] == replace(RECIPE, batch_size=5, optimizer=replace(RECIPE.optimizer, lr=0.2))
    assert all(dyn.Recipe.from_json(json.loads(json.dumps(r.to_json()))) == r for r in made.values())


def test_a_grid_reaches_into_the_net_and_names_what_is_no_number():
    schedules = [dyn.Constant(0.1), dyn.PiecewiseLinear((0, 1), (0.1, 0.0))]
    made = grid(toy_recipe(), {"net.width": [2, 3], "optimizer.lr": schedules})
    assert list(made)[:2] == ["width=2,lr=Constant-0", "width=2,lr=PiecewiseLinear-1"]
    assert dict(made["width=3,lr=Constant-0"].net.arguments)["width"] == 3


def test_fields_that_share_their_last_part_are_named_in_full():
    assert list(grid(toy_recipe(optimizer=dyn.SGD(dyn.PiecewiseLinear((0, 1), (0.1, 0.2)))), {"optimizer.lr": [0.5]}))
    made = grid(toy_recipe(), {"augment.pad": [2], "net.width": [2]})
    assert list(made) == ["pad=2,width=2"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "this grid is empty"),
        ({"batch_size": []}, "has no values, so the grid is empty"),
        ({"batch_size": 5}, "takes a list of values"),
        ({"batch_size": [5, 5]}, "twice"),
        ({"batchsize": [5]}, "did you mean 'batch_size'"),
        ({"optimizer.momentun": [0.5]}, "did you mean 'momentum'"),
        ({"batch_size.x": [5]}, "has no field 'x'"),
        ({"seed": [1, 2]}, "pass the seeds to sweep"),
        ({"batch_size": [0]}, "batch_size must be a whole number"),
    ],
)
def test_a_grid_without_sense_is_refused(axes, message):
    with pytest.raises(DynamicsError, match=message):
        grid(RECIPE, axes)


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "there is no recipe"),
        ([RECIPE, replace(RECIPE, seed=4)], "'recipe-0' and 'recipe-1' differ in nothing"),
        ({"a/b": RECIPE}, "cannot be called 'a/b'"),
        ({"..": RECIPE}, "cannot be called"),
        ({"a": RECIPE, "A": toy_recipe()}, "capitals only"),
        ({"a": "baseline"}, "is a str: pass a Recipe"),
    ],
)
def test_recipes_without_sense_are_refused(recipes, message, tmp_path):
    with pytest.raises(DynamicsError, match=message):
        run_sweep(tmp_path / "out", recipes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [([], "no seeds"), ([0, 1, 0], "seed 0 is repeated"), (3, r"range\(3\)"), ([0.5], "whole number")],
)
def test_seeds_without_sense_are_refused(seeds, message):
    with pytest.raises(DynamicsError, match=message):
        checked_seeds(seeds)


def test_seeds_of_an_array_are_plain_numbers():
    assert [type(s) for s in checked_seeds(np.arange(2))] == [int, int]


def test_a_list_of_recipes_is_numbered_and_one_recipe_is_a_list_of_it():
    assert list(named_recipes([RECIPE, toy_recipe()])) == ["recipe-0", "recipe-1"]
    assert named_recipes(replace(RECIPE, seed=9)) == {"recipe-0": replace(RECIPE, seed=0)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers must be a whole number"),
        ({"workers": 1, "threads": 0}, "threads must be a whole number"),
        ({"valid": toy_split(20, seed=1)}, "other classes or normalisation"),
        ({"probes": {"valid": PROBES["norms"]}}, "cannot be called 'valid'"),
        ({"workers": 1, "probes": {"own": dyn.every(1, lambda snap: {})}}, "cannot be sent"),
    ],
)
def test_other_bad_input_is_refused_before_anything_is_trained(given, message, tmp_path):
    with pytest.raises(DynamicsError, match=message):
        run_sweep(tmp_path / "out", **given)
    assert not list(tmp_path.rglob("run.json"))


# what is in the store


def test_a_sweep_is_the_runs_one_after_another_bit_for_bit(store, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, recipe in ARMS.items():
        for seed in SEEDS:
            dyn.train(
                recipe, TRAIN, VALID, probes=PROBES, seed=seed, out=tmp_path / name / f"seed-{seed}", progress=False
            )
    torch.set_num_threads(before)
    found = files(store)
    assert found.pop("sweep.json")
    assert found == files(tmp_path)


def test_nothing_but_runs_and_the_manifest_is_left(store):
    assert {p.name for p in store.iterdir()} == {"sweep.json", *ARMS}
    assert {p.name for p in (store / next(iter(ARMS))).iterdir()} == {f"seed-{s}" for s in SEEDS}


def test_a_run_is_read_by_name_and_seed(store):
    done = load_sweep(store)
    run = done["lr=0.05", 3]
    assert run.recipe == replace(ARMS["lr=0.05"], seed=3) and run.status == "finished" and "norms" in run
    assert len(done) == 4 and next(iter(done)) == ("lr=0.02", 0)
    assert list(done.runs("lr=0.05")) == [0, 3]
    with pytest.raises(DynamicsError, match=r"did you mean 'lr=0\.05'"):
        done["lr=0.5", 3]
    with pytest.raises(DynamicsError, match="its seeds are 0, 3"):
        done["lr=0.05", 1]
    with pytest.raises(DynamicsError, match=r"sweep\['lr=0.02', 0\]"):
        done["lr=0.05"]


def test_the_table_has_the_last_validation_of_every_run(store):
    done = load_sweep(store)
    table = done.table()
    for name, seed in done:
        row = table.sel(recipe=name, seed=seed)
        valid = done[name, seed]["valid"]
        assert float(row.accuracy) == float(valid.accuracy.values[-1])
        assert float(row.loss) == float(valid.loss.values[-1])
    assert set(table.status.values.ravel()) == {"finished"} and set(table.reason.values.ravel()) == {""}
    assert "average_loss" not in table
    assert len(table.to_dataframe()) == 4


def test_one_seed_is_the_same_weights_order_and_augmentation_for_all_recipes(store):
    done = load_sweep(store)
    one, other = done["lr=0.02", 3], done["lr=0.05", 3]
    assert_same(one.state_at(0).params, other.state_at(0).params)
    assert not torch.equal(one.state_at(0).params["0.weight"], done["lr=0.02", 0].state_at(0).params["0.weight"])
    # the first loss is of the same batch at the same weights, with the same augmentation and dropout
    assert float(one["train"].loss[0]) == float(other["train"].loss[0])
    assert float(one["train"].loss[-1]) != float(other["train"].loss[-1])


def test_runs_that_have_ended_are_not_repeated(store, tmp_path):
    folder = copy(store, tmp_path / "copy")
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.*")}
    assert set(run_sweep(folder).statuses.values()) == {"finished"}
    assert times == {p: p.stat().st_mtime_ns for p in folder.rglob("*.*")}


def test_a_store_may_grow_by_seeds_and_recipes(store, tmp_path):
    folder = copy(store, tmp_path / "copy")
    first = files(folder)
    more = grid(RECIPE, {"optimizer.lr": [0.05, 0.1]})
    done = run_sweep(folder, more, (3, 4))
    assert set(done.statuses.values()) == {"finished"} and done.names == ("lr=0.05", "lr=0.1")
    now = files(folder)
    assert {k: v for k, v in now.items() if k in first and k != "sweep.json"} == {
        k: v for k, v in first.items() if k != "sweep.json"
    }
    whole = load_sweep(folder)
    assert whole.names == ("lr=0.02", "lr=0.05", "lr=0.1") and whole.seeds == (0, 3, 4)
    assert whole.statuses["lr=0.1", 0] == "missing"
    with pytest.raises(DynamicsError, match="has not begun"):
        whole["lr=0.1", 0]
    assert "1 missing" not in repr(done) and "missing" in repr(whole)


def test_data_may_be_a_name(tmp_path):
    arrays = {}
    for part, split in (("train", TRAIN), ("test", VALID)):
        arrays |= {f"{part}_images": split.images.numpy(), f"{part}_labels": split.labels.numpy()}
    np.savez(tmp_path / "toy.npz", **arrays)
    name = str(tmp_path / "toy.npz")
    done = run_sweep(tmp_path / "out", RECIPE, [0], train=name, valid=None)
    data = dyn.load_data(name)
    assert_same(done["recipe-0", 0].weights, dyn.train(RECIPE, data.train, progress=False).weights)
    assert done["recipe-0", 0].manifest["data"]["train"]["name"] == name
    assert "valid" in done["recipe-0", 0]


def test_a_sweep_without_validation_has_a_table_of_nan(tmp_path):
    assert np.isnan(run_sweep(tmp_path / "out", RECIPE, [0], valid=None).table().accuracy.values).all()


# what goes wrong in a run


def fails_without(classes: int, marker: str) -> nn.Module:
    if not Path(marker).exists():
        raise RuntimeError("no marker\nin two lines")
    return plain_net()


def test_a_run_that_fails_is_kept_with_its_reason_and_tried_again_on_request_only(tmp_path):
    marker, out = tmp_path / "marker", tmp_path / "out"
    recipes = {"good": RECIPE, "bad": replace(RECIPE, net=dyn.Net("test_sweeps:fails_without", marker=str(marker)))}
    with pytest.warns(UserWarning, match="1 of 2 runs failed; first bad, seed 0: RuntimeError: no marker"):
        done = run_sweep(out, recipes, [0], probes={})
    assert done.statuses == {("good", 0): "finished", ("bad", 0): "failed"}
    assert done.reason("bad", 0) == "RuntimeError: no marker" and done.reason("good", 0) == ""
    assert "fails_without" in done.reasons["bad", 0] and "Traceback" in done.reasons["bad", 0]
    assert str(done.table().reason.sel(recipe="bad", seed=0).values) == "RuntimeError: no marker"
    with pytest.raises(DynamicsError, match=r"failed \(RuntimeError: no marker\): sweep again with retry=True"):
        done["bad", 0]
    marker.touch()
    with pytest.warns(UserWarning, match="1 of 2"):
        assert run_sweep(out, recipes, [0], probes={}).statuses["bad", 0] == "failed"
    assert run_sweep(out, recipes, [0], probes={}, retry=True).statuses["bad", 0] == "finished"
    assert not list(out.rglob("*.txt"))


def test_what_a_recipe_and_its_data_refuse_is_a_reason_in_one_line(tmp_path):
    with pytest.warns(UserWarning, match="of 2 runs failed"):
        done = run_sweep(tmp_path / "out", grid(RECIPE, {"batch_size": [20, 999]}), [0])
    assert done.statuses["batch_size=20", 0] == "finished" and "999" in done.reason("batch_size=999", 0)


def test_a_run_that_diverges_is_a_result(tmp_path):
    hot = replace(RECIPE, optimizer=replace(RECIPE.optimizer, lr=1e30))
    done = run_sweep(tmp_path / "out", {"hot": hot}, [0], probes={})
    assert done.statuses == {("hot", 0): "diverged"} and done["hot", 0].diverged_at is not None
    before = files(tmp_path)
    run_sweep(tmp_path / "out", {"hot": hot}, [0], probes={}, retry=True)
    assert files(tmp_path) == before
    assert np.isnan(done.table().accuracy.values).all() and done.runs("hot") == {}


# whose store it is


def test_two_sweeps_at_once_on_one_store_are_refused_and_told_by_whom(store, tmp_path):
    folder = copy(store, tmp_path / "copy")
    with (
        held(folder / ".lock", "the sweep"),
        pytest.raises(DynamicsError, match=f"in use by process {os.getpid()} on {socket.gethostname()} since"),
    ):
        run_sweep(folder)
    run_sweep(folder)
    assert not (folder / ".lock").exists()


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("left", ["dead", "another process of this number", "nothing in it"])
def test_a_lock_that_a_dead_process_left_is_taken_over(left, tmp_path, monkeypatch):
    monkeypatch.setattr("dynamics.sweeps.lock.EMPTY", 0.3)
    about = {"host": socket.gethostname(), "since": "yesterday", "started": "1"}
    text = {
        "dead": json.dumps({"pid": dead_pid(), **about}),
        "another process of this number": json.dumps({"pid": os.getpid(), **about}),
        "nothing in it": "",
    }[left]
    if left == "another process of this number" and not Path("/proc/self/stat").exists():
        pytest.skip("this system does not say when a process began")
    (tmp_path / ".lock").write_text(text)
    with held(tmp_path / ".lock", "the sweep"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_respected_and_named(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "yesterday"}))
    with pytest.raises(DynamicsError, match="process 1 on elsewhere since yesterday"), held(tmp_path / ".lock", "it"):
        pass
    assert (tmp_path / ".lock").exists()


def test_who_waits_for_a_lock_gets_it_when_it_is_let_go_or_silent(tmp_path, monkeypatch):
    monkeypatch.setattr("dynamics.sweeps.lock.PATIENCE", 0.3)
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "yesterday"}))
    with held(tmp_path / ".lock", "it", wait=True):
        assert "elsewhere" not in (tmp_path / ".lock").read_text()


def edit(folder: Path, **changes) -> None:
    path = folder / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics": "0.0.1"}, "was written by training-dynamics 0.0.1"),
        ({"format": 2}, "was written in format 2"),
        ({"format": None}, "cannot be read"),
    ],
)
def test_a_store_of_another_version_is_refused(store, tmp_path, changes, message):
    folder = copy(store, tmp_path / "copy")
    edit(folder, **changes)
    with pytest.raises(DynamicsError, match=message) as told:
        run_sweep(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("recipes", "given", "message"),
    [
        ({"lr=0.02": toy_recipe()}, {}, "whose recipe 'lr=0.02' has"),
        ({"other": toy_recipe()}, {}, "another sweep, of lr=0.02, lr=0.05"),
        ({**ARMS, "again": ARMS["lr=0.02"]}, {}, "differ in nothing"),
        (ARMS, {"train": TRAIN[:39]}, "train data are 40 images of arrays and not 39"),
        (ARMS, {"valid": toy_split(20, seed=2, like=TRAIN)}, "the same in name, not in content"),
        (ARMS, {"valid": None}, "and not no data"),
        (ARMS, {"probes": {}}, "other probes"),
        (ARMS, {"threads": 2}, "took 1 threads each, not 2"),
    ],
)
def test_the_store_of_another_sweep_is_refused_with_the_difference_named(store, tmp_path, recipes, given, message):
    folder = copy(store, tmp_path / "copy")
    before = files(folder)
    with pytest.raises(DynamicsError, match=message):
        run_sweep(folder, recipes, **given)
    assert files(folder) == before


def test_the_difference_of_recipes_is_named_by_its_path(store, tmp_path):
    changed = replace(ARMS["lr=0.02"], optimizer=replace(ARMS["lr=0.02"].optimizer, momentum=0.5))
    with pytest.raises(DynamicsError, match=r"has optimizer\.momentum 0\.9 and not 0\.5"):
        run_sweep(copy(store, tmp_path / "copy"), {"lr=0.02": changed})


def test_a_recipe_of_the_store_under_another_name_is_refused(store, tmp_path):
    with pytest.raises(DynamicsError, match="under another name"):
        run_sweep(copy(store, tmp_path / "copy"), {"lr=0.05": ARMS["lr=0.05"], "new": ARMS["lr=0.02"]})


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(DynamicsError, match="is not a sweep"):
        run_sweep(tmp_path)
    with pytest.raises(DynamicsError, match="is not a sweep"):
        load_sweep(tmp_path)
    with pytest.raises(DynamicsError, match="cannot write"):
        run_sweep(tmp_path / "letters.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]


# killed processes


def dies_once(classes: int, marker: str) -> nn.Module:
    """A net of which the first attempt to make it takes the process down, in a worker."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plain_net()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_that_dies_costs_its_own_job_only_and_processes_agree_bit_for_bit(store, tmp_path):
    marker = tmp_path / "marker"
    deadly = replace(RECIPE, net=dyn.Net("test_sweeps:dies_once", marker=str(marker)))
    done = run_sweep(tmp_path / "out", {"deadly": deadly, **ARMS}, [0], workers=1)
    assert marker.exists() and set(done.statuses.values()) == {"finished"}
    assert_same(done["deadly", 0].weights, dyn.train(deadly, TRAIN, progress=False).weights)
    ours, theirs = files(tmp_path / "out"), files(store)
    shared = [k for k in theirs if "seed-0" in k]
    assert len(shared) > 4 and {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}
    assert not list(tmp_path.rglob("*.lock"))


def killed_sweep(out: str, executor=None) -> object:
    """What the process of the SIGKILL test does; long enough for a kill in the middle."""
    split = toy_split(500)
    recipe = replace(RECIPE, epochs=24)
    given = {"executor": executor} if executor else {"workers": 1}
    return sweep(grid(recipe, {"optimizer.lr": [0.02, 0.05]}), [0], out=out, train=split, valid=VALID_OF_LARGER,
                 threads=1, progress=False, **given)  # fmt: skip


VALID_OF_LARGER = toy_split(20, seed=1, like=toy_split(500))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_sweep_killed_in_the_middle_ends_with_the_store_of_an_undisturbed_one(tmp_path):
    out, script = tmp_path / "killed", "import test_sweeps, sys; test_sweeps.killed_sweep(sys.argv[1])"
    path = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    until(lambda: list(out.glob("*/seed-0/chunk-*[1-9]*.safetensors")) or child.poll() is not None)
    assert child.poll() is None, "it ended before it could be killed"
    worker = json.loads(next(out.glob("*/seed-0.lock")).read_text())["pid"]
    child.kill()
    child.wait()
    until(lambda: not alive(worker))
    assert "running" in load_sweep(out).statuses.values() and (out / ".lock").exists()
    with ThreadPoolExecutor(1) as executor:
        killed_sweep(str(out), executor)
        killed_sweep(str(tmp_path / "undisturbed"), executor)
    assert files(out) == files(tmp_path / "undisturbed")


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Raises:
    def __reduce__(self):
        return fail, ()


def fail() -> None:
    raise OverflowError("cannot be read")


def local_error() -> None:
    class Own(Exception):
        pass

    raise Own("of a class that nobody can import")


def test_local_processes_return_raise_and_survive_what_cannot_be_pickled():
    with LocalProcesses(1) as executor:
        calls = [executor.submit(pow, 2, 5), executor.submit(fail), executor.submit(local_error)]
        calls += [executor.submit(print, Raises()), executor.submit(os._exit, 1), executor.submit(pow, 2, exp=6)]
        assert calls[0].result() == 32
        with pytest.raises(OverflowError, match="cannot be read"):
            calls[1].result()
        with pytest.raises(RuntimeError, match="Own: of a class"):
            calls[2].result()
        with pytest.raises(OverflowError):
            calls[3].result()
        with pytest.raises(WorkerDied):
            calls[4].result()
        assert calls[5].result() == 64


class Later:
    """What a scheduler returns that knows no concurrent.futures, such as submitit's jobs."""

    def __init__(self, call, *, raises: Exception | None = None) -> None:
        self.call, self.raises, self.looks = call, raises, 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 2

    def result(self) -> object:
        if self.raises:
            raise self.raises
        return self.call()

    def cancel(self) -> None:
        self.cancelled = True


class Scheduler:
    def __init__(self, *workers, raises: Exception | None = None) -> None:
        self.raises, self.jobs = raises, []

    def submit(self, fn, job) -> Later:
        self.jobs.append(Later(lambda: fn(job), raises=self.raises))
        return self.jobs[-1]

    def shutdown(self, **given) -> None:
        self.closed = True


def test_anything_that_submits_is_an_executor(store, tmp_path):
    executor = Scheduler()
    run_sweep(tmp_path / "out", executor=executor)
    assert files(tmp_path / "out") == files(store) and not hasattr(executor, "closed")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenProcessPool("a child died"), r"the executor is broken \(a child died\): pass a new one"),
        (CancelledError(), r"the executor is broken \(it gave up a run"),
        (pickle.PicklingError("no"), r"could not run a job \(PicklingError: no\)"),
    ],
)
def test_an_executor_that_does_not_work_is_told_and_the_rest_is_cancelled(error, message, tmp_path):
    executor = Scheduler(raises=error)
    with pytest.raises(DynamicsError, match=message):
        run_sweep(tmp_path / "out", executor=executor)
    assert sum(hasattr(job, "cancelled") for job in executor.jobs) == 3
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_worker_that_shares_no_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["dynamics.sweeps.sweep"], "APPEARS", 0.1)
    executor = Scheduler()
    executor.submit = lambda fn, job: Later(lambda: "finished")
    with pytest.raises(DynamicsError, match="workers must share the sweep's folder"):
        run_sweep(tmp_path / "out", executor=executor)


def test_a_run_that_takes_its_process_down_three_times_has_failed(tmp_path, monkeypatch):
    executor = Scheduler(raises=WorkerDied("killed"))
    monkeypatch.setattr(sys.modules["dynamics.sweeps.sweep"], "LocalProcesses", lambda workers: executor)
    with pytest.warns(UserWarning, match="1 of 1 runs failed"):
        done = run_sweep(tmp_path / "out", RECIPE, [0], workers=1)
    assert len(executor.jobs) == 3 and executor.closed
    assert done.reason("recipe-0", 0) == "its process died 3 times at one place (WorkerDied: killed)"


class KilledWorker(Exception):
    """As dask's, by its name."""


def test_a_worker_that_a_cluster_loses_costs_an_attempt(tmp_path):
    executor, good = Scheduler(), Scheduler.submit
    raises = iter([KilledWorker("gone"), None])

    def submit(fn, job) -> Later:
        executor.raises = next(raises)
        return good(executor, fn, job)

    executor.submit = submit
    assert run_sweep(tmp_path / "out", RECIPE, [0], executor=executor).statuses["recipe-0", 0] == "finished"
    assert len(executor.jobs) == 2


def test_a_run_that_gets_further_each_time_may_lose_its_process_more_often(tmp_path):
    """As on machines that are lent for an hour each: eight losses, at every chunk of a run two."""
    whole = trained(tmp_path / "whole", replace(RECIPE, seed=0), probes=PROBES, chunk_steps=1)
    weights = dyn.load_run(whole).weights
    chunks, folder = sorted(whole.glob("chunk-*")), tmp_path / "out" / "recipe-0" / "seed-0"
    losses = [*(i for i in range(4) for _ in range(2))]
    executor, jobs = Scheduler(), []

    def submit(fn, job) -> Later:
        jobs.append(job)
        if len(jobs) > len(losses):
            return Later(lambda: fn(job))
        folder.mkdir(parents=True, exist_ok=True)
        for path in [whole / "run.json", *chunks[: 1 + losses[len(jobs) - 1]]]:
            (folder / path.name).write_bytes(path.read_bytes())
        return Later(None, raises=KilledWorker("gone"))

    executor.submit = submit
    done = run_sweep(tmp_path / "out", RECIPE, [0], executor=executor)
    assert len(chunks) > 4 and len(jobs) == 9 and done.statuses["recipe-0", 0] == "finished"
    assert len({job.call for job in jobs}) == 9, "a scheduler that knows a job again gives its result again"
    assert_same(done["recipe-0", 0].weights, weights)


def test_threads_are_the_stores_and_an_executors_own_where_it_has_none(tmp_path):
    out, here = tmp_path / "out", torch.get_num_threads()
    done = run_sweep(out, RECIPE, [0], threads=None)
    assert json.loads((out / "sweep.json").read_text())["threads"] is None
    assert done["recipe-0", 0].manifest["environment"]["threads"] == here
    done = run_sweep(out, RECIPE, [1], threads=here + 1)
    assert done["recipe-0", 1].manifest["environment"]["threads"] == here + 1 and torch.get_num_threads() == here
    assert run_sweep(tmp_path / "two", RECIPE, [0], threads=2)["recipe-0", 0].manifest["environment"]["threads"] == 2
    done = run_sweep(tmp_path / "two", RECIPE, [1], threads=None)
    assert done["recipe-0", 1].manifest["environment"]["threads"] == 2


def test_the_progress_counts_runs_and_estimates_the_time_left(tmp_path, capsys):
    run_sweep(tmp_path / "out", progress=True)
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "runs=4/4" in shown and "image/s" in shown and "100%" in shown and "00:00" in shown


# comparisons


def test_two_arms_are_compared_by_their_common_seeds(store, tmp_path):
    folder = copy(store, tmp_path / "copy")
    run_sweep(folder, {"lr=0.02": ARMS["lr=0.02"]}, (0, 3, 4))
    found = samples(load_arm(folder / "lr=0.02"), load_arm(folder / "lr=0.05"))
    done = load_sweep(folder)
    assert found.seeds == (0, 3) and found.images == 20
    assert found.a == [float(done["lr=0.02", s]["valid"].accuracy.values[-1]) for s in (0, 3)]
    assert found.b == [float(done["lr=0.05", s]["valid"].accuracy.values[-1]) for s in (0, 3)]
    free = samples(load_arm(folder / "lr=0.02"), load_arm(folder / "lr=0.05"), paired=False, measure="loss")
    assert len(free.a) == 3 and len(free.b) == 2


def trained(out: Path, recipe=RECIPE, train=TRAIN, valid=VALID, **given) -> Path:
    dyn.train(recipe, train, valid, out=out, progress=False, **given)
    return out


def test_arms_on_other_data_or_at_another_scale_are_refused_with_the_difference_named(store, tmp_path):
    wide = trained(tmp_path / "wide", toy_recipe(epochs=1))
    wider = trained(tmp_path / "wider", toy_recipe(epochs=1, net=dyn.Net("resnet9", width=3)))
    longer = trained(tmp_path / "longer", toy_recipe(epochs=1.5))
    fewer = trained(tmp_path / "fewer", toy_recipe(epochs=1), TRAIN[:20])
    other = trained(tmp_path / "other", toy_recipe(epochs=1), TRAIN, toy_split(20, seed=2, like=TRAIN))
    later = trained(tmp_path / "later", toy_recipe(epochs=1, seed=5))
    for folder, name in ((wider, "width"), (longer, "epochs"), (fewer, "data")):
        with pytest.raises(DynamicsError, match=f"differ in {name} .*across={name}"):
            samples(load_arm(wide), load_arm(folder))
        assert len(samples(load_arm(wide), load_arm(folder), across=[name]).a) == 1
    with pytest.raises(DynamicsError, match="different validation images"):
        samples(load_arm(wide), load_arm(other), across=["data"])
    with pytest.raises(DynamicsError, match="share no seed"):
        samples(load_arm(wide), load_arm(later))
    assert len(samples(load_arm(wide), load_arm(later), paired=False).a) == 1
    with pytest.raises(DynamicsError, match="unknown scale 'depth'"):
        samples(load_arm(wide), load_arm(wider), across=["depth"])
    with pytest.raises(DynamicsError, match="has no average_accuracy"):
        samples(load_arm(wide), load_arm(wide), measure="average_accuracy")
    with pytest.raises(DynamicsError, match="several recipes"):
        load_arm(store)
    with pytest.raises(DynamicsError, match="neither a run nor"):
        load_arm(tmp_path)


def test_a_job_is_a_value_that_another_process_understands():
    from dynamics.sweeps.work import Job, Source

    job = Job(RECIPE, "out/a/seed-0", Source("ab", "cpu", files="x"), None, PROBES, 1)
    assert pickle.loads(pickle.dumps(job)) == job
