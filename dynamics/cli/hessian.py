"""`dynamics hessian`: the leading eigenpairs of a run's Hessian."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DynamicsError, unknown
from .picture import save


def hessian(
    folder: Annotated[Path, typer.Argument(help="a run folder")],
    k: Annotated[int, typer.Option("-k", help="how many eigenpairs")] = 10,
    bn: Annotated[str, typer.Option(help="batch norm: batch (each batch's statistics) or frozen (running)")] = "batch",
    which: Annotated[str, typer.Option(help="largest, smallest or magnitude")] = "largest",
    images: Annotated[int, typer.Option(help="training images, not augmented, in whole batches")] = 512,
    batch_size: Annotated[int | None, typer.Option(help="images a batch  [default: the recipe's]")] = None,
    precision: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    tol: Annotated[
        float | None, typer.Option(help="residual over the largest eigenvalue  [default: 1e-3, or 1e-5 in float64]")
    ] = None,
    shares: Annotated[bool, typer.Option("--shares", help="shares in the spans of the output moments")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="estimate the trace, with its standard error")] = False,
    out: Annotated[Path | None, typer.Option(help="draw the eigenvalues; its ending decides the format")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """The leading eigenpairs of the Hessian of a run's loss at its final weights, each with its residual."""
    import warnings

    from .. import curvature, plots
    from ..runs import load_run

    if out is not None and (out.suffix not in (".png", ".pdf", ".svg") or not out.parent.is_dir()):
        raise DynamicsError(
            f"cannot draw into {out}: choose a name in an existing folder, ending in .png, .pdf or .svg"
        )
    net, loss, batches, about = _measured(load_run(folder), images, batch_size, precision)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        op = curvature.Hessian(net, loss, batches, bn=bn)
        pairs = curvature.top_eigenpairs(op, k, which=which, tol=tol)
        found = {
            "run": str(folder),
            **about,
            "bn": bn,
            "which": which,
            "parameters": int(op.shape[0]),
            "eigenvalues": pairs.values.tolist(),
            "residuals": pairs.residuals.tolist(),
            "converged": pairs.converged.tolist(),
            "products": pairs.products,
            "gap": dict(zip(("count", "ratio"), curvature.largest_gap(pairs.values), strict=True)),
        }
        if shares:
            spaces = curvature.moment_subspaces(curvature.output_moments(net, batches, bn=bn))
            found["shares"] = dict(
                zip(curvature.MOMENTS, curvature.moment_shares(pairs.vectors, spaces).T.tolist(), strict=True)
            )
        if trace:
            estimate = curvature.trace(op)
            found["trace"] = {"value": estimate.value, "error": estimate.error, "products": estimate.products}
    for warning in told:
        print(f"dynamics: {warning.message}", file=sys.stderr)
    if out is not None:
        import matplotlib as mpl

        mpl.use("agg")
        save(plots.plot_spectrum(pairs).figure, out)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    _print_spectrum(found)
    if out is not None:
        print(f"wrote {out}")


def _measured(run: Any, images: int, batch_size: int | None, precision: str) -> tuple[Any, Any, list[Any], dict]:
    """The net of a run at its last state, its loss, batches of its own data, and what to call them."""
    from functools import partial

    import torch
    import torch.nn.functional as F

    from ..data import batches, load_data

    if run.recipe is None:
        raise DynamicsError(
            "a watched run has no recipe to build its net from: in Python, Hessian(net, loss, batches) takes any module"
        )
    if precision not in ("float32", "float64"):
        raise unknown("precision", precision, ("float32", "float64"))
    if images < 1 or (batch_size is not None and batch_size < 1):
        raise DynamicsError(f"--images and --batch-size are at least 1, got {images} and {batch_size or 'the recipe'}")
    data = run.manifest["data"]["train"]
    try:
        split = load_data(data["name"], limit=data["n"]).train
    except DynamicsError as error:
        raise DynamicsError(f"this run's data cannot be found again ({error})") from None
    if split.fingerprint() != data["fingerprint"]:
        raise DynamicsError(f"the data {data['name']!r} are not those that this run was trained on: put them back")
    images = min(images, len(split))
    size = min(batch_size or run.recipe.batch_size, images)
    # the images of the first epoch's first batches, not augmented: shuffled, since files may be sorted by class
    drawn = [b for b, _ in zip(batches(split, size, seed=run.recipe.seed), range(images // size), strict=False)]
    dtype = torch.float64 if precision == "float64" else torch.float32
    net = run.recipe.net.build(classes=len(split.classes), seed=run.recipe.seed).to(split.device, dtype)
    net.load_state_dict({**run.state.params, **run.state.buffers})
    smoothing = run.recipe.label_smoothing
    about = {
        "net": repr(run.recipe.net),
        "step": run.state.step,
        "data": data["name"],
        "images": size * len(drawn),
        "batch_size": size,
        "loss": f"cross-entropy, label smoothing {smoothing:g}" if smoothing else "cross-entropy",
        "precision": precision,
    }
    return net, partial(F.cross_entropy, label_smoothing=smoothing), [(b.x.to(dtype), b.y) for b in drawn], about


def _print_spectrum(found: dict[str, Any]) -> None:
    """The table that `hessian` prints."""
    n, size = found["images"], found["batch_size"]
    print(f"{found['net']} at step {found['step']}; {found['loss']}, the mean over {n} images in batches of {size}")
    statistics = "of each batch" if found["bn"] == "batch" else "running"
    print(f"batch norm: statistics {statistics}; {found['parameters']} parameters, {found['precision']}\n")
    spans = found.get("shares", {})
    print(f"{'':>3} {'eigenvalue':>12} {'residual':>10}" + "".join(f" {name:>10}" for name in spans))
    for i, (value, residual) in enumerate(zip(found["eigenvalues"], found["residuals"], strict=True)):
        cells = "".join(f" {column[i]:>10.1%}" for column in spans.values())
        mark = "" if found["converged"][i] else "  not converged"
        print(f"{i + 1:>3} {value:>12.6g} {residual:>10.1e}{cells}{mark}")
    print(f"\n{found['products']} Hessian-vector products", end="")
    gap = found["gap"]
    print(f"; the largest gap is ×{gap['ratio']:.2f}, below the first {gap['count']}" if gap["count"] else "")
    if "trace" in found:
        print(f"trace {found['trace']['value']:.6g} ± {found['trace']['error']:.2g} (one standard error)")
