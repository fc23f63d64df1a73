"""`dynamics recipes`: the ladder, published beside what was measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DynamicsError

if TYPE_CHECKING:
    from ..recipes import Rung


def recipes(
    name: Annotated[str | None, typer.Argument(help="one recipe, in full; nothing: the ladder")] = None,
    runs: Annotated[Path, typer.Option(help="folder of run folders in which to look for measurements")] = Path("runs"),
    long: Annotated[bool, typer.Option("--long", help="post 8's long runs too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a list with one object a recipe")] = False,
) -> None:
    """Print the ladder of Page's posts, what each rung changed and what was published, beside runs made here."""
    from ..recipes import LADDER, LONG, RECIPES, named

    if name is not None:
        recipe = named(name)
        rung = next((r for r in (*LADDER, *LONG) if r.name == name), None)
        if as_json:
            print(json.dumps([_object(name, recipe, rung, [])], allow_nan=False))
            return
        print(f"{name}: {rung.change} ({rung.source})" if rung else name)
        print(json.dumps(recipe.to_json(), indent=2))
        return
    measured = _measured(runs)
    if as_json:
        by_name = {r.name: r for r in (*LADDER, *LONG)}
        objects = (_object(n, r, by_name.get(n), measured.get(n, [])) for n, r in RECIPES.items())
        print(json.dumps(list(objects), allow_nan=False))
        return
    rows = [("recipe", "epochs", "batch", "published", "V100 s", "here", "what changed")]
    rows += [_row(rung, measured.get(rung.name, [])) for rung in (*LADDER, *(LONG if long else ()))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        numbers = (c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=False))
        print("  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]))
    print(
        "\npublished: per cent of the test images right, CIFAR-10 at full width; here: mean (n) of finished "
        f"runs\nof that recipe under {runs}, at their own width, length and data. One in full: dynamics recipes NAME"
    )


def _row(rung: Rung, found: list[dict[str, Any]]) -> tuple[str, ...]:
    accuracy = "" if rung.accuracy is None else f"{rung.accuracy:.1f}{' (flips)' if rung.tta == 'flip' else ''}"
    seconds = "" if rung.seconds is None else f"{rung.seconds:g}"
    return (
        rung.name,
        f"{rung.recipe.epochs:g}",
        str(rung.recipe.batch_size),
        accuracy,
        seconds,
        _mean(found),
        rung.change,
    )


def _mean(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    return f"{100 * sum(f['accuracy'] for f in found) / len(found):.1f} ({len(found)})"


def _object(name: str, recipe: Any, rung: Rung | None, found: list[dict[str, Any]]) -> dict[str, Any]:
    published = None
    if rung is not None:
        published = {
            "accuracy_percent": rung.accuracy, "seconds": rung.seconds, "note": rung.note, "tta": rung.tta,
        }  # fmt: skip
    return {
        "name": name,
        "change": rung.change if rung else None,
        "source": rung.source if rung else None,
        "claims": list(rung.claims) if rung else [],
        "ours": (rung.ours or None) if rung else None,
        "published": published,
        "measured": found,
        "recipe": recipe.to_json(),
    }


def _measured(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Accuracies of the finished runs below a folder, by the names of the rungs that their recipes are."""
    from ..recipes import rungs_of
    from ..runs import load_run
    from ..runs.store import read_manifest
    from ..training import Recipe

    found: dict[str, list[dict[str, Any]]] = {}
    for manifest in sorted(folder.glob("**/run.json")) if folder.is_dir() else ():
        try:
            recipe = read_manifest(manifest.parent)["recipe"]
            rungs = rungs_of(Recipe.from_json(recipe)) if recipe else ()
            if not rungs:  # readings are large, and of no use here
                continue
            run = load_run(manifest.parent)
        except DynamicsError:  # of another version, say: it has nothing to tell here
            continue
        if run.status != "finished" or "valid" not in run:
            continue
        arguments = dict(run.recipe.net.arguments)
        one = {
            "accuracy": float(run["valid"].accuracy.values[-1]),
            "width": arguments.get("width"),
            "epochs": run.recipe.epochs,
            "batch_size": run.recipe.batch_size,
            "seed": run.recipe.seed,
            "data": run.manifest["data"]["train"]["name"],
            "images": run.manifest["data"]["train"]["n"],
            "run": str(manifest.parent),
        }
        for rung in rungs:
            found.setdefault(rung.name, []).append(one)
    return found
