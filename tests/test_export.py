from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import toy_recipe, toy_split

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.runs.export import to_npz, to_pandas, to_tensorboard, to_xarray

TRAIN = toy_split()
VALID = toy_split(20, seed=1, like=TRAIN)


@dyn.reads("params", "grads")
def spectrum(snap: dyn.Snapshot) -> dict:
    """Two labelled dimensions, a dimension without any label, and values that are nan."""
    rank = torch.arange(6.0).view(2, 3) + snap.step
    return {
        "layer": ["a", "b"],
        "lag": [1, 2, 4],
        "cosine": (("layer", "lag"), rank, {"units": "1"}),
        "bare": (("place",), torch.tensor([1.0, torch.nan, 3.0]) if snap.step else torch.full((3,), torch.nan)),
        "window": ((), snap.step, {"units": "step"}),
    }


@pytest.fixture(scope="module")
def run() -> dyn.Run:
    probes = {**dyn.standard(2), "spectrum": dyn.every(3, spectrum)}
    return dyn.train(toy_recipe(), TRAIN, VALID, probes=probes, progress=False)


def recorder(**groups: xr.Dataset) -> SimpleNamespace:
    """What is like a Run in its readings alone."""
    return SimpleNamespace(readings=groups)


# --- pandas


def test_a_group_of_scalars_is_a_plain_frame_by_step(run):
    frame = to_pandas(run, "train")
    assert frame.index.name == "step" and list(frame.columns) == ["loss", "epoch"]
    np.testing.assert_array_equal(frame.index, run["train"].step.values)
    np.testing.assert_array_equal(frame.loss, run["train"].loss.values)


@pytest.mark.parametrize(
    "name", ["norms", "angles", "gradients", "spectrum", "effective_lr", "batchnorm", "hyperparameters"]
)
def test_every_value_is_in_one_row_with_its_coordinates(run, name):
    """A slow twin: every value of the dataset is looked up in the frame by its step and place, and the other way."""
    dataset, frame = run[name], to_pandas(run, name)
    assert frame.columns[0] == "step" and list(frame.index) == list(range(len(frame)))
    rows = 0
    for dims in {v.dims for v in dataset.data_vars.values()} - {("step",)}:
        variables = [k for k, v in dataset.data_vars.items() if v.dims == dims]
        places = list(np.ndindex(*(dataset.sizes[d] for d in dims)))
        rows += len(places)
        # rows of other dimensions are missing there
        mine = frame.dropna(subset=list(dims)).reset_index(drop=True)
        assert len(mine) == len(places)
        for row, place in zip(mine.to_dict("records"), places, strict=True):
            one = dataset.isel(dict(zip(dims, place, strict=True)))
            for key in [*variables, *(c for c, v in dataset.coords.items() if set(v.dims) <= set(dims))]:
                expected = one[key].item()
                assert row[key] == expected or (row[key] != row[key] and expected != expected), (place, key)
    assert len(frame) == rows


def test_columns_keep_their_kinds(run):
    norms = to_pandas(run, "norms")
    assert norms.step.dtype == np.int64 and norms.norm.dtype == np.float32
    assert norms.live.dtype == "boolean" and norms.filter_channel.dtype == "Int64"
    assert "layer1.conv" in set(norms.layer.dropna()) and "layer1.conv" in set(norms.filter_layer.dropna())
    batchnorm = to_pandas(run, "batchnorm")
    assert batchnorm.channel_index.dtype == np.int64 and not batchnorm.isna().any().any()


def test_one_number_a_step_repeats_along_the_rows(run):
    frame = to_pandas(run, "spectrum")
    assert (frame.window == frame.step).all() and len(frame) == 2 * (2 * 3 + 3)


def test_a_group_without_elements_has_no_rows():
    run = dyn.train(
        toy_recipe(net=dyn.Net("helpers:plain_net"), epochs=1), TRAIN, probes=dyn.standard(1), progress=False
    )
    frame = to_pandas(run, "batchnorm")
    assert len(frame) == 0 and {"step", "channel_layer", "scale"} <= set(frame.columns)


def test_a_name_that_was_not_recorded(run):
    with pytest.raises(DynamicsError, match="unknown reading 'norm': did you mean 'norms'"):
        to_pandas(run, "norm")


# --- npz


def test_npz_holds_every_array_without_pickles(run, tmp_path):
    path = to_npz(run, tmp_path / "new" / "run.npz")
    assert path == tmp_path / "new" / "run.npz" and list(path.parent.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as file:
        found = {k: file[k] for k in file.files}
    expected = {f"{name}/{k}": v.values for name, data in run.readings.items() for k, v in data.variables.items()}
    assert found.keys() == expected.keys() and {"norms/norm", "norms/step", "norms/layer", "train/loss"} <= found.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype or found[key].dtype.kind == "U"
    assert found["norms/layer"].dtype.kind == "U" and found["norms/live"].dtype == bool


def test_names_held_as_objects_become_unicode(tmp_path):
    names = np.array(["a", "längere"], dtype=object)
    live = recorder(mine=xr.Dataset({"x": (("step", "layer"), np.ones((1, 2)))}, {"step": [3], "layer": names}))
    with np.load(to_npz(live, tmp_path / "x")) as file:
        assert file["mine/layer"].tolist() == ["a", "längere"] and file["mine/layer"].dtype.kind == "U"
    assert (tmp_path / "x.npz").exists()


def test_npz_refuses_what_exists_and_where_it_may_not_write(run, tmp_path):
    (tmp_path / "run.npz").write_bytes(b"mine")
    for name in ("run.npz", "run"):
        with pytest.raises(DynamicsError, match=r"run.npz exists already: choose another name"):
            to_npz(run, tmp_path / name)
    assert (tmp_path / "run.npz").read_bytes() == b"mine"
    with pytest.raises(DynamicsError, match=r"cannot write .*choose a place that you may write to") as error:
        to_npz(run, tmp_path / "run.npz" / "inside.npz")
    assert "\n" not in str(error.value)


def test_an_interrupted_npz_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def full(file, **arrays):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DynamicsError, match=r"cannot write .*No space left on device"):
        to_npz(run, tmp_path / "run.npz")
    assert list(tmp_path.iterdir()) == []


