from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import arrays, dynamics, plain_net, toy_recipe, toy_split
from torch import nn
from torch.func import functional_call

import dynamics as dyn
from dynamics.data import batches


def tiny_net(classes: int = 4, seed: int = 0) -> nn.Module:
    """Small enough for a dense Hessian."""
    return nn.Sequential(
        nn.Conv2d(3, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3), nn.Softplus(10), nn.AdaptiveMaxPool2d(1),
        nn.Flatten(), nn.Linear(3, classes),
    )  # fmt: skip


def done(*words: object) -> str:
    code, out, err = dynamics("hessian", *words)
    assert code == 0, err
    return out


def refused(*words: object) -> str:
    """The one line on stderr of a command that bad input ends with exit code 2."""
    code, out, err = dynamics("hessian", *words)
    assert code == 2 and not out, (out, err)
    assert err.startswith("dynamics: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Iterator[None]:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    (images, labels), (test_images, test_labels) = arrays(60, side=8), arrays(20, side=8, seed=1)
    np.savez(path, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels)
    return path


@pytest.fixture(scope="module")
def run(npz, tmp_path_factory) -> dyn.Run:
    """A trained run of a tiny net, kept in a folder; its batches are of 15 images."""
    recipe = toy_recipe(
        net=dyn.Net("test_cli_hessian:tiny_net"), optimizer=dyn.SGD(0.1), batch_size=15, label_smoothing=0.2,
        augment=dyn.Augment(pad=0),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return dyn.train(recipe, dyn.load_data(npz).train, out=folder, progress=False)


def dense(run: dyn.Run, npz: Path, sizes: list[int], bn: str = "batch") -> torch.Tensor:
    """The Hessian at the run's end on the first images of its shuffled data, in float64."""
    split = dyn.load_data(npz).train
    given = list(batches(split, sizes[0], seed=run.recipe.seed))[: len(sizes)]
    net = tiny_net().double().train(bn == "batch")
    weights = {k: p.double() for k, p in run.state.params.items()}
    buffers = {k: b.double() if b.is_floating_point() else b for k, b in run.state.buffers.items()}
    shapes, counts = [w.shape for w in weights.values()], [w.numel() for w in weights.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        moved = {k: p.view(s) for k, p, s in zip(weights, flat.split(counts), shapes, strict=True)}
        outputs = (
            functional_call(net, {**moved, **{k: b.clone() for k, b in buffers.items()}}, (x.double(),))
            for x, _ in given
        )
        return sum(F.cross_entropy(o, y, label_smoothing=0.2) for o, (_, y) in zip(outputs, given, strict=True)) / len(
            given
        )

    return torch.autograd.functional.hessian(loss, torch.cat([w.flatten() for w in weights.values()]))


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_json_has_the_eigenvalues_of_the_dense_hessian_at_the_runs_end(run, npz, bn):
    text = done(run.folder, "-k", 3, "--bn", bn, "--precision", "float64", "--json")
    assert text.count("\n") == 1
    found = json.loads(text)
    wanted = torch.linalg.eigvalsh(dense(run, npz, [15] * 4, bn)).flip(0)[:3]
    assert found["eigenvalues"] == pytest.approx(wanted.tolist(), rel=1e-7)
    assert max(found["residuals"]) < 1e-5 * found["eigenvalues"][0] and found["converged"] == [True] * 3
    assert (found["bn"], found["images"], found["batch_size"], found["step"]) == (bn, 60, 15, run.state.step)
    assert found["loss"] == "cross-entropy, label smoothing 0.2" and found["parameters"] == 103
    assert found["gap"]["ratio"] > 1 and "shares" not in found and "trace" not in found


def test_images_and_batch_size_say_what_it_is_measured_on(run, npz):
    found = json.loads(
        done(run.folder, "-k", 1, "--images", 50, "--batch-size", 20, "--precision", "float64", "--json")
    )
    assert (found["images"], found["batch_size"]) == (40, 20)  # whole batches
    wanted = torch.linalg.eigvalsh(dense(run, npz, [20, 20]))[-1]
    assert found["eigenvalues"] == pytest.approx([float(wanted)], rel=1e-7)


def test_smallest_trace_and_shares(run, npz):
    words = ("-k", 2, "--which", "smallest", "--precision", "float64", "--trace", "--shares", "--json")
    found = json.loads(done(run.folder, *words))
    matrix = dense(run, npz, [15] * 4)
    assert found["eigenvalues"] == pytest.approx(torch.linalg.eigvalsh(matrix)[:2].tolist(), rel=1e-6)
    trace = found["trace"]
    assert abs(trace["value"] - float(matrix.trace())) < 5 * trace["error"] + 1e-9
    assert list(found["shares"]) == ["means", "variances", "skews"]
    columns = np.array(list(found["shares"].values()))
    assert columns.shape == (3, 2) and (columns >= 0).all() and (columns.sum(0) <= 1 + 1e-9).all()


def test_the_table_has_a_row_for_each_pair_and_the_picture_is_written(run, tmp_path):
    out = tmp_path / "spectrum.png"
    text = done(run.folder, "-k", 4, "--shares", "--trace", "--out", out)
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit() and "e-" in line]
    assert [row[0] for row in rows[:4]] == ["1", "2", "3", "4"] and rows[0][3].endswith("%")
    assert "label smoothing 0.2" in text and "statistics of each batch" in text and "trace" in text
    assert "products" in text and f"wrote {out}" in text and out.read_bytes()[:4] == b"\x89PNG"


def test_the_run_folder_is_left_as_it_was(run):
    before = {p.name: p.read_bytes() for p in run.folder.iterdir()}
    done(run.folder, "-k", 1)
    assert {p.name: p.read_bytes() for p in run.folder.iterdir()} == before


def test_pairs_that_did_not_converge_are_said_to_be_so(run):
    code, out, err = dynamics("hessian", run.folder, "-k", 2, "--tol", 1e-15, "--json")
    assert code == 0 and "of 2 eigenpairs converged" in err
    assert not all(json.loads(out)["converged"])


def test_help_has_an_example():
    assert "Example: dynamics hessian" in done("--help")


def test_a_watched_run_is_refused_by_name(tmp_path):
    net = plain_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dyn.watch(net, optimizer, probes={}, out=tmp_path / "watched"):
        net(torch.randn(2, 3, 4, 4)).sum().backward()
        optimizer.step()
    assert "watched run has no recipe" in refused(tmp_path / "watched")


def test_data_that_are_not_the_runs_are_refused(npz, tmp_path):
    own = Path(shutil.copy(npz, tmp_path / "own.npz"))
    run = dyn.train(
        toy_recipe(net=dyn.Net("test_cli_hessian:tiny_net"), epochs=1), dyn.load_data(own).train,
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    images, labels = arrays(60, side=8, seed=5)
    np.savez(own, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert "not those that this run was trained on" in refused(run.folder)
    own.unlink()
    assert "cannot be found again" in refused(run.folder)


def test_arrays_cannot_be_loaded_by_name_and_are_refused(tmp_path):
    split = toy_split(side=8)
    run = dyn.train(toy_recipe(net=dyn.Net("test_cli_hessian:tiny_net"), epochs=1), split, out=tmp_path / "r",
                    progress=False)  # fmt: skip
    assert "cannot be found again" in refused(run.folder)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--bn", "eval"), "eval"),
        (("--which", "top"), "largest"),
        (("--precision", "bf16"), "float32, float64"),
        (("-k", 0), "k must be"),
        (("-k", 1000), "from 1 to 103"),
        (("--images", 0), "at least 1"),
        (("--batch-size", -3), "at least 1"),
        (("--tol", 2), "tol"),
        (("--out", "picture"), ".png, .pdf or .svg"),
        (("--out", "no/such/folder/a.png", "-k", 1), "existing folder"),
    ],
)
def test_bad_input_is_one_line(run, words, told):
    assert told in refused(run.folder, *words)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    assert "run" in refused(tmp_path)
