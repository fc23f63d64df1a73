from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import arrays, assert_same, dynamics, toy_recipe, toy_split

import dynamics as dyn
from dynamics import recipes, stats
from dynamics.cli.sweep import _in_words
from dynamics.sweeps import Samples

SWEEPS = sys.modules["dynamics.sweeps.sweep"]
PROCESSES = SWEEPS.LocalProcesses
TINY = ("--width", 2, "--batch-size", 20, "--epochs", 1, "--precision", "float32", "--workers", 1, "--threads", 1)


def done(*words: object) -> str:
    ended = dynamics(*words)
    assert ended.code == 0, ended
    return ended.out


def refused(*words: object) -> str:
    """The one line on stderr of a command that bad input ends with exit code 2."""
    ended = dynamics(*words)
    assert ended.code == 2 and not ended.out, ended
    assert ended.err.startswith("dynamics: ") and ended.err.count("\n") == 1, ended.err
    return ended.err


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    (images, labels), (test_images, test_labels) = arrays(40), arrays(20, seed=1)
    np.savez(path, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels)
    return path


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch) -> None:
    """Processes take seconds to start."""
    monkeypatch.setattr(SWEEPS, "LocalProcesses", lambda workers: ThreadPoolExecutor(workers))


@pytest.fixture(scope="module")
def store(npz, tmp_path_factory) -> Path:
    """Two recipes by three seeds; read only."""
    out = tmp_path_factory.mktemp("sweeps") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SWEEPS, "LocalProcesses", lambda workers: ThreadPoolExecutor(workers))
        done("sweep", "--data", npz, *TINY, "--vary", "optimizer.momentum=0.5,0.9", "--out", out)
    return out


# --- sweep


def test_a_sweep_prints_a_line_for_each_recipe_and_does_nothing_again(npz, store):
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    words = ("sweep", "--data", npz, *TINY, "--vary", "optimizer.momentum=0.5,0.9", "--out", store)
    header, first, second, _, told = done(*words).splitlines()
    assert header.split() == ["recipe", "n", "accuracy", "interval", "diverged", "failed"]
    table = dyn.load_sweep(store).table()
    for line, name in ((first, "momentum=0.5"), (second, "momentum=0.9")):
        interval = stats.mean_interval(100 * table.accuracy.sel(recipe=name).values)
        assert line.split() == [name, "3", f"{interval.mean:.2f}", f"{interval.low:.2f}", "to", f"{interval.high:.2f}"]
    assert told.endswith(f"kept in {store}")
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


def test_json_has_a_row_for_each_recipe(npz, store):
    words = ("sweep", "--data", npz, *TINY, "--vary", "optimizer.momentum=0.5,0.9", "--out", store, "--json")
    told = json.loads(done(*words))
    assert told["seeds"] == [0, 1, 2] and [r["recipe"] for r in told["recipes"]] == ["momentum=0.5", "momentum=0.9"]
    assert all(r["n"] == 3 and r["low"] <= r["accuracy"] <= r["high"] and not r["failed"] for r in told["recipes"])


def test_seeds_are_ranges_and_lists_and_recipes_may_be_several(npz, tmp_path):
    out = tmp_path / "out"
    words = ("--data", npz, *TINY, "--recipe", "baseline", "--recipe", "equilibrium", "--limit", 20, "--every", 1)
    done("sweep", *words, "--seeds", "7", "--out", out)
    found = dyn.load_sweep(out)
    assert found.names == ("baseline", "equilibrium") and found.seeds == (7,)
    run = found["equilibrium", 7]
    assert run.manifest["data"]["train"]["n"] == 20 and "norms" in run
    done("sweep", *words, "--seeds", "7,1-2", "--out", out)
    assert dyn.load_sweep(out).seeds == (7, 1, 2)