# --- xarray


def test_the_tree_has_every_group_as_it_is(run):
    tree = to_xarray(run)
    assert isinstance(tree, xr.DataTree) and list(tree.children) == list(run.readings)
    for name, dataset in run.readings.items():
        assert tree[name].to_dataset(inherit=False).identical(dataset)
    assert tree["norms"]["norm"].identical(run["norms"]["norm"])


# --- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_scalar_at_its_step(run, tmp_path):
    to_tensorboard(run, tmp_path / "board")
    found = scalars(tmp_path / "board")
    layers = run["norms"].layer.values.tolist()
    assert {t for t in found if t.startswith("norms/")} == {f"norms/norm/{k}" for k in layers}
    for name, data in (("norms", run["norms"].norm), ("angles", run["angles"].relative_update)):
        for layer in layers:
            expected = [(int(s), float(v)) for s, v in zip(data.step, data.sel(layer=layer), strict=True)]
            assert found[f"{name}/{data.name}/{layer}"] == expected
    assert found["train/loss"] == [(s, float(v)) for s, v in enumerate(run["train"].loss)]
    assert found["hyperparameters/lr/default"] == [(s, np.float32(0.05)) for s in range(6)]
    assert [s for s, _ in found["valid/accuracy"]] == [3, 6]
    assert found["spectrum/cosine/b/4"] == [(0, 5.0), (3, 8.0)] and found["spectrum/window"] == [(0, 0.0), (3, 3.0)]
    assert not [t for t in found if "filter" in t or t.startswith(("batchnorm", "spectrum/bare"))]


def test_tensorboard_gets_filters_on_demand_and_no_nan(run, tmp_path):
    small = recorder(norms=run["norms"], spectrum=run["spectrum"], batchnorm=run["batchnorm"])
    to_tensorboard(small, tmp_path / "board", per_filter=True)
    found = scalars(tmp_path / "board")
    norms = run["norms"]
    (place,) = np.flatnonzero((norms.filter_layer.values == "layer1.conv") & (norms.filter_channel.values == 3))
    expected = [(int(s), float(v)) for s, v in zip(norms.step, norms.filter_norm[:, place], strict=True)]
    assert found["norms/filter_norm/layer1.conv/3"] == expected
    assert {v for _, v in found["norms/live/layer1.conv/3"]} <= {0.0, 1.0}
    assert len([t for t in found if t.startswith("norms/filter_norm/")]) == norms.sizes["filter"]
    assert "batchnorm/scale/layer1.norm/3" in found
    # at step 0 all three are nan, at step 3 the middle one
    assert {t: v for t, v in found.items() if "bare" in t} == {
        "spectrum/bare/0": [(3, 1.0)],
        "spectrum/bare/2": [(3, 3.0)],
    }


def test_elements_of_one_name_have_tags_of_their_own(tmp_path):
    dataset = xr.Dataset(
        {"x": (("step", "channel"), [[1.0, 2.0]])}, {"step": [7], "channel_layer": (("channel",), ["a", "a"])}
    )
    to_tensorboard(recorder(mine=dataset), tmp_path / "board", per_filter=True)
    assert scalars(tmp_path / "board") == {"mine/x/a/0": [(7, 1.0)], "mine/x/a/1": [(7, 2.0)]}


def test_tensorboard_refuses_what_exists_and_where_it_may_not_write(run, tmp_path):
    one = recorder(train=run["train"])
    (tmp_path / "empty").mkdir()
    to_tensorboard(one, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    for name in ("empty", "file"):
        with pytest.raises(DynamicsError, match="exists already: choose another folder"):
            to_tensorboard(one, tmp_path / name)
    assert len(list((tmp_path / "empty").iterdir())) == 1
    with pytest.raises(DynamicsError, match=r"cannot write .*choose a place that you may write to") as error:
        to_tensorboard(one, tmp_path / "file" / "inside")
    assert "\n" not in str(error.value)


def test_tensorboard_that_is_not_installed_is_named(run, tmp_path, monkeypatch):
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        DynamicsError, match=r"^TensorBoard is not installed: pip install training-dynamics\[tensorboard\]$"
    ):
        to_tensorboard(run, tmp_path / "board")
    assert not (tmp_path / "board").exists()
    to_pandas(run, "norms"), to_npz(run, tmp_path / "run"), to_xarray(run)  # these do without it
