from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    assert_same,
    first,
    k_step_angle,
    killed_probes,
    killed_recipe,
    last,
    toy_recipe,
    toy_split,
)

import dynamics as dyn
from dynamics.errors import DynamicsError

TRAIN = toy_split()
VALID = toy_split(20, seed=1, like=TRAIN)
STANDARD = {"norms", "angles", "gradients", "effective_lr", "batchnorm"}
SCHEDULE = dyn.PiecewiseLinear((0, 1, 4), (0.01, 0.1, 0.0))
RECIPE = toy_recipe(
    optimizer=dyn.SGD(SCHEDULE, nesterov=True, weight_decay=5e-3, groups=(dyn.Group("*.bias", 4.0, 0.0),)), epochs=4
)
PROBES = {**dyn.standard(1), "turn": dyn.every(2, k_step_angle), "late": dyn.at([7, 12], dyn.weight_norms)}


def train(recipe=RECIPE, train=TRAIN, valid=None, **given) -> dyn.Run:
    return dyn.train(recipe, train, valid, progress=False, **given)


def resume(folder, train=TRAIN, valid=VALID, *, probes=None, **given) -> dyn.Run:
    probes = {"turn": PROBES["turn"]} if probes is None else probes
    return dyn.resume(folder, train, valid, probes=probes, progress=False, **given)


def assert_identical(a: dyn.Run, b: dyn.Run) -> None:
    """Bitwise equality of everything that two runs recorded."""
    assert a.recipe == b.recipe and a.status == b.status and a.diverged_at == b.diverged_at
    assert a.state.step == b.state.step
    assert list(a.readings) == list(b.readings)
    for name in a.readings:
        assert a[name].identical(b[name]), name
    assert_same(a.state.params, b.state.params)
    assert_same(a.state.buffers, b.state.buffers)
    assert (a.state.opt is None) == (b.state.opt is None)
    for k, v in (a.state.opt or {}).items():
        assert_same(v, b.state.opt[k])
    assert a.state.carries.keys() == b.state.carries.keys()
    for k, v in a.state.carries.items():
        assert_same(v, b.state.carries[k])


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of 12 steps in chunks of 5, with every probe. Not to be written to: copy it."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    train(valid=VALID, probes=PROBES, out=path, chunk_steps=5)
    return path


@pytest.fixture(scope="module")
def run(folder) -> dyn.Run:
    return dyn.load_run(folder)


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# --- what a run records


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("net", ["resnet9", "dropout"])
def test_probes_never_change_a_trajectory(precision, net):
    net = {"resnet9": dyn.Net("resnet9", width=2), "dropout": dyn.Net("helpers:dropout_net")}[net]
    recipe = replace(RECIPE, precision=precision, net=net)
    probes = {k: p for k, p in PROBES.items() if k != "turn"}
    probed, bare = train(recipe, valid=VALID, probes=probes), train(recipe)
    assert_same(probed.state.params, bare.state.params)
    assert_same(probed.state.buffers, bare.state.buffers)
    assert_same(probed.state.opt["velocity"], bare.state.opt["velocity"])
    assert probed["train"].identical(bare["train"])
    plain = last(dyn.steps(recipe, TRAIN))
    assert_same(bare.state.params, {k: p.clone() for k, p in plain.params.items()})


def test_same_recipe_same_run(run):
    again = train(valid=VALID, probes=PROBES, chunk_steps=7)
    assert_identical(again, run)


def test_which_steps_are_read(run):
    assert set(run.readings) == {"train", "hyperparameters", "valid", *PROBES}
    everywhere, before_updates = list(range(13)), list(range(12))
    steps = {name: run[name].step.values.tolist() for name in run.readings}
    for name in ("norms", "batchnorm"):  # of weights and buffers alone: the last snapshot too
        assert steps[name] == everywhere
    for name in ("train", "hyperparameters", "angles", "gradients", "effective_lr"):
        assert steps[name] == before_updates
    assert steps["turn"] == [0, 2, 4, 6, 8, 10, 12]
    assert steps["late"] == [7, 12]
    assert steps["valid"] == [3, 6, 9, 12]
    assert run.checkpoints == (0, 5, 10, 12)


