from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import arrays, assert_same, largest_difference, last, toy_recipe, toy_split
from ranks import RECIPES, command_line_recipe, sync_net, trajectory

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets.syncnorm import SyncNorm
from dynamics.training import World, world

SPLIT = toy_split()
TESTS, ROOT = Path(__file__).parent, Path(dyn.__file__).parents[1]
GHOST = dyn.Net("resnet9", width=2, norm="ghost", ghost_splits=2)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(TESTS)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: Any) -> subprocess.CompletedProcess:
    """Two processes, with a port that the system chooses."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(
        [*map(str, command)], env=environment(), capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    names = ("train_images", "train_labels", "test_images", "test_labels")
    values = [*arrays(60), *arrays(20, seed=1)]
    np.savez(folder / "data.npz", **dict(zip(names, values, strict=True)))
    return folder


@pytest.fixture(scope="module")
def ranks(place) -> list[dict[str, Any]]:
    """What each of two processes saw, which `ranks.check` did together; and what they printed."""
    command = [sys.executable, str(TESTS / "ranks.py"), "check"]
    both = [
        subprocess.Popen([*command, str(rank), str(place)], env=environment(), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    found = [torch.load(place / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    return [{**seen, "told": text} for seen, text in zip(found, told, strict=True)]


@pytest.fixture(scope="module")
def died(place) -> tuple[subprocess.CompletedProcess, Path]:
    """A run of the command line under torchrun whose rank 1 died; the folder is not to be written to: copy it."""
    folder = place / "died"
    options = ("--data", place / "data.npz", "--width", 2, "--epochs", 4, "--batch-size", 20, "--every", 1)
    ended = torchrun(TESTS / "ranks.py", "dies", "train", *options, "--precision", "float32", "--out", folder)
    return ended, folder


def assert_close(a: list[dict[str, Any]], b: list[dict[str, Any]], tolerance: float) -> None:
    """Every number of every snapshot, gradients and running statistics too, relative to the largest of its tensor."""
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"batch"}:
            mine, theirs = (d[key] if isinstance(d[key], dict) else {key: d[key]} for d in (one, two))
            for k, t in mine.items():
                assert float((t - theirs[k]).abs().max()) <= tolerance * max(1.0, float(t.abs().max())), (key, k)


def flat(snap: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One snapshot as one dict of tensors."""
    whole: dict[str, torch.Tensor] = {}
    for key, value in snap.items():
        named = value if isinstance(value, dict) else dict(enumerate(value if isinstance(value, list) else [value]))
        whole.update({f"{key}/{k}": t for k, t in named.items()})
    return whole


# --- parts of a batch, in one process


def test_alone_there_is_one_process():
    assert world() == World(0, 1, None)


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_without_norm_the_mean_over_parts_is_the_whole(parts):
    recipe = replace(RECIPES["no norm"], precision="float64", epochs=4)
    assert_close(trajectory(recipe), trajectory(recipe, parts=parts), 1e-12)


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("kind", ["resnet9", "plain8"])
def test_T_11_batch_norm_of_parts_is_ghost_norm(kind, parts):
    """The whole trajectory, running statistics too."""
    recipe = replace(RECIPES["batch"], net=dyn.Net(kind, width=2))
    ghost = replace(recipe, net=recipe.net.replace(norm="ghost", ghost_splits=parts))
    shared = trajectory(recipe, parts=parts)
    assert_close(shared, trajectory(ghost), 1e-12)
    assert largest_difference(shared[-1]["params"], trajectory(recipe)[-1]["params"]) > 1e-3


def test_one_part_is_the_plain_loop_bit_for_bit():
    recipe = replace(RECIPES["batch"], precision="float32")
    for one, plain in zip(trajectory(recipe, parts=1), trajectory(recipe), strict=True):
        assert_same(flat(one), flat(plain))


def test_statistics_that_nothing_moves_are_not_rounded():
    """(3 a) / 3 need not be a."""
    recipe = toy_recipe(net=dyn.Net("resnet9", width=2, norm="frozen"), batch_size=30)
    seen = trajectory(recipe, parts=3)
    assert_same(seen[0]["buffers"], seen[-1]["buffers"])


def test_counters_count_once_a_step():
    net = last(dyn.steps(toy_recipe(net=dyn.Net("helpers:dropout_net")), SPLIT, parts=4)).net
    assert int(net[1].num_batches_tracked) == 6


