from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import Ended, arrays, dynamics, toy_recipe, toy_split

import dynamics as dyn
from dynamics import cli, recipes
from dynamics.runs import record

COMMANDS = (
    "data",
    "train",
    "show",
    "plot",
    "recipes",
    "sweep",
    "compare",
    "hessian",
    "claims",
    "verdicts",
    "packs",
    "export",
    "chapter",
    "lab",
    "run",
    "test",
    "lint",
    "bench",
)
TINY = ("--width", 2, "--batch-size", 20, "--epochs", 2, "--precision", "float32")


def done(*words: object) -> Ended:
    ended = dynamics(*words)
    assert ended.code == 0, ended
    return ended


def refused(*words: object) -> str:
    """The one line on stderr of a command that bad input ends with exit code 2."""
    ended = dynamics(*words)
    assert ended.code == 2, ended
    assert ended.err.startswith("dynamics: ") and ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    return ended.err


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    (images, labels), (test_images, test_labels) = arrays(60), arrays(20, seed=1)
    np.savez(path, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Iterator[None]:
    """Each test in an empty folder of its own, and no figure left open."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def whole(npz, tmp_path_factory) -> Path:
    """A run of two epochs with a chunk for each: states at steps 0, 3 and 6. Not to be written to: copy it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "MIN_CHUNK_STEPS", 1)
        ended = done("train", "--data", npz, *TINY, "--every", 1, "--seed", 3, "--out", folder)
    assert "finished 6 steps" in ended.out and f"dynamics show {folder}" in ended.out
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def diverging(monkeypatch) -> None:
    recipe = toy_recipe(optimizer=dyn.SGD(1e20), batch_size=20)
    monkeypatch.setattr(recipes, "RECIPES", {**recipes.RECIPES, "diverging": recipe})


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def strict(text: str) -> dict:
    """One JSON object, with nothing in it that JSON does not know."""

    def never(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=never)


# --- help


def test_every_command_is_tested_here():
    names = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert names == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_of_its_command(command):
    ended = done(command, "--help")
    (example,) = [line for line in ended.out.splitlines() if line.strip().startswith("Example: ")]
    assert f"dynamics {command}" in example and ended.err == ""


def test_help_names_every_command_and_so_does_nothing_at_all():
    listed = done("--help").out
    assert all(f"\n  {command} " in listed for command in COMMANDS)
    nothing = dynamics()
    assert all(f"\n  {command} " in nothing.out + nothing.err for command in COMMANDS)


# --- data


def test_data_lists_what_there_is():
    lines = done("data").out.splitlines()
    assert [line.split()[0] for line in lines] == ["shapes", "cifar10"] and all("classes" in line for line in lines)


def test_data_says_what_is_in_a_file(npz):
    out = done("data", npz).out
    assert f"{npz}: 60 training and 20 test images of 16x16, 4 classes" in out
    assert "classes: 0, 1, 2, 3" in out
    mean = arrays(60)[0].mean((0, 1, 2))
    assert "mean (" + ", ".join(f"{m:.1f}" for m in mean) + ")" in out


# --- train


def test_train_writes_a_run(whole, npz):
    run = dyn.load_run(whole)
    assert (run.status, run.state.step, run.checkpoints) == ("finished", 6, (0, 3, 6))
    assert run.recipe.net == dyn.Net("resnet9", width=2) and run.recipe.seed == 3 and run.recipe.batch_size == 20
    assert run.manifest["data"]["train"]["name"] == str(npz) and run.manifest["data"]["train"]["n"] == 60
    assert set(run.readings) == {"train", "valid", "hyperparameters", *dyn.standard(1)}
    assert run["norms"].step.values.tolist() == list(range(7))
    # the recipe's, its schedule stretched: 24 epochs with a peak at 5 become 2
    changes = {"net": dyn.Net("resnet9", width=2), "batch_size": 20, "precision": "float32", "seed": 3}
    assert run.recipe == replace(recipes.BASELINE.stretch(2), **changes)
    assert run.recipe.optimizer.lr.knots == pytest.approx((0, 5 / 12, 2))