def test_readings_are_those_of_the_steps(run):
    """Each recorded value is the one that the measurement returns at that step, read by hand in a plain loop."""
    probes = {k: p.measure for k, p in PROBES.items() if k in STANDARD}
    for snap in dyn.steps(RECIPE, TRAIN):
        for name, measure in probes.items():
            if snap.updates is None and name not in ("norms", "batchnorm"):
                continue
            recorded = run[name].sel(step=snap.step)
            for key, value in measure(snap).items():
                if isinstance(value, tuple) and isinstance(value[1], torch.Tensor):
                    assert recorded[key].dims == tuple(value[0])
                    np.testing.assert_array_equal(recorded[key].values, value[1].numpy(), err_msg=f"{name} {key}")
        if snap.updates is not None:
            assert float(run["train"].loss.sel(step=snap.step)) == float(snap.loss)
            assert float(run["train"].epoch.sel(step=snap.step)) == snap.step / 3
        elif snap.step:
            assert_same({k: p.clone() for k, p in snap.params.items()}, run.weights)


def test_validation_is_that_of_evaluate(run):
    for snap in dyn.steps(RECIPE, TRAIN):
        if snap.step and snap.step % 3 == 0:
            scored = dyn.evaluate(snap, VALID, precision="float32")
            read = run["valid"].sel(step=snap.step)
            assert (float(read.loss), float(read.accuracy)) == (scored.loss, scored.accuracy)


def test_hyperparameters_in_force_are_recorded_by_group_and_step(run):
    given = run["hyperparameters"]
    assert given.group.values.tolist() == ["*.bias", "default"]
    lr = np.array([SCHEDULE((t + 1) / 3) for t in range(12)])
    np.testing.assert_array_equal(given["lr"].values, np.stack([4 * lr, lr], 1))
    assert given["lr"].values[-1].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(given["weight_decay"].values, np.tile([0.0, 5e-3], (12, 1)))
    np.testing.assert_array_equal(given["momentum"].values, 0.9)
    np.testing.assert_array_equal(given["nesterov"].values, 1.0)
    group_of = dict(zip(given.parameter.values.tolist(), given.group_of.values.tolist(), strict=True))
    assert set(group_of) == set(run.weights)
    assert {k for k, g in group_of.items() if g == 0} == {k for k in run.weights if k.endswith(".bias")}


def test_labels_and_units(run):
    angles = run["angles"]
    assert angles.angle.attrs["units"] == "rad"
    of_one = angles.filter_angle.where(angles.filter_layer == "layer1.conv", drop=True)
    assert of_one.sizes["filter"] == 4 and of_one.filter_channel.values.tolist() == [0, 1, 2, 3]
    assert angles.angle.sel(layer="linear").dims == ("step",)
    assert angles.live.dtype == bool


def test_a_run_without_norms_has_no_channels():
    recipe = toy_recipe(net=dyn.Net("resnet9", width=2, norm="none"), epochs=1, optimizer=dyn.SGD(0.001))
    read = train(recipe, probes=dyn.standard(1))["batchnorm"]
    assert read.scale.shape == (4, 0)


def test_no_epochs(tmp_path):
    run = train(toy_recipe(epochs=0), valid=VALID, probes=dyn.standard(1), out=tmp_path / "r")
    assert (run.status, run.state.step) == ("finished", 0)
    assert run["norms"].step.values.tolist() == [0]
    assert_identical(dyn.load_run(tmp_path / "r"), run)
    assert_identical(train(toy_recipe(epochs=0), valid=VALID, probes=dyn.standard(1)), run)


def test_weights_are_on_the_cpu_and_a_runs_own(run):
    kept = train(toy_recipe(epochs=1), chunk_steps=1)
    states = [kept.state_at(s) for s in kept.checkpoints]
    assert [s.step for s in states] == [0, 1, 2, 3]
    pointers = [t.data_ptr() for s in states for t in [*s.params.values(), *s.buffers.values()]]
    assert len(set(pointers)) == len(pointers)
    for snap in dyn.steps(toy_recipe(epochs=1), TRAIN):
        assert_same(states[snap.step].params, {k: p.clone() for k, p in snap.params.items()})
        assert_same(states[snap.step].buffers, {k: b.clone() for k, b in snap.buffers.items()})


def test_seed_replaces_the_recipes():
    a = train(toy_recipe(epochs=1), seed=5)
    assert a.recipe == toy_recipe(epochs=1, seed=5)
    assert_identical(a, train(toy_recipe(epochs=1, seed=5)))