@pytest.mark.parametrize(
    ("recipe", "parts", "message"),
    [
        (toy_recipe(), 3, "3 processes cannot share a batch of 20 images: make batch_size a multiple"),
        (toy_recipe(), 0, "1 processes cannot share batches in 0 parts"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(recipe, parts, message):
    with pytest.raises(DynamicsError, match=message):
        dyn.steps(recipe, SPLIT, parts=parts)


def test_sync_norm_is_batch_norm_in_one_process():
    recipe = replace(RECIPES["batch"], precision="float32")
    sync = replace(recipe, net=dyn.Net("ranks:sync_net"))
    for given in ({}, {"parts": 2}):  # it knows no parts but those of processes
        for one, two in zip(trajectory(recipe), trajectory(sync, **given), strict=True):
            assert_same(flat(one), flat(two))
    assert sum(isinstance(m, SyncNorm) for m in sync_net(4, 0).modules()) == 8


# --- two processes


def test_both_processes_see_the_same_snapshots(ranks):
    a, b = ranks
    for name in RECIPES:
        for one, two in zip(a[name], b[name], strict=True):
            assert_same(flat(one), flat(two))


def test_T_11_gradients_of_two_processes_are_those_of_one(ranks):
    alone = trajectory(RECIPES["no norm"])
    for one, two in zip(ranks[0]["no norm"][:-1], alone[:-1], strict=True):
        mine, theirs = (torch.cat([g.flatten() for g in seen["grads"].values()]) for seen in (one, two))
        assert float((mine - theirs).norm()) <= 1e-6 * float(theirs.norm())
    assert_close(ranks[0]["no norm"], alone, 1e-6)


def test_T_11_batch_norm_of_two_processes_is_ghost_norm_with_two_splits(ranks):
    assert_close(ranks[0]["batch"], trajectory(replace(RECIPES["batch"], net=GHOST)), 1e-12)


def test_sync_norm_restores_the_run_of_one_process(ranks):
    alone = trajectory(RECIPES["batch"])
    assert_close(ranks[0]["sync"], alone, 1e-11)
    # and there is something to restore
    assert largest_difference(ranks[0]["batch"][-1]["params"], alone[-1]["params"]) > 1e-3


@pytest.mark.parametrize("name", ["no norm", "batch", "mixed"])
def test_two_processes_are_two_parts_in_one_bit_for_bit(ranks, name):
    """Adding two numbers does not depend on their order."""
    for one, two in zip(ranks[0][name], trajectory(RECIPES[name], parts=2), strict=True):
        assert_same(flat(one), flat(two))


def test_what_processes_cannot_share_is_refused_before_training(ranks):
    for seen in ranks:
        assert seen["refused"].keys() == {"batch", "ghost", "parts"}
        assert "2 processes cannot share a batch of 15 images" in seen["refused"]["batch"]
        assert "a batch of 10 images (of 2 processes each) into 4 equal parts" in seen["refused"]["ghost"]
        assert "2 processes cannot share batches in 3 parts" in seen["refused"]["parts"]


def test_rank_0_alone_writes_and_shows_progress_and_both_return_the_run(ranks, place):
    a, b = ranks
    assert "valid_accuracy" in a["told"] and b["told"] == ""
    assert_same(a["run"]["params"], b["run"]["params"])
    assert a["run"]["loss"] == b["run"]["loss"] and a["run"]["readings"] == b["run"]["readings"]
    run = dyn.load_run(place / "whole")
    assert (run.status, run.state.step) == ("finished", 12)
    assert sorted(p.name for p in (place / "whole").iterdir()) == [
        *(f"chunk-{s:08d}.safetensors" for s in (0, 3, 6, 9)), "chunk-00000012-end.safetensors", "run.json"
    ]  # fmt: skip


def test_the_processes_are_recorded(ranks, place):
    recorded = dyn.load_run(place / "whole").manifest["environment"]
    assert (recorded["world_size"], recorded["backend"], recorded["threads"]) == (2, "gloo", 1)
    alone = dyn.train(toy_recipe(epochs=1), SPLIT, progress=False).manifest["environment"]
    assert (alone["world_size"], alone["backend"]) == (1, None)


# --- torchrun


def assert_undisturbed(again: dyn.Run, place: Path) -> None:
    whole = dyn.load_run(place / "whole")
    assert again.recipe == whole.recipe == command_line_recipe()
    assert list(again.readings) == list(whole.readings)
    assert all(again[name].identical(whole[name]) for name in whole.readings)
    assert_same(again.state.params, whole.state.params)
    assert_same(again.state.buffers, whole.state.buffers)
    assert_same(again.state.opt["velocity"], whole.state.opt["velocity"])


def test_a_process_that_dies_ends_the_job_with_its_reason(died):
    ended, folder = died
    assert ended.returncode != 0
    assert "RuntimeError: a cosmic ray hit rank 1" in ended.stderr
    assert ended.stdout.count("training Net('resnet9', width=2) on 60 images") == 1
    assert "in 2 processes (gloo)" in ended.stdout and "finished" not in ended.stdout
    run = dyn.load_run(folder)
    assert (run.status, run.state.step) == ("running", 6)


def test_under_torchrun_it_resumes_to_the_end_of_an_undisturbed_run(ranks, died, place):
    folder = place / "resumed"
    shutil.copytree(died[1], folder)
    ended = torchrun("-m", "dynamics", "train", "--resume", folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("finished 12 steps") == 1
    assert_undisturbed(dyn.load_run(folder), place)


def test_in_one_process_it_resumes_to_the_same_end(ranks, died, place):
    folder = place / "alone"
    shutil.copytree(died[1], folder)
    with pytest.warns(UserWarning, match="world_size 2 then and 1 now"):
        again = dyn.resume(folder, progress=False)
    assert_undisturbed(again, place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dyn.resume(folder, progress=False).status == "finished"