def test_train_without_options_names_the_recipe(npz, monkeypatch):
    """The defaults are the recipe's, the folder is named by recipe and seed, and every tenth step is read."""
    monkeypatch.setattr(recipes, "RECIPES", {"baseline": toy_recipe(epochs=4, seed=5)})
    done("train", "--data", npz)
    run = dyn.load_run("runs/baseline-5")
    assert run.recipe == toy_recipe(epochs=4, seed=5) and run["norms"].step.values.tolist() == [0, 10]
    assert "runs/baseline-5" in refused("train", "--data", npz)  # it is there now, and is not written over


def test_every_0_reads_the_loss_only_and_limit_takes_the_first_images(npz):
    done("train", "--data", npz, *TINY, "--limit", 40, "--every", 0, "--out", "r")
    run = dyn.load_run("r")
    assert set(run.readings) == {"train", "valid", "hyperparameters"} and run.state.step == 4
    full = dyn.load_data(npz).train
    assert run.manifest["data"]["train"]["fingerprint"] == full[:40].fingerprint()


def test_training_twice_is_the_same_run(whole, npz, monkeypatch):
    monkeypatch.setattr(record, "MIN_CHUNK_STEPS", 1)
    done("train", "--data", npz, *TINY, "--every", 1, "--seed", 3, "--out", "again")
    mine, theirs = files(Path("again")), files(whole)
    assert {k: v for k, v in mine.items() if k != "run.json"} == {k: v for k, v in theirs.items() if k != "run.json"}


def test_a_diverged_run_has_its_own_exit_code_and_is_kept(npz, diverging):
    ended = dynamics("train", "--recipe", "diverging", "--data", npz, "--every", 1, "--out", "r")
    run = dyn.load_run("r")
    assert ended.code == 3 and run.status == "diverged"
    assert f"diverged: the loss was not finite at step {run.diverged_at}; kept in r" in ended.err
    assert "finished" not in ended.out and "Traceback" not in ended.err
    before = files(Path("r"))
    assert dynamics("train", "--resume", "r").code == 3 and files(Path("r")) == before


# --- resume


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_resume_needs_nothing_else(whole, copied, keep):
    """Before the first chunk, in the middle and after the end."""
    chunks = sorted(copied.glob("chunk-*"))
    for path in chunks[keep:]:
        path.unlink()
    ended = done("train", "--resume", copied)
    assert "finished 6 steps" in ended.out
    assert files(copied) == files(whole)


def test_resume_of_a_part_of_the_data(npz):
    done("train", "--data", npz, *TINY, "--limit", 40, "--out", "r")
    before = files(Path("r"))
    sorted(Path("r").glob("chunk-*"))[-1].unlink()
    done("train", "--resume", "r")
    assert files(Path("r")) == before


@pytest.mark.parametrize(
    "options",
    [
        ("--recipe", "baseline"),
        ("--data", "shapes"),
        ("--width", 2),
        ("--epochs", 2),
        ("--batch-size", 20),
        ("--seed", 0),
        ("--limit", 60),
        ("--precision", "auto"),
        ("--every", 0),
        ("--out", "other"),
        ("--width", 4, "--epochs", 3, "--every", 10),
    ],
)
def test_resume_refuses_other_options_and_names_them(copied, options):
    sorted(copied.glob("chunk-*"))[-1].unlink()
    before = files(copied)
    message = refused("train", "--resume", copied, *options)
    assert all(word in message for word in options if str(word).startswith("--"))
    assert files(copied) == before