def test_without_gradients_around():
    """train in somebody's no_grad block is the same training."""
    with torch.no_grad():
        inside = train(toy_recipe(epochs=1), probes=dyn.standard(1))
    assert_identical(inside, train(toy_recipe(epochs=1), probes=dyn.standard(1)))


# --- a probe of the user's


def test_a_probe_in_four_lines():
    def bias_sum(snap):
        return {"sum": sum(p.sum() for k, p in snap.params.items() if k.endswith("bias")), "n": snap.step}

    read = train(probes={"mine": dyn.every(4, bias_sum)})["mine"]
    assert read.step.values.tolist() == [0, 4, 8]
    assert read["sum"].dims == ("step",) and read["n"].values.tolist() == [0, 4, 8]


def test_readings_may_be_live_views():
    """A probe that simply returns a weight gets what it was, not what it became."""

    @dyn.reads("params", "buffers")
    def raw(snap):
        return {
            "scale": (("channel",), snap.params["prep.norm.weight"], {}),
            "mean": (("channel",), snap.buffers["prep.norm.running_mean"], {}),
            "net": (("channel",), snap.net.prep.norm.bias),
            "one": snap.params["prep.norm.weight"][0],
        }

    run = train(probes={"raw": dyn.every(1, raw), "bn": dyn.every(1, dyn.batchnorm)})
    bn = run["bn"].where(run["bn"].channel_layer == "prep.norm", drop=True)
    np.testing.assert_array_equal(run["raw"]["scale"].values, bn["scale"].values)
    np.testing.assert_array_equal(run["raw"]["net"].values, bn["bias"].values)
    np.testing.assert_array_equal(run["raw"]["mean"].values, bn["running_mean"].values)
    np.testing.assert_array_equal(run["raw"]["one"].values, bn["scale"].values[:, 0])
    assert run["raw"]["scale"].values.std(0).min() > 0


def test_a_carry_may_be_a_live_view():
    @dyn.reads("params")
    def moved(snap, carry):
        w = snap.params["linear.weight"]
        return {"distance": (w - w if carry is None else w - carry["w"]).norm()}, {"w": w}

    run = train(probes={"moved": dyn.every(3, moved)})
    expected, before = [0.0], None
    for snap in dyn.steps(RECIPE, TRAIN):
        if snap.step % 3 == 0:
            w = snap.params["linear.weight"].clone()
            expected += [] if before is None else [float((w - before).norm())]
            before = w
    assert run["moved"].distance.values.tolist() == expected


def test_a_carry_of_a_probe(run):
    """The twin of the k-step angle, in float64."""
    kept, expected = None, []
    for snap in dyn.steps(RECIPE, TRAIN):
        if snap.step % 2 == 0:
            w = snap.params["linear.weight"].flatten().double().clone()
            expected.append(0.0 if kept is None else float(torch.acos(w @ kept / w.norm() / kept.norm())))
            kept = w
    np.testing.assert_allclose(run["turn"].angle.values[1:], expected[1:], rtol=1e-4)
    torch.testing.assert_close(run.state.carries["turn"]["w"].double(), kept / kept.norm(), rtol=1e-6, atol=1e-7)


def counts_beginnings(snap, carry):
    """Whether this is the first call, told by the carry alone."""
    return {"first": float(carry is None)}, {}


def test_an_empty_carry_is_not_a_beginning(tmp_path):
    probes = {"mine": dyn.every(1, counts_beginnings)}
    whole = train(probes=probes, out=tmp_path / "r", chunk_steps=5)
    for path in chunks(tmp_path / "r")[2:]:
        path.unlink()
    assert_identical(resume(tmp_path / "r", valid=None, probes=probes), whole)


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("carry", [None, {"a": None}, {"count": 3}, [1, 2], {"w": [torch.zeros(2)]}])
def test_a_carry_that_cannot_be_kept_is_refused_or_kept(carry, out, tmp_path):
    """Either way, and on disk as in memory; None, the beginning, is kept."""

    def probe(snap, remembered):
        return {"x": 1.0}, carry

    given = {"probes": {"mine": dyn.every(1, probe)}, "chunk_steps": 5, **({"out": tmp_path / "r"} if out else {})}
    if carry is None:
        assert train(**given)["mine"].step.size == 12
    else:
        with pytest.raises(DynamicsError, match=r"mine.*must be \(dicts of\) tensors"):
            train(**given)


