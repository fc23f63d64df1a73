"""The command line: `dynamics data | train | sweep | compare | show | plot | hessian | claims | chapter | lab ...`.

Exit codes: 0 done; 1 a command that was called failed, or runs of a sweep; 2 bad input; 3 the training diverged;
130 interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DynamicsError, unknown
from .claims import claims
from .hessian import hessian
from .packs import packs
from .picture import save
from .recipes import recipes
from .sweep import compare, sweep
from .verdicts import verdicts

ROOT = Path(__file__).resolve().parents[2]
BAD_INPUT, DIVERGED, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    name="dynamics",
    help="Train small networks fast, record how they train, and lay theory over it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


app.command(epilog="Example: dynamics recipes --long; dynamics train --recipe 8-final --width 8 --data shapes")(recipes)
app.command(epilog="Example: dynamics hessian runs/first -k 10 --bn batch --shares --out hessian.png")(hessian)
app.command(
    epilog="Example: dynamics sweep --vary optimizer.momentum=0.8,0.9 --seeds 0-4 --width 8 --epochs 5 --out runs/mom"
)(sweep)
app.command(epilog="Example: dynamics compare runs/mom/momentum=0.8 runs/mom/momentum=0.9")(compare)
app.command(epilog="Example: dynamics claims --class D --status supported; dynamics claims --id P6-1")(claims)
app.command(epilog="Example: dynamics verdicts P7-2 S-9; dynamics verdicts --from tests --again")(verdicts)
app.command(epilog="Example: dynamics packs --list; dynamics packs chapter05 --workers 2")(packs)


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 2."""
    try:
        app()
    except DynamicsError as error:
        rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print(f"dynamics: {rank}{error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns an interrupt into its exit code, and says nothing
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        again = "a run folder goes on with dynamics train --resume DIR"
        if sys.argv[1:2] == ["sweep"]:
            again = "the same command goes on with the sweep"
        print(f"dynamics: interrupted; {again}", file=sys.stderr)
        sys.exit(INTERRUPTED)


@app.command(epilog="Example: dynamics data shapes")
def data(
    name: Annotated[str | None, typer.Argument(help="shapes, cifar10, a folder or an .npz; nothing: list them")] = None,
) -> None:
    """List the data sets, or load one (downloading it if need be) and say what is in it."""
    from ..data import load_data
    from ..data.load import available

    if name is None:
        for known, about in available().items():
            print(f"{known:8}  {about}")
        return
    train, test = load_data(name)
    side = "x".join(map(str, train.images.shape[1:3]))
    print(f"{train.name}: {len(train)} training and {len(test)} test images of {side}, {len(train.classes)} classes")
    print(f"classes: {', '.join(train.classes)}")
    print(f"mean {_triple(train.mean)}, standard deviation {_triple(train.std)} (0 to 255)")


@app.command(epilog="Example: dynamics train --data shapes --recipe baseline --width 8 --epochs 5 --out runs/first")
def train(
    recipe: Annotated[str | None, typer.Option(help="a recipe's name  [default: baseline]")] = None,
    data: Annotated[str | None, typer.Option(help="shapes, cifar10, a folder or an .npz  [default: shapes]")] = None,
    width: Annotated[int | None, typer.Option(help="channels of the first layer  [default: the recipe's]")] = None,
    epochs: Annotated[float | None, typer.Option(help="stretch the schedule to this many epochs")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images a batch  [default: the recipe's]")] = None,
    seed: Annotated[int | None, typer.Option(help="weights, order and augmentation  [default: the recipe's]")] = None,
    limit: Annotated[int | None, typer.Option(help="use only the first LIMIT training images")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bf16, fp16 (on a GPU) or float64")] = None,
    compile_net: Annotated[bool, typer.Option("--compile", help="compile the net with torch.compile")] = False,
    every: Annotated[int | None, typer.Option(help="record at every n-th step; 0: loss only  [default: 10]")] = None,
    budget: Annotated[
        float | None, typer.Option(help="the share of time that recording may take, such as 0.05")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a new folder for the run  [default: runs/RECIPE-SEED]")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with this run folder; needs nothing else")] = None,
) -> None:
    """Train a recipe, record the standard readings, and keep the run; or go on with one that was stopped.

    Under torchrun (torchrun --nproc-per-node 2 -m dynamics train ...) the processes share each batch: on CPUs, or with
    a GPU each.
    """
    from .. import runs
    from ..data import load_data
    from ..probes import standard
    from ..recipes import named
    from ..training import first_process_first, joined

    options = {
        "recipe": recipe, "data": data, "width": width, "epochs": epochs, "batch-size": batch_size, "seed": seed,
        "limit": limit, "precision": precision, "compile": compile_net or None, "every": every, "budget": budget,
        "out": out,
    }  # fmt: skip
    if resume is not None:
        given = [f"--{k}" for k, v in options.items() if v is not None]
        if given:
            raise DynamicsError(
                f"--resume goes on with the recorded recipe and data, so {', '.join(given)} cannot be changed: leave "
                "it out, or train a new run"
            )
        with joined() as here:
            _finish(runs.resume(resume), here.rank)
        return
    chosen = named(recipe or "baseline")
    if width is not None:
        chosen = replace(chosen, net=chosen.net.replace(width=width))
    if epochs is not None:
        chosen = chosen.stretch(epochs)
    changes = {"batch_size": batch_size, "seed": seed, "precision": precision, "compile": compile_net or None}
    chosen = replace(chosen, **{k: v for k, v in changes.items() if v is not None})
    if every is not None and every < 0:
        raise DynamicsError(f"--every is a number of steps of at least 1, or 0 to record the loss only, got {every}")
    folder = out or Path("runs") / f"{recipe or 'baseline'}-{chosen.seed}"
    probes = {} if every == 0 else standard(10 if every is None else every)
    with joined() as here:
        with first_process_first():  # it may have to make or to download them
            splits = load_data(data or "shapes", limit=limit)
        if not chosen.steps_in(splits.train):
            raise DynamicsError(
                f"{chosen.epochs:g} epochs are not one step of {chosen.batch_size} images: raise --epochs"
            )
        if not here.rank:
            where = f"{len(splits.train)} images of {splits.train.name}"
            shared = f" in {here.size} processes ({here.backend})" if here.size > 1 else ""
            print(f"training {chosen.net!r} on {where}{shared}, keeping the run in {folder}")
        run = runs.train(chosen, splits.train, splits.test, probes=probes, out=folder, budget=budget)
        _finish(run, here.rank)


def _finish(run: Any, rank: int) -> None:
    """Say how a run ended, once and not by every process."""
    if run.status == "diverged":
        if not rank:
            print(f"diverged: the loss was not finite at step {run.diverged_at}; kept in {run.folder}", file=sys.stderr)
        raise typer.Exit(DIVERGED)
    if not rank:
        accuracy = f", {run['valid'].accuracy.values[-1]:.2%} of the test images right" if "valid" in run else ""
        print(f"finished {run.state.step} steps{accuracy}; look at it with: dynamics show {run.folder}")


@app.command(epilog="Example: dynamics show runs/first")
def show(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what a run is, how it ended, and how its norms and angles compare with theory, layer by layer."""
    from ..runs import load_run

    summary = _summary(load_run(folder))
    if as_json:
        print(json.dumps(summary, allow_nan=False))
        return
    for key in ("net", "optimizer", "data", "status", "steps", "loss", "accuracy", "readings"):
        print(f"{key:10} {_number(summary[key]) if isinstance(summary[key], float | None) else summary[key]}")
    if summary["layers"]:
        last = summary["averaged_steps"]
        print(
            f"\nroot mean squares over the last {last} readings; theory: the equilibrium law at the lr in force, owed"
        )
        print(
            "where the loss is scale-invariant to the layer; elsewhere the general law is: predict(run).angle_general"
        )
        print(f"{'layer':26} {'law':11} {'norm':>9} {'predicted':>9} {'angle':>9} {'theory':>9} {'ratio':>7}")
        for row in summary["layers"]:
            cells = [row["norm"], row["predicted_norm"], row["angle"], row["equilibrium_angle"]]
            print(
                f"{row['layer']:26} {row['law']:11} "
                + " ".join(f"{_number(c):>9}" for c in cells)
                + f" {_number(row['ratio'], 3):>7}"
            )


def _summary(run: Any) -> dict[str, Any]:
    """What `show` prints: plain values, numbers finite or None."""
    import numpy as np

    from ..runs import predict

    about, readings = run.manifest["data"]["train"], list(run.readings)
    recipe = run.recipe  # none, if it was watched
    losses = run["train"].loss.values if "train" in run else np.array([])
    summary: dict[str, Any] = {
        "net": repr(recipe.net) if recipe else f"{run.manifest['model']}, watched",
        "optimizer": repr(recipe.optimizer) if recipe else run.optimizer,
        "data": f"{about['name']}, {about['n']} images" if about else "of the watched loop",
        "status": run.status if run.diverged_at is None else f"{run.status} at step {run.diverged_at}",
        "steps": run.state.step,
        "loss": _finite(np.mean(losses[-50:])) if len(losses) else None,
        "accuracy": _finite(run["valid"].accuracy.values[-1]) if "valid" in run else None,
        "readings": ", ".join(readings),
        "layers": [],
        "averaged_steps": 0,
    }
    if not {"norms", "gradients", "angles"} <= set(readings) or run.status == "diverged":
        return summary
    try:
        theory = predict(run)
    except DynamicsError:  # too few readings yet, or an optimizer without this theory
        return summary
    steps = np.intersect1d(theory.step.values, run["angles"].step.values)
    steps = steps[-max(1, len(steps) // 4) :]
    if not len(steps):
        return summary
    angle = run["angles"].angle.sel(step=steps)
    summary["averaged_steps"] = len(steps)
    for layer in theory.layer.values.tolist():
        rms = float(np.sqrt(np.mean(angle.sel(layer=layer).values.astype(float) ** 2)))
        law = float(np.sqrt(np.mean(theory.angle.sel(step=steps, layer=layer).values ** 2)))
        summary["layers"].append(
            {
                "layer": layer,
                "law": str(theory["law"].sel(layer=layer).values),
                "norm": _finite(run["norms"].norm.sel(step=steps[-1], layer=layer)),
                "predicted_norm": _finite(theory.norm.sel(step=steps[-1], layer=layer)),
                "angle": _finite(rms),
                "equilibrium_angle": _finite(law),
                "ratio": _finite(rms / law) if law else None,
            }
        )
    return summary


@app.command(epilog="Example: dynamics plot runs/first angles --out angles.png")
def plot(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    what: Annotated[
        str, typer.Argument(help="page, norms, angles, batchnorm, schedule, moments, drift, histograms or sharpness")
    ] = "page",
    out: Annotated[Path | None, typer.Option(help="the picture's file; its ending decides the format")] = None,
) -> None:
    """Draw a run: one page of all that was recorded, or one figure of it; prediction dashed over measurement."""
    import matplotlib as mpl

    mpl.use("agg")
    from .. import plots
    from ..runs import load_run, predict

    known = {
        "page": plots.plot_run,
        "norms": plots.plot_norms,
        "angles": plots.plot_angles,
        "batchnorm": plots.plot_batchnorm,
        "schedule": plots.plot_schedule,
        "moments": plots.plot_moments,
        "drift": plots.plot_drift,
        "histograms": plots.plot_histograms,
        "sharpness": plots.plot_sharpness,
    }
    if what not in known:
        raise unknown("plot", what, known)
    run = load_run(folder)
    plain = {"norms": {"predicted": False}, "angles": {"law": None}}.get(what, {})
    if plain:
        try:
            predict(run)
            plain = {}
        except DynamicsError as error:
            print(f"without predictions: {error}")
    drawn = known[what](run, **plain)
    figure = getattr(drawn, "figure", None) or drawn
    target = out or folder / f"{what}.png"
    save(figure, target)
    print(f"wrote {target}")


@app.command(epilog="Example: dynamics export runs/first npz --out first.npz")
def export(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    kind: Annotated[str, typer.Argument(help="npz, csv (a folder with one file a group) or tensorboard (a folder)")],
    out: Annotated[Path | None, typer.Option(help="the file or folder to write  [default: inside the run's]")] = None,
) -> None:
    """Write what was recorded for other tools: NumPy, anything that reads tables, TensorBoard."""
    from ..runs import load_run, to_npz, to_pandas, to_tensorboard

    if kind not in ("npz", "csv", "tensorboard"):
        raise unknown("export", kind, ("npz", "csv", "tensorboard"))
    run = load_run(folder)
    target = out or folder / {"npz": "readings.npz", "csv": "readings", "tensorboard": "tensorboard"}[kind]
    if kind == "npz":
        target = to_npz(run, target)
    elif kind == "tensorboard":
        to_tensorboard(run, target)
    else:
        if target.exists():
            raise DynamicsError(f"{target} exists already: choose another place with --out")
        try:
            target.mkdir(parents=True)
            for name in run.readings:
                to_pandas(run, name).to_csv(target / f"{name}.csv")
        except OSError as error:
            raise DynamicsError(f"cannot write {target} ({error}): choose another place with --out") from None
    print(f"wrote {target}")


@app.command(epilog="Example: dynamics chapter 06 --out build")
def chapter(
    name: Annotated[str, typer.Argument(help="a chapter's number or name")],
    out: Annotated[Path, typer.Option(help="where the page and the executed notebook go")] = Path("build"),
    folder: Annotated[Path, typer.Option(help="where the chapters are")] = ROOT / "notebooks",
) -> None:
    """Execute a chapter, print its table of verdicts, and write it as a page with its figures."""
    from ..chapters import execute, find_chapter

    notebook = find_chapter(name, folder)
    print(f"executing {notebook.name} ...", flush=True)
    verdicts = execute(notebook, out, say=lambda line: print(line, flush=True))
    print(f"\n{'claim':8} {'status':13} {'claimed':>18} {'measured':>10}  {'interval':21} {'n':>4}  text")
    for v in verdicts:
        interval = f"{_number(v['interval_low'])} to {_number(v['interval_high'])}"
        claimed = f"{_number(v['low'])} to {_number(v['high'])}"
        cells = f"{v['id']:8} {v['status']:13} {claimed:>18} {_number(v['measured']):>10}  {interval:21} {v['n']:>4}"
        print(f"{cells}  {v['text']}")
    print(f"\nwrote {out / notebook.with_suffix('.html').name}")


@app.command(epilog="Example: dynamics lab")
def lab(port: Annotated[int, typer.Option(help="where JupyterLab listens")] = 8888) -> None:
    """Open the chapters in JupyterLab."""
    _call([sys.executable, "-m", "jupyterlab", f"--port={port}", str(ROOT / "notebooks")])


@app.command(epilog="Example: python -m dynamics run")
def run() -> None:
    """Execute the equilibrium chapter on the embedded data: what `make run` does once everything is installed."""
    chapter("06", ROOT / "build", ROOT / "notebooks")


@app.command(epilog="Example: python -m dynamics test")
def test() -> None:
    """Lint, the unit tests and the chapters: what `make test` does once everything is installed."""
    lint()
    # a worker a core, and each file in one of them: a chapter's cells share a kernel
    _call([sys.executable, "-m", "pytest", "-n", "auto", "--dist", "loadfile"])


@app.command(epilog="Example: python -m dynamics lint")
def lint() -> None:
    """Check style and format with ruff."""
    _call([sys.executable, "-m", "ruff", "check"])
    _call([sys.executable, "-m", "ruff", "format", "--check"])


@app.command(epilog="Example: python -m dynamics bench")
def bench() -> None:
    """Run the benchmarks one after another."""
    _checkout()
    for script in sorted((ROOT / "benchmarks").glob("[!_]*.py")):
        print(f"running {script.name} ...", flush=True)
        _call([sys.executable, str(script)])


def _checkout() -> None:
    if not (ROOT / "notebooks").is_dir():
        raise DynamicsError("this command works in a checkout of the project: git clone it, then pip install -e .")


def _call(command: Sequence[str]) -> None:
    _checkout()
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        raise typer.Exit(1)


def _triple(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.1f}" for v in values) + ")"


def _finite(value: Any) -> float | None:
    import math

    value = float(value)
    return value if math.isfinite(value) else None


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"