def test_resume_of_what_is_no_run(npz, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty", npz):
        assert "is not a run folder" in refused("train", "--resume", folder)


def test_resume_where_the_data_are_gone_or_others(copied, npz):
    sorted(copied.glob("chunk-*"))[-1].unlink()
    manifest = json.loads((copied / "run.json").read_text())
    for name, message in ((str(npz.with_name("gone.npz")), "data cannot be found again"), (str(npz), "not those")):
        manifest["data"]["train"]["name"] = name
        manifest["data"]["train"]["fingerprint"] = "other"
        (copied / "run.json").write_text(json.dumps(manifest))
        assert message in refused("train", "--resume", copied)


def test_an_interrupted_run_says_how_to_go_on_and_does(npz, whole, monkeypatch):
    real, calls = record.evaluate, []

    def interrupted(*given, **more):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **more)

    words = ("train", "--data", npz, *TINY, "--every", 1, "--seed", 3, "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(record, "MIN_CHUNK_STEPS", 1)
        patch.setattr(record, "evaluate", interrupted)
        ended = dynamics(*words)
    assert ended.code == 130 and "Traceback" not in ended.err
    done("train", "--resume", "r")
    assert dyn.load_run("r")["train"].identical(dyn.load_run(whole)["train"])
    # the progress bar is on stderr too
    assert ended.err.splitlines()[-1].startswith("dynamics: interrupted") and "--resume" in ended.err


def test_an_interrupt_is_one_line(monkeypatch):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(dyn.runs, "load_run", interrupted)
    ended = dynamics("show", "r")
    assert ended.code == 130
    assert ended.err.startswith("dynamics: interrupted") and ended.err.count("\n") == 1


# --- show


def test_show_as_text(whole):
    lines = done("show", whole).out.splitlines()
    told = dict(line.split(maxsplit=1) for line in lines[:8])
    assert told["status"] == "finished" and told["steps"] == "6" and "width=2" in told["net"]
    assert "60 images" in told["data"] and "norms" in told["readings"] and "SGD" in told["optimizer"]
    run = dyn.load_run(whole)
    rows = [line.split() for line in lines if line.startswith(("prep", "layer1", "layer2", "layer3", "linear"))]
    assert [row[0] for row in rows] == run["norms"].layer.values.tolist()
    assert all(len(row) == 7 for row in rows)
    assert [row[1] for row in rows] == ["equilibrium"] * 8 + ["general"]


def test_show_as_json(whole):
    """The numbers are those of the readings, worked out here again."""
    told, run = strict(done("show", whole, "--json").out), dyn.load_run(whole)
    assert (told["status"], told["steps"], told["averaged_steps"]) == ("finished", 6, 1)
    assert told["accuracy"] == run["valid"].accuracy.values[-1]
    assert told["loss"] == pytest.approx(float(run["train"].loss.values.mean()), rel=1e-6)
    angle, norm, theory = run["angles"].angle, run["norms"].norm, dyn.predict(run)
    for row in told["layers"]:
        here = {"step": 5, "layer": row["layer"]}
        assert row["angle"] == pytest.approx(float(angle.sel(here)), rel=1e-6)
        assert row["norm"] == pytest.approx(float(norm.sel(here)), rel=1e-6)
        assert row["predicted_norm"] == pytest.approx(float(theory.norm.sel(here)), rel=1e-6)
        # the lr of a whole number of epochs has come down to zero, and with it the law
        assert row["equilibrium_angle"] == pytest.approx(float(theory.angle.sel(here)), rel=1e-6)
        assert (row["ratio"] is None) == (row["equilibrium_angle"] == 0)


def test_show_averages_over_the_last_quarter(npz, monkeypatch):
    recipe = toy_recipe(optimizer=dyn.SGD(0.1, weight_decay=5e-3), epochs=4)
    monkeypatch.setattr(recipes, "RECIPES", {"constant": recipe})
    done("train", "--recipe", "constant", "--data", npz, "--every", 1, "--out", "r")
    told, run = strict(done("show", "r", "--json").out), dyn.load_run("r")
    law = math.sqrt(2 * 0.1 * 5e-3 / 1.9)
    assert told["averaged_steps"] == 3 and len(told["layers"]) == 9
    for row in told["layers"]:
        angle = run["angles"].angle.sel(layer=row["layer"], step=slice(9, 11)).values.astype(float)
        assert row["angle"] == pytest.approx(np.sqrt(np.mean(angle**2)), rel=1e-6)
        assert row["equilibrium_angle"] == pytest.approx(law) and row["ratio"] == pytest.approx(row["angle"] / law)
    assert "over the last 3 readings" in done("show", "r").out


def kinds_of_run(kind: str, npz: Path, copied: Path) -> Path:
    chunks = sorted(copied.glob("chunk-*"))
    if kind == "not begun":
        for path in chunks[1:]:
            path.unlink()
    elif kind == "unfinished":
        chunks[-1].unlink()
    elif kind == "no probes":
        done("train", "--data", npz, *TINY, "--every", 0, "--out", "r")
    elif kind == "one reading":
        done("train", "--data", npz, *TINY, "--every", 100, "--out", "r")
    elif kind == "no steps":
        dyn.train(toy_recipe(epochs=0), toy_split(), probes=dyn.standard(1), out="r", progress=False)
    elif kind == "diverged":
        assert dynamics("train", "--recipe", "diverging", "--data", npz, "--every", 1, "--out", "r").code == 3
    else:
        split = toy_split()
        probes = dyn.standard(1)
        if kind == "read at different steps":
            probes["angles"] = dyn.every(2, dyn.angles)
        net = dyn.Net("resnet9", width=2, norm="none") if kind == "no norms" else dyn.Net("resnet9", width=2)
        recipe = toy_recipe(net=net, optimizer=dyn.SGD(0.01))
        dyn.train(recipe, split, probes=probes, out="r", progress=False)
    return copied if kind in ("not begun", "unfinished") else Path("r")


KINDS = (
    "not begun", "unfinished", "no probes", "one reading", "no steps", "diverged", "read at different steps",
    "no norms",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_show_of_every_kind_of_run(kind, npz, copied, diverging):
    folder = kinds_of_run(kind, npz, copied)
    text, told = done("show", folder).out, strict(done("show", folder, "--json").out)
    run = dyn.load_run(folder)
    assert told["status"].split()[0] == run.status and told["steps"] == run.state.step
    assert told["status"] in text and "nan" not in text
    assert bool(told["layers"]) == (kind in ("unfinished", "read at different steps", "no norms"))
    if kind == "diverged":
        assert told["status"] == f"diverged at step {run.diverged_at}" and told["loss"] is None
    if kind == "not begun":
        assert told["loss"] is None and told["accuracy"] is None


def test_json_is_one_line_and_alone(whole):
    assert done("show", whole, "--json").out.count("\n") == 1


# --- plot

MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
PICTURES = [("norms", "png"), ("angles", "pdf"), ("batchnorm", "svg"), ("schedule", "png"), ("page", "png")]


@pytest.mark.parametrize(("what", "ending"), PICTURES)
def test_plot_writes_what_its_ending_says(whole, what, ending):
    out = done("plot", whole, what, "--out", f"picture.{ending}").out
    assert Path(f"picture.{ending}").read_bytes().startswith(MAGIC[ending])
    assert out == f"wrote picture.{ending}\n"


def test_plot_is_kept_in_the_run_and_its_name_is_told(copied):
    done("plot", copied)
    assert (copied / "page.png").stat().st_size > 10_000
    assert "angles.png" in done("plot", copied, "angles").out and (copied / "angles.png").is_file()
    assert dyn.load_run(copied).status == "finished"


def test_plot_without_an_ending_writes_where_it_says(whole):
    """matplotlib would add one of its own."""
    ended = dynamics("plot", whole, "angles", "--out", "picture")
    if ended.code == 0:
        assert Path(ended.out.removeprefix("wrote ").strip()).is_file()
    else:
        assert ended.code == 2 and ".png" in ended.err and not list(Path().glob("picture*"))


def test_plot_refuses(whole, tmp_path):
    assert "unknown plot 'angels': did you mean 'angles'" in refused("plot", whole, "angels")
    assert "is not a run folder" in refused("plot", tmp_path)
    (tmp_path / "folder.png").mkdir()
    for out in ("picture.xyz", "nowhere/picture.png", "folder.png"):
        assert "ending in .png, .pdf or .svg" in refused("plot", whole, "norms", "--out", out)
    assert not Path("picture.xyz").exists()


@pytest.mark.parametrize("kind", ["unfinished", "one reading", "diverged", "read at different steps", "no norms"])
def test_plot_of_every_kind_of_run(kind, npz, copied, diverging):
    """What was read is drawn, whether or not theory has something to say of it."""
    folder = kinds_of_run(kind, npz, copied)
    done("plot", folder, "--out", "picture.png")
    assert Path("picture.png").read_bytes().startswith(MAGIC["png"])


def test_plot_of_nothing(npz, copied):
    assert "nothing was recorded" in refused("plot", kinds_of_run("not begun", npz, copied))
    assert "pass probes=" in refused("plot", copied, "moments")


def test_plots_of_activations(npz, tmp_path):
    train = dyn.load_data(npz).train
    probes = {"moments": dyn.every(2, dyn.moments(train[:8])), "histograms": dyn.every(2, dyn.histograms(train[:8]))}
    dyn.train(toy_recipe(), train, probes=probes, out=tmp_path / "run", progress=False)
    for what in ("moments", "drift", "histograms"):
        done("plot", tmp_path / "run", what)
        assert (tmp_path / "run" / f"{what}.png").stat().st_size > 10_000


# --- export


def test_export_writes_each_kind(whole, tmp_path):
    run = dyn.load_run(whole)
    assert done("export", whole, "npz", "--out", "r.npz").out == "wrote r.npz\n"
    with np.load("r.npz") as arrays:
        np.testing.assert_array_equal(arrays["norms/norm"], run["norms"].norm.values)
    done("export", whole, "csv", "--out", "tables")
    lines = (tmp_path / "tables" / "train.csv").read_text().splitlines()
    assert lines[0] == "step,loss,epoch" and len(lines) == 7
    assert {p.stem for p in Path("tables").iterdir()} == set(run.readings)
    done("export", whole, "tensorboard", "--out", "events")
    assert list(Path("events").glob("events.out.tfevents*"))


def test_export_refuses(whole):
    assert "did you mean 'npz'" in refused("export", whole, "npy")
    Path("there").mkdir()
    assert "exists already" in refused("export", whole, "csv", "--out", "there")
    assert "is not a run folder" in refused("export", "nowhere", "npz")


# --- watched runs


def test_a_watched_run_is_shown_plotted_and_not_resumed(tmp_path):
    import torch

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    )
    net(torch.zeros(2, 3, 6, 6))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    with dyn.watch(net, optimizer, probes=dyn.standard(1), out=tmp_path / "w", chunk_steps=2):
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.randn(8, 3, 6, 6)).square().mean().backward()
            optimizer.step()
    lines = done("show", "w").out.splitlines()
    assert lines[0].split(maxsplit=1) == ["net", "Sequential, watched"] and lines[1].split() == ["optimizer", "AdamW"]
    assert [line.split()[1] for line in lines if line.startswith(("0 ", "3 "))] == ["unknown", "unknown"]
    strict(done("show", "w", "--json").out)
    done("plot", "w")
    done("export", "w", "npz")