def cheat_weight(snap):
    snap.params["linear.weight"].mul_(1.001)
    return {"x": 1.0}


def cheat_forward(snap):
    return {"x": snap.net(snap.batch.x).mean().detach()}


def cheat_eval(snap):
    snap.net.eval()
    return {"x": 1.0}


def cheat_gradient(snap):
    snap.updates["linear.weight"].zero_()
    return {"x": 1.0}


@dyn.reads("params", "opt")
def cheat_velocity(snap):
    snap.state.opt["velocity"]["linear.weight"].zero_()
    return {"x": 1.0}


@pytest.mark.parametrize("cheat", [cheat_weight, cheat_forward, cheat_eval, cheat_gradient, cheat_velocity])
def test_a_probe_that_changes_the_run_is_named(cheat):
    with pytest.raises(DynamicsError, match="the probe 'mine' changed"):
        train(probes={"norms": dyn.every(1, dyn.weight_norms), "mine": dyn.every(1, cheat)})


def test_a_probe_may_evaluate_the_net():
    def valid_loss(snap):
        return {"loss": dyn.evaluate(snap, VALID, precision="float32").loss}

    probed, bare = train(probes={"mine": dyn.every(1, valid_loss)}), train()
    assert_same(probed.state.buffers, bare.state.buffers)
    assert_same(probed.weights, bare.weights)


def no_reading(snap):
    return None


def number(snap):
    return 3.0


def wrong_dims(snap):
    return {"w": (("layer",), snap.params["linear.weight"])}


def steps_of_its_own(snap):
    return {"step": snap.step, "x": 1.0}


def changing_shape(snap):
    return {"x": (("n",), torch.zeros(1 + snap.step))}


def changing_names(snap):
    return {"x": 1.0, "late": 2.0} if snap.step > 6 else {"x": 1.0}