def test_the_command_works_with_processes_too(npz, store, tmp_path, monkeypatch):
    monkeypatch.setattr(SWEEPS, "LocalProcesses", PROCESSES)
    out = tmp_path / "out"
    done("sweep", "--data", npz, *TINY, "--vary", "optimizer.momentum=0.9", "--seeds", "2", "--out", out)
    ours, theirs = (dyn.load_sweep(folder)["momentum=0.9", 2] for folder in (out, store))
    assert_same(ours.weights, theirs.weights)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--vary", "optimizer.momentum"), "write optimizer.lr=0.1,0.2"),
        (("--vary", "optimizer.momentum="), "has no values, so the grid is empty"),
        (("--vary", "optimizer.momentun=0.5"), "did you mean 'momentum'"),
        (("--vary", "batch_size=5", "--vary", "batch_size=6"), "names one field twice"),
        (("--vary", "batch_size=20,20"), "twice"),
        (("--recipe", "baseline", "--recipe", "baseline"), "names one recipe twice"),
        (("--recipe", "basline"), "did you mean 'baseline'"),
        (("--seeds", "one"), "are not seeds"),
        (("--seeds", "3-1"), "there are no seeds"),
        (("--seeds", "0,1,0"), "the seed 0 is repeated"),
        (("--every", -1), "--every is a number of steps"),
        (("--workers", 0), "workers must be"),
        (("--dask", "127.0.0.1"), "no address of a dask scheduler"),
    ],
)
def test_a_sweep_without_sense_is_refused_in_one_line(npz, tmp_path, given, message):
    assert message in refused("sweep", "--data", npz, *TINY, "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_a_sweep_into_another_ones_folder_is_refused(npz, store):
    told = refused("sweep", "--data", npz, *TINY, "--vary", "optimizer.momentum=0.5,0.7", "--limit", 20, "--out", store)
    assert "whose train data are 40 images" in told and "20 images" in told


def test_failed_runs_are_told_with_their_reason_and_exit_code_1(npz, tmp_path):
    words = ("sweep", "--data", npz, *TINY, "--vary", "batch_size=20,999", "--seeds", "0", "--out", tmp_path / "out")
    ended = dynamics(*words)
    assert ended.code == 1 and "failed: batch_size=999, seed 0: " in ended.err and "batch_size=20" in ended.out
    assert dynamics(*words, "--retry").code == 1


def test_runs_that_diverge_are_counted_and_if_all_do_the_exit_code_is_3(npz, tmp_path, monkeypatch):
    hot = toy_recipe(optimizer=dyn.SGD(1e20), batch_size=20)
    monkeypatch.setattr(recipes, "RECIPES", {**recipes.RECIPES, "hot": hot, "mild": toy_recipe()})
    ended = dynamics("sweep", "--data", npz, "--recipe", "hot", "--seeds", "0", "--out", tmp_path / "one")
    assert ended.code == 3 and "every run's loss was not finite" in ended.err
    both = ("sweep", "--data", npz, "--recipe", "hot", "--recipe", "mild", "--seeds", "0", "--out", tmp_path / "two")
    table = done(*both).splitlines()
    assert table[1].split() == ["hot", "0", "1"] and table[2].split()[:2] == ["mild", "1"]


class Interrupted(ThreadPoolExecutor):
    """One run comes to its end; at the second, somebody presses Ctrl-C."""

    def submit(self, fn: Any, job: Any) -> Future:
        future: Future = Future()
        if job.recipe.seed == 0:
            future.set_result(fn(job))
        else:
            future.done = press
        return future


def press() -> bool:
    raise KeyboardInterrupt


def test_an_interrupted_sweep_says_in_one_line_that_the_same_command_goes_on_and_it_does(npz, tmp_path, monkeypatch):
    words = ("sweep", "--data", npz, *TINY, "--seeds", "0,1", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(SWEEPS, "LocalProcesses", Interrupted)
        ended = dynamics(*words)
    assert ended.code == 130 and not ended.out
    assert ended.err.splitlines()[-1] == "dynamics: interrupted; the same command goes on with the sweep"
    first = tmp_path / "out" / "baseline" / "seed-0"
    times = {p: p.stat().st_mtime_ns for p in first.iterdir()}
    assert set(dyn.load_sweep(tmp_path / "out").statuses.values()) == {"finished", "missing"}
    done(*words)
    assert set(dyn.load_sweep(tmp_path / "out").statuses.values()) == {"finished"}
    assert times == {p: p.stat().st_mtime_ns for p in first.iterdir()}


# --- compare


def test_recipes_are_compared_over_the_seeds_that_they_share(store):
    a, b = store / "momentum=0.5", store / "momentum=0.9"
    told = json.loads(done("compare", a, b, "--measure", "loss", "--json"))
    found = dyn.load_sweep(store)
    losses = [[float(found[n, s]["valid"].loss.values[-1]) for s in range(3)] for n in ("momentum=0.5", "momentum=0.9")]
    assert told["values"] == losses and told["seeds"] == [0, 1, 2] and told["n"] == 3 and told["images"] == 20
    twin = stats.paired_difference(*losses)
    assert told["difference"] == twin.mean and told["interval"] == [twin.low, twin.high] and told["p"] == twin.p
    assert told["better"] == ("a" if twin.mean < 0 else "b") and told["paired"] and told["units"] == "nat"
    lines = done("compare", a, b, "--measure", "loss").splitlines()
    assert lines[0].startswith(f"A: {a}: loss ") and lines[1].startswith(f"B: {b}: loss ")
    assert lines[2] == told["sentence"] and "told apart: " in lines[2] and "3 pairs of runs" in lines[2]


def test_one_pair_has_no_error_bar_and_one_line_says_so(store):
    a, b = store / "momentum=0.5" / "seed-0", store / "momentum=0.9" / "seed-0"
    *_, last = done("compare", a, b, "--measure", "loss").splitlines()
    assert last.startswith("not told apart: ") and "in 1 pair of runs, and one run has no error bar: run more" in last
    told = json.loads(done("compare", a, b, "--measure", "loss", "--json"))
    assert told["status"] == "inconclusive" and told["interval"] == [None, None] and told["more_runs"] is None


def test_a_margin_asks_whether_they_are_the_same_of_at_least_8_pairs(store, monkeypatch):
    words = ("compare", store / "momentum=0.5", store / "momentum=0.9", "--margin", 0.5)
    assert "equivalence needs at least 8 pairs, got 3: run 5 more seeds" in refused(*words)
    ours = [0.9 + 0.001 * i for i in range(8)]
    near = Samples(ours, [v + 0.001 * (-1) ** i for i, v in enumerate(ours)], tuple(range(8)), "accuracy", 20)
    monkeypatch.setattr("dynamics.sweeps.samples", lambda *arms, **given: near)
    told = json.loads(done(*words, "--json"))
    assert told["status"] == "supported" and "are the same within ±0.5 points" in told["sentence"] and told["n"] == 8


def test_seeds_of_one_side_alone_are_named_and_unpaired_takes_them_all(npz, store, tmp_path):
    alone = tmp_path / "alone"
    done("sweep", "--data", npz, *TINY, "--vary", "optimizer.momentum=0.7", "--seeds", "2-4", "--out", alone)
    out = done("compare", alone, store / "momentum=0.5")
    assert "   not paired: seed 3, 4" in out and "   not paired: seed 0, 1" in out and "1 pair of runs" in out
    free = done("compare", alone, store / "momentum=0.5", "--unpaired", "--measure", "loss")
    assert "3 and 3 runs" in free and "not paired" not in free


def test_what_cannot_be_compared_is_refused_with_the_difference_named(npz, store, tmp_path):
    a = store / "momentum=0.5"
    assert "are one folder" in refused("compare", a, a)
    assert "a sweep of several recipes" in refused("compare", a, store)
    assert "neither a run nor a recipe" in refused("compare", a, tmp_path)
    assert "unknown measure" in refused("compare", a, store / "momentum=0.9", "--measure", "acuracy")
    assert "has no average_loss" in refused("compare", a, store / "momentum=0.9", "--measure", "average_loss")
    split, valid = dyn.load_data(str(npz))
    for name, (recipe, train) in {
        "width": (toy_recipe(epochs=1, net=dyn.Net("resnet9", width=3)), split),
        "epochs": (toy_recipe(epochs=2), split),
        "data": (toy_recipe(epochs=1), split[:20]),
    }.items():
        dyn.train(recipe, train, valid, out=tmp_path / name, progress=False)
        told = refused("compare", a, tmp_path / name)
        assert f"differ in {name}" in told and f"across={name}" in told
        assert "1 pair of runs" in done("compare", a, tmp_path / name, "--across", name)
    dyn.train(toy_recipe(epochs=1), split, toy_split(20, seed=2, like=split), out=tmp_path / "other", progress=False)
    assert "different validation images" in refused("compare", a, tmp_path / "other")


def test_runs_that_diverged_are_left_out_and_named(npz, store, tmp_path):
    hot = replace(toy_recipe(epochs=1), optimizer=dyn.SGD(1e20))
    split, valid = dyn.load_data(str(npz))
    for seed, recipe in ((0, toy_recipe(epochs=1)), (1, hot)):
        dyn.train(recipe, split, valid, seed=seed, out=tmp_path / "arm" / f"seed-{seed}", progress=False)
    assert "   left out: seed 1 (diverged)" in done("compare", tmp_path / "arm", store / "momentum=0.5")
    assert "has no finished run (diverged)" in refused(
        "compare", tmp_path / "arm" / "seed-1", store / "momentum=0.5" / "seed-1"
    )


# twins of the words, from numbers that are known

HIGH, LOW = [94.1, 94.3, 94.0, 94.4], [93.5, 93.8, 93.3, 93.9]
WEAK = [94.1, 93.7, 94.2, 94.0]


@pytest.mark.parametrize(
    ("a", "b", "better", "units", "words"),
    [
        (HIGH, LOW, "A", "points", "told apart: A is better by 0.575 points (95 %: 0.423 to 0.727, p = 0.0012, N)"),
        (LOW, HIGH, "B", "points", "told apart: B is better by 0.575 points (95 %: 0.423 to 0.727, p = 0.0012, N)"),
        (
            [1.2],
            [1.5],
            "A",
            "nat",
            "not told apart: A is better by 0.3 nat in N, and one run has no error bar: run more",
        ),
        ([1.2], [1.2], None, "nat", "not told apart: they are equal on average in N, and one run has no error bar"),
        (
            [2.0, 3.0],
            [1.0, 2.0],
            "A",
            "points",
            "not told apart: A is better by 1 points in N; all differences are",
        ),
    ],
)
def test_a_verdict_says_which_is_better_by_how_much_and_whether_it_can_be_told(a, b, better, units, words):
    assert _in_words(stats.compare(a, b, units=units), better, units, "N").startswith(words)


def test_a_verdict_that_is_open_says_how_many_more_seeds_it_would_take():
    verdict = stats.compare(HIGH, WEAK, units="points")
    words = _in_words(verdict, "A", "points", "4 pairs of runs")
    twin = stats.paired_difference(HIGH, WEAK)
    assert words.startswith(f"not told apart: A is better by {twin.mean:.3g} points (95 %: {twin.low:.3g} to ")
    assert verdict.more_runs > 0 and f"; about {verdict.more_runs} more pairs would tell" in words
    turned = _in_words(stats.compare(WEAK, HIGH, units="points"), "B", "points", "4 pairs of runs")
    assert turned == words.replace("A is better", "B is better")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