# --- bad input: exit code 2 and one line

BAD = {
    "recipe": (("--recipe", "baselin"), "unknown recipe 'baselin': did you mean 'baseline'"),
    "data": (("--data", "shpes"), "unknown dataset 'shpes': did you mean 'shapes'"),
    "no file": (("--data", "missing.npz"), "missing.npz does not exist"),
    "width 0": (("--width", 0), "width must be a whole number from 1"),
    "width -3": (("--width", -3), "width must be a whole number from 1"),
    "width 10000": (("--width", 10_000), "width must be a whole number from 1 to 4096"),
    "epochs too few": (("--epochs", 0.01), "0.01 epochs are not one step of .* images: raise --epochs"),
    "epochs 0": (("--epochs", 0), "epochs must be above 0, got 0"),
    "epochs -1": (("--epochs", -1), "epochs must be above 0, got -1"),
    "epochs nan": (("--epochs", "nan"), "epochs must be"),
    "epochs inf": (("--epochs", "inf"), "epochs must be"),
    "batch 0": (("--batch-size", 0), "batch_size must be a whole number of at least 1, got 0"),
    "batch -5": (("--batch-size", -5), "batch_size must be a whole number of at least 1"),
    "batch 61": (("--batch-size", 61), "batch_size 61 does not fit 60 training images: choose 1 to 60"),
    "limit below batch": (("--limit", 10), "batch_size 20 does not fit 10 training images"),
    "precision": (("--precision", "bf17"), "unknown precision 'bf17': did you mean 'bf16'"),
    "limit 0": (("--limit", 0), "limit must be a whole number of training images, at least 1"),
    "limit -4": (("--limit", -4), "limit must be a whole number of training images, at least 1"),
    "every -1": (("--every", -1), "--every is a number of steps of at least 1, or 0"),
    "one class": (("--data", "one.npz"), "at least 2 classes"),
    "4x4 images": (("--data", "4.npz"), "images larger than 4 pixels"),
    "6x6 images": (("--data", "6.npz"), "6x6|8"),
    "pictures as floats": (("--data", "float.npz"), "train_images must be uint8"),
    "no npz": (("--data", "text.npz"), "no readable .npz"),
}