def changing_coordinate(snap):
    return {"n": [0, 1 + snap.step // 7], "x": (("n",), torch.zeros(2))}


@pytest.mark.parametrize("chunk_steps", [1, 5, 250])
@pytest.mark.parametrize(
    "measure",
    [no_reading, number, wrong_dims, steps_of_its_own, changing_shape, changing_names, changing_coordinate],
)
def test_readings_that_cannot_be_recorded_are_refused_by_name(measure, chunk_steps):
    with pytest.raises(DynamicsError, match="probe 'mine'"):
        train(probes={"mine": dyn.every(1, measure)}, chunk_steps=chunk_steps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_readings_of_any_dtype(dtype, tmp_path):
    def measure(snap):
        return {"x": (("n",), torch.tensor([0.0, 1.0, 1.0]).to(dtype))}

    for given in ({}, {"out": tmp_path / "r"}):
        read = train(toy_recipe(epochs=1), probes={"mine": dyn.every(1, measure)}, **given)["mine"]
        np.testing.assert_array_equal(read.x.values.astype(float), [[0, 1, 1]] * 3)


@pytest.mark.parametrize("out", [False, True])
def test_numpy_numbers_in_labels_and_attributes(out, tmp_path):
    def measure(snap):
        n = (("n",), [np.int64(3), np.int64(4)])
        return {"n": n, "x": (("n",), torch.ones(2), {"eps": np.float32(0.5)}), "y": np.float32(2)}

    probes = {"mine": dyn.every(1, measure)}
    read = train(toy_recipe(epochs=1), probes=probes, **({"out": tmp_path / "r"} if out else {}))["mine"]
    assert read.n.values.tolist() == [3, 4] and read.x.attrs["eps"] == 0.5 and read.y.values.tolist() == [2, 2, 2]


def test_validation_data_of_other_classes_are_refused_before_training(tmp_path):
    with pytest.raises(DynamicsError, match="classes"):
        train(valid=toy_split(20, classes=10), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ({"valid": dyn.every(1, dyn.angles)}, "a probe cannot be called 'valid'"),
        ({"train": dyn.every(1, dyn.angles)}, "a probe cannot be called 'train'"),
        ({"hyperparameters": dyn.every(1, dyn.angles)}, "a probe cannot be called 'hyperparameters'"),
        ({"a/b": dyn.every(1, dyn.angles)}, "a probe cannot be called 'a/b'"),
        ({"angles": dyn.angles}, "the probe 'angles' has no schedule: write every(10, angles)"),
    ],
)
def test_bad_probes(probes, message, tmp_path):
    with pytest.raises(DynamicsError) as error:
        train(probes=probes, out=tmp_path / "r")
    assert message in str(error.value) and not (tmp_path / "r").exists()


def test_readings_that_are_not_there(run):
    with pytest.raises(DynamicsError, match=r"unknown reading 'angels': did you mean 'angles'.*pass probes="):
        run["angels"]
    with pytest.raises(DynamicsError, match="no 'valid' readings in this run: pass a validation split"):
        train(toy_recipe(epochs=0))["valid"]
    with pytest.raises(DynamicsError, match="the probe 'mine' was never due in this run"):
        train(toy_recipe(epochs=0), probes={"mine": dyn.at([5], dyn.weight_norms)})["mine"]
    assert "angles" in run and "angels" not in run


# --- divergence


@pytest.mark.parametrize("out", [False, True])
def test_divergence_is_kept_and_marked(out, tmp_path):
    recipe = toy_recipe(net=dyn.Net("resnet9", width=2, norm="none"), optimizer=dyn.SGD(1e4, momentum=0.9), epochs=20)
    given = {"out": tmp_path / "r"} if out else {}
    run = train(recipe, valid=VALID, probes=dyn.standard(1), chunk_steps=4, **given)
    loss = run["train"].loss.values
    assert run.status == "diverged" and 0 < run.diverged_at < 60
    assert run.diverged_at == np.flatnonzero(~np.isfinite(loss))[0] == len(loss) - 1
    assert f"diverged at step {run.diverged_at}" in repr(run)
    assert run["norms"].step.values.tolist() == list(range(run.diverged_at + 1))
    if out:
        assert_identical(dyn.load_run(tmp_path / "r"), run)
        assert_identical(resume(tmp_path / "r", probes={}), run)


# --- the folder


def test_a_folder_reads_as_the_run_in_memory(run):
    assert_identical(train(valid=VALID, probes=PROBES, chunk_steps=5), run)


def test_save_load_save(folder, run, tmp_path):
    run.save(tmp_path / "a")
    assert files(tmp_path / "a") == files(folder)
    dyn.load_run(tmp_path / "a").save(tmp_path / "b")
    assert files(tmp_path / "b") == files(folder)
    memory = train(valid=VALID, probes=PROBES, chunk_steps=5)
    memory.save(tmp_path / "c")
    assert files(tmp_path / "c").keys() == files(folder).keys()
    assert_identical(dyn.load_run(tmp_path / "c"), run)
    dyn.load_run(tmp_path / "c").save(tmp_path / "d")
    assert files(tmp_path / "d") == files(tmp_path / "c")


def test_state_at(run):
    for step in run.checkpoints:
        assert run.state_at(step).step == step
    with pytest.raises(DynamicsError, match="no state was kept at step 6: choose one of 0, 5, 10, 12"):
        run.state_at(6)


def test_fork(run):
    """From a kept state with the same recipe: the same end. With another optimizer: another."""
    same = train(start=run.state_at(5), valid=VALID, probes=PROBES)
    assert_same(same.weights, run.weights)
    for name in ("norms", "train", "valid", "turn"):
        assert same[name].identical(run[name].sel(step=slice(5, None))), name
    fork = train(replace(RECIPE, optimizer=dyn.SGD(0.3, 0.0)), start=replace(run.state_at(5), opt=None))
    assert fork.state.step == 12 and fork["train"].step.values.tolist() == list(range(5, 12))
    with pytest.raises(DynamicsError, match="opt=None"):
        train(replace(RECIPE, optimizer=dyn.SGD(0.3, 0.0)), start=run.state_at(5))
    with pytest.raises(DynamicsError, match="the start is at step 5, but the recipe ends at 3: raise its epochs"):
        train(replace(RECIPE, epochs=1), start=run.state_at(5))


def test_evaluate_a_run(run):
    scored = dyn.evaluate(run, VALID, precision="float32")
    assert scored.loss == pytest.approx(float(run["valid"].loss[-1]), rel=1e-6)
    assert scored.accuracy == float(run["valid"].accuracy[-1])


def test_the_folder_exists(folder, tmp_path):
    before = files(folder)
    with pytest.raises(DynamicsError, match="exists already: choose another folder, or continue that run with resume"):
        train(out=folder)
    assert files(folder) == before
    (tmp_path / "empty").mkdir()
    assert train(toy_recipe(epochs=1), out=tmp_path / "empty").status == "finished"
    (tmp_path / "file").write_text("")
    with pytest.raises(DynamicsError, match="exists already"):
        train(out=tmp_path / "file")


def test_not_a_run(tmp_path):
    with pytest.raises(DynamicsError, match=r"is not a run folder \(no run.json in it\)"):
        dyn.load_run(tmp_path)
    with pytest.raises(DynamicsError, match="is not a run folder"):
        resume(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', '{"format": 1}', '{"format": 1, "recipe": {}}'])
def test_a_damaged_manifest(copied, text):
    (copied / "run.json").write_text(text)
    for read in (dyn.load_run, resume):
        with pytest.raises(DynamicsError):
            read(copied)


def test_a_newer_format_is_refused(copied):
    manifest = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**manifest, "format": manifest["format"] + 1}))
    for read in (dyn.load_run, resume):
        with pytest.raises(DynamicsError, match="has format 2, this version reads up to 1: pip install --upgrade"):
            read(copied)