def write_bad_files() -> None:
    def save(name: str, images: np.ndarray, labels: np.ndarray) -> None:
        np.savez(name, train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    images, labels = arrays()
    save("one.npz", images, labels * 0)
    save("float.npz", images / 255, labels)
    save("4.npz", images[:, :4, :4], labels)
    save("6.npz", images[:, :6, :6], labels)
    Path("text.npz").write_text("hello")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(name, npz):
    write_bad_files()
    before = sorted(Path().iterdir())
    options, message = BAD[name]
    line = refused("train", "--data", npz, *TINY, "--out", "r", *options)
    assert re.search(message, line), line
    assert sorted(Path().iterdir()) == before, "no run folder is left"


def test_a_place_that_is_taken_or_cannot_be_written(npz, copied):
    Path("file").write_text("mine")
    Path("empty").mkdir()
    before, train = files(copied), ("train", "--data", npz, *TINY)
    message = refused(*train, "--out", copied)
    assert "exists already" in message and f"--resume {copied}" in message and files(copied) == before
    assert "exists already" in refused(*train, "--out", "file") and Path("file").read_text() == "mine"
    for out in ("file/r", "/dev/null/r"):
        assert "choose a folder that you may write to" in refused(*train, "--out", out)
    done(*train, "--every", 0, "--out", "empty")


@pytest.mark.parametrize("command", [("train", "--out"), ("train", "--resume"), ("show",), ("plot",)])
def test_a_name_that_the_system_refuses(command, npz):
    """Too long here; a folder that may not be looked into fails alike."""
    words = (*command[:1], "--data", npz, *TINY, *command[1:]) if command[-1] == "--out" else command
    refused(*words, "x" * 300)


@pytest.mark.parametrize("command", ["show", "plot"])
def test_what_is_no_run(command, npz):
    for folder in ("nowhere", npz, "."):
        assert "is not a run folder" in refused(command, folder)
    assert "is not a run folder" in refused(command, "nowhere", *(["--json"] if command == "show" else []))


def test_a_damaged_run(copied):
    chunk = sorted(copied.glob("chunk-*"))[1]
    chunk.write_bytes(chunk.read_bytes()[:100])
    for words in (("show", copied), ("plot", copied)):
        assert f"{chunk.name} is damaged" in refused(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--widht", "3"), "No such option: --widht"),
        (("train", "--width", "two"), "Invalid value for '--width'"),
        (("train", "--epochs", "many"), "Invalid value for '--epochs'"),
        (("train", "--limit"), "requires an argument"),
        (("trian",), "No such command 'trian'"),
        (("show",), "Missing argument"),
        (("chapter",), "Missing argument"),
        (("lab", "--port", "x"), "Invalid value for '--port'"),
    ],
)
def test_usage_errors(words, message):
    ended = dynamics(*words)
    assert ended.code == 2 and message in ended.err and ended.out == "" and "Traceback" not in ended.err