def chunks(folder: Path) -> list[Path]:
    return sorted(folder.glob("chunk-*.safetensors"))


@pytest.mark.parametrize("damage", ["cut", "empty", "overwritten"])
@pytest.mark.parametrize("which", [1, -1])
def test_a_damaged_chunk_is_named(copied, damage, which):
    path = chunks(copied)[which]
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "overwritten": b"x" * len(data)}[damage])
    with pytest.raises(DynamicsError, match=rf"{path.name} is damaged"):
        dyn.load_run(copied)
    if which == -1:  # the message's advice works
        path.unlink()
        resume(copied)


def test_a_chunk_lost_from_the_middle_is_noticed(copied):
    """Its readings cannot be made again from a later state: a hole must not pass for a run."""
    chunks(copied)[1].unlink()
    for read in (dyn.load_run, resume):
        with pytest.raises(DynamicsError, match="chunk"):
            read(copied)


def test_no_chunks(copied):
    for path in chunks(copied):
        path.unlink()
    for read in (dyn.load_run, resume):
        with pytest.raises(DynamicsError, match="lost its chunks"):
            read(copied)


def full_disk(*args, **given):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(tmp_path, monkeypatch):
    path, written = tmp_path / "r", []
    real = os.replace

    def fails_late(a, b):
        written.append(b)
        return real(a, b) if len(written) <= 4 else full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails_late)
        with pytest.raises(DynamicsError, match=r"no space left to write .*free some, then resume") as error:
            train(valid=VALID, probes=PROBES, out=path, chunk_steps=5)
    assert "\n" not in str(error.value)
    assert [p.name for p in sorted(path.iterdir())] == [
        "chunk-00000000.safetensors", "chunk-00000005.safetensors", "run.json",
    ]  # fmt: skip
    partial = dyn.load_run(path)
    assert partial.status == "running" and partial["train"].step.values.tolist() == list(range(5))
    assert_identical(resume(path), train(valid=VALID, probes=PROBES))


def test_a_full_disk_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(DynamicsError, match="no space left"):
        train(out=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DynamicsError, match=r"cannot write .*choose a folder that you may write to"):
        train(out=tmp_path / "file" / "r")


# --- resume


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_a_resumed_run_is_the_undisturbed_run(folder, copied, run, keep):
    """From the very beginning, from within an epoch, and after the end; files too are the same."""
    for path in chunks(copied)[keep:]:
        path.unlink()
    assert dyn.load_run(copied).status == ("finished" if keep == 4 else "running")
    torch.manual_seed(keep)
    assert_identical(resume(copied), run)
    assert files(copied) == files(folder)