def test_an_error_of_ours_that_is_none_is_not_swallowed(monkeypatch):
    """A defect keeps its traceback."""

    def broken(*given, **more):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(dyn.runs, "load_run", broken)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        dynamics("show", "r")


# --- what needs a checkout


@pytest.mark.parametrize("command", ["lab", "run", "test", "lint", "bench"])
def test_what_needs_a_checkout_says_so(command, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: pytest.fail(f"ran {given}"))
    assert "checkout" in refused(command)


def test_a_chapter_needs_a_checkout_or_a_folder(tmp_path):
    assert "checkout" in refused("chapter", "06", "--folder", tmp_path)


@pytest.fixture
def called(monkeypatch, tmp_path) -> list[list[str]]:
    """A checkout with two benchmarks, whose commands are only listed; what has "second" in it fails."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "benchmarks").mkdir()
    for name in ("_common.py", "first.py", "second.py", "third.py"):
        (tmp_path / "benchmarks" / name).write_text("")
    found: list[list[str]] = []

    def listed(command, **given):
        assert given["cwd"] == tmp_path
        found.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 9 if "second" in str(command) else 0)

    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", listed)
    return found


def test_commands_call_others_and_a_failure_of_theirs_is_1(called, tmp_path):
    done("lint")
    assert [c[1:] for c in called] == [["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"]]
    called.clear()
    done("test")
    assert [c[2] for c in called] == ["ruff", "ruff", "pytest"] and {c[0] for c in called} == {sys.executable}
    assert "loadfile" in called[2]  # a chapter's cells share a kernel, so they must not be dealt out
    called.clear()
    done("lab", "--port", 9999)
    assert called == [[sys.executable, "-m", "jupyterlab", "--port=9999", str(tmp_path / "notebooks")]]
    called.clear()
    ended = dynamics("bench")
    assert ended.code == 1 and [Path(c[1]).name for c in called] == ["first.py", "second.py"]


# --- chapter


def test_chapter_prints_its_verdicts(tmp_path, monkeypatch):
    verdicts = dyn.table(
        [
            dyn.check(dyn.Claim("T1", "near", "source", 0.9, 1.1), [1.01, 1.02]),
            dyn.check(dyn.Claim("T2", "above", "source", 1, math.inf), None),
        ]
    ).to_json()
    monkeypatch.setattr("dynamics.chapters.execute", lambda notebook, out, say: verdicts)
    (tmp_path / "01_tiny.ipynb").write_text("{}")
    out = done("chapter", "01", "--folder", tmp_path, "--out", "built").out
    one, two = (next(line for line in out.splitlines() if line.startswith(k)) for k in ("T1", "T2"))
    assert one.split()[1] == "supported" and "1.015" in one and one.endswith("near")
    assert two.split()[1] == "untested" and "1 to -" in two and two.endswith("above")
    assert str(Path("built") / "01_tiny.html") in out


def test_chapter_refuses(tmp_path):
    (tmp_path / "01_tiny.ipynb").write_text("{}")
    assert "unknown chapter '01_tny': did you mean '01_tiny'" in refused("chapter", "01_tny", "--folder", tmp_path)


# --- as a process


def process(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dynamics", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_exit_codes_of_a_process(whole, copied):
    good = process("show", whole, "--json")
    assert good.returncode == 0 and strict(good.stdout)["status"] == "finished" and good.stderr == ""
    bad = process("train", "--resume", copied, "--width", 3)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("dynamics: --resume goes on with the recorded recipe") and bad.stderr.count("\n") == 1