@pytest.mark.parametrize("steps", [1, 2, 3, 12, 100])
def test_any_length_of_chunks(tmp_path, run, steps):
    whole = train(valid=VALID, probes=PROBES, out=tmp_path / "r", chunk_steps=steps)
    assert_identical(whole, run)
    paths = chunks(tmp_path / "r")
    for path in paths[(len(paths) + 1) // 2 :]:
        path.unlink()
    assert_identical(resume(tmp_path / "r"), run)


def test_a_resumed_fork(tmp_path, run):
    fork = train(start=run.state_at(5), valid=VALID, probes=PROBES, out=tmp_path / "r", chunk_steps=3)
    assert fork.checkpoints == (5, 6, 9, 12)
    for path in chunks(tmp_path / "r")[1:]:
        path.unlink()
    assert_identical(resume(tmp_path / "r"), fork)


def test_a_start_without_optimizer_state_is_kept_so(tmp_path, run):
    start = replace(run.state_at(5), opt=None)
    fork = train(start=start, out=tmp_path / "r", chunk_steps=3)
    for path in chunks(tmp_path / "r")[1:]:
        path.unlink()
    assert_identical(resume(tmp_path / "r", valid=None, probes={}), fork)


def test_other_data_are_refused(copied):
    chunks(copied)[-1].unlink()
    images = TRAIN.images.clone()
    images[0, 0, 0, 0] ^= 1
    other = dyn.Split.from_arrays(images, TRAIN.labels, like=TRAIN)
    before = files(copied)
    with pytest.raises(DynamicsError, match="the train data are not those that this run began with"):
        resume(copied, other)
    with pytest.raises(DynamicsError, match="the valid data are not those"):
        resume(copied, TRAIN, VALID[:10])
    with pytest.raises(DynamicsError, match="the valid data are not those"):
        resume(copied, TRAIN, None)
    with pytest.raises(DynamicsError, match=r"data cannot be found again.*resume"):
        resume(copied, None, None)
    assert files(copied) == before


def test_other_probes_are_refused(copied):
    chunks(copied)[-1].unlink()
    with pytest.raises(DynamicsError, match=r"the probe 'turn' of this run is not one of the package's"):
        resume(copied, probes={})
    with pytest.raises(DynamicsError, match="this run has no probe 'more'"):
        resume(copied, probes={"turn": PROBES["turn"], "more": dyn.every(1, dyn.angles)})
    # another schedule would leave a reading that is not what the manifest says
    with pytest.raises(DynamicsError, match="the probe 'turn'"):
        resume(copied, probes={"turn": dyn.every(5, k_step_angle)})


def test_what_a_killed_process_left_behind_goes(folder, copied):
    chunks(copied)[-1].unlink()
    (copied / ".chunk-00000012-end.safetensors.12345").write_bytes(b"half a chunk")
    resume(copied)
    assert files(copied) == files(folder)


def test_resuming_elsewhere_warns(copied):
    chunks(copied)[-1].unlink()
    manifest = json.loads((copied / "run.json").read_text())
    manifest["environment"]["torch"] = "0.4"
    (copied / "run.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="torch 0.4 then and .* now.*agree to rounding only"):
        resume(copied)


def test_resuming_here_does_not_warn(copied):
    chunks(copied)[-1].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(copied)


def test_runs_from_before_there_were_several_processes_go_on(folder, copied):
    """Their manifests do not tell how many there were."""
    chunks(copied)[-1].unlink()
    manifest = json.loads((copied / "run.json").read_text())
    for key in ("world_size", "backend"):
        del manifest["environment"][key]
    (copied / "run.json").write_text(json.dumps(manifest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = resume(copied)
    assert_same(again.state.params, dyn.load_run(folder).state.params)


def test_killed_runs(tmp_path):
    """SIGKILL at three moments (fixed seed), each resumed by a new process; the end is that of a run left alone."""
    path, moments = tmp_path / "r", random.Random(7)
    command = [sys.executable, "-c", "import sys, helpers; helpers.train_or_resume(sys.argv[1])", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(dyn.__file__).parents[1]), *sys.path])}
    done = 0
    for _ in range(3):
        wanted = done + moments.randint(1, 12)
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while len(chunks(path)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        partial = dyn.load_run(path)  # whatever the moment, what is there can be read
        assert partial.status == "running" and len(partial.checkpoints) >= wanted
        done = len(partial.checkpoints)
    resumed = resume(path, probes={"turn": killed_probes()["turn"]})
    assert_identical(resumed, train(killed_recipe(), valid=VALID, probes=killed_probes()))


# --- predict


@pytest.fixture(scope="module")
def predicted() -> tuple[dyn.Run, object]:
    """Constant lr, a decay that is felt within the run, and labels of noise, whose gradients never agree for long."""
    draw = np.random.RandomState(0)
    split = dyn.Split.from_arrays(draw.randint(0, 256, (2000, 8, 8, 3)).astype(np.uint8), draw.randint(0, 10, 2000))
    recipe = toy_recipe(net=dyn.Net("resnet9", width=4), optimizer=dyn.SGD(0.1, 0.9, weight_decay=5e-3), epochs=3)
    run = train(recipe, split, probes=dyn.standard(1))
    return run, dyn.predict(run)


def test_predicted_norms(predicted):
    run, theory = predicted
    convs = [name for name in run["norms"].layer.values if name.endswith("conv")]
    measured = run["norms"].norm.sel(step=theory.step, layer=convs)
    off = abs(measured / theory["norm"].sel(layer=convs) - 1).max("step")
    assert float(off.max()) < 0.03, off.values
    # which says something: the norms fell a long way, and less than decay alone would have them fall
    left = (measured[-1] / measured[0]).values
    assert left.max() < 0.8 and np.median(left) > 1.3 * math.exp(-0.1 * 5e-3 / 0.1 * 300)


def test_predicted_angles(predicted):
    run, theory = predicted
    convs = [name for name in run["norms"].layer.values if name.endswith("conv")]
    assert theory["angle"].dims == ("step", "layer") and theory["angle"].attrs["units"] == "rad"
    # equilibrium of heavy ball: sqrt(2 lr wd / (1 + rho))
    np.testing.assert_allclose(theory["angle"].values, math.sqrt(2 * 0.1 * 5e-3 / 1.9), rtol=1e-12)
    late = dict(step=slice(200, None), layer=convs)
    measured = run["angles"].angle.sel(step=theory.step).sel(late).mean("step")
    ratio = measured / theory["angle_transient"].sel(late).mean("step")
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio.values


def test_a_schedule_that_ends_at_zero_is_predicted():
    theory = dyn.predict(train(probes=dyn.standard(1)))
    assert theory["angle"].values[-1].tolist() == [0.0] * 9
    assert np.isfinite(theory["norm"].values).all()


def test_predictions_use_the_lr_and_decay_of_each_group():
    groups = (dyn.Group("linear.*", 0.25, 2.0), dyn.Group("*.bias", 4.0, 0.0))
    theory = dyn.predict(train(toy_recipe(optimizer=dyn.SGD(0.1, 0.9, weight_decay=1e-2, groups=groups)),
                               probes=dyn.standard(1)))  # fmt: skip
    expected = np.sqrt(2 * np.array([0.1 * 1e-2] * 8 + [0.025 * 2e-2]) / 1.9)
    np.testing.assert_allclose(theory["angle"].values[0], expected, rtol=1e-12)


def test_prediction_needs_its_probes():
    with pytest.raises(DynamicsError, match=r"unknown reading 'gradients'.*pass probes=\{'gradients': every\(10"):
        dyn.predict(train(toy_recipe(epochs=1), probes={"norms": dyn.every(1, dyn.weight_norms)}))
    with pytest.raises(DynamicsError, match=r"unknown reading 'norms'.*pass probes=\{'norms'"):
        dyn.predict(train(toy_recipe(epochs=1), probes={"gradients": dyn.every(1, dyn.gradients)}))
    with pytest.raises(DynamicsError, match=r"two steps or more, .*: use the same every\(n\)"):
        dyn.predict(train(probes={"norms": dyn.at([0], dyn.weight_norms), "gradients": dyn.every(4, dyn.gradients)}))


def test_prediction_without_decay_and_at_zero_lr():
    recipe = replace(RECIPE, optimizer=dyn.SGD(dyn.PiecewiseLinear((0, 1, 2, 4), (0, 0, 0.1, 0)), weight_decay=0.0))
    theory = dyn.predict(train(recipe, probes=dyn.standard(1)))
    for name in ("norm", "angle", "angle_transient"):  # not angle_general: without decay there may be no equilibrium
        assert np.isfinite(theory[name].values).all(), name


def test_a_snapshot_of_the_docs():
    """The whole loop, as a reader writes it."""
    norms = [float(dyn.weight_norms(snap)["norm"][1][0]) for snap in dyn.steps(toy_recipe(epochs=1), TRAIN)]
    assert len(norms) == 4 and first(dyn.steps(toy_recipe(), TRAIN)).step == 0
