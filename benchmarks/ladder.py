"""What each rung of the ladder does to accuracy and time at small scale, by paired seeds.

    python benchmarks/ladder.py --data runs/cifar-10-batches-bin --json    # some 90 minutes on two free cores
    python benchmarks/ladder.py --rungs 4-max-pool 4-global-pool           # only these, each against the one before

Every rung of posts 4 and 8 that changes more than the number of epochs is trained on the first --limit images at
--width, for --epochs epochs of batches of --batch-size (lr / batch size and ghost norm's images a part as published,
weight decay too), with the same seeds: weights, order and augmentation are shared wherever two rungs share them.
Nothing else is tuned.

`change` is the mean over seeds of a rung's accuracy minus that of the rung before it, with Student's 95 % interval;
what contains 0 is too small to tell apart, and `runs to tell` says how many seeds would tell a change of the size seen
(two-sided 5 %, power 80 %). `as a family` tells apart in Holm's procedure over all changes: the chance of even one
false alarm is 5 %. `time` is the median ratio of training times to the rung before, run next to each other.
All is kept in --out as it goes, and a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from _common import as_json, machine, parse, parser, print_header, print_json, print_table, span

import dynamics as dyn
from dynamics.recipes import LADDER, Rung, scaled
from dynamics.stats import holm, mean_interval, paired_difference, runs_needed

POSTS = ("4-", "8-")


def chosen(args: argparse.Namespace) -> list[tuple[Rung, dyn.Recipe]]:
    """Rungs with their recipes at this scale, without those that only change the length of training."""
    found: list[tuple[Rung, dyn.Recipe]] = []
    for rung in LADDER:
        if not rung.name.startswith(POSTS):
            continue
        width = args.width * dict(rung.recipe.net.arguments)["width"] // 64
        recipe = scaled(rung.recipe, width=width, epochs=args.epochs, batch_size=args.batch_size)
        same = found and but_knots(recipe) == but_knots(found[-1][1]) and rung.tta == found[-1][0].tta
        if not same:
            found.append((rung, recipe))
    if args.rungs:
        known = [rung.name for rung, _ in found]
        odd = [name for name in args.rungs if name not in known]
        if odd:
            raise SystemExit(f"no rung {odd[0]} at this scale: choose from {', '.join(known)}")
        found = [pair for pair in found if pair[0].name in args.rungs]
    return found


def but_knots(recipe: dyn.Recipe) -> dyn.Recipe:
    """With the schedule's values but not its times: what two lengths of one recipe have in common."""
    lr = recipe.optimizer.lr
    plain = dyn.PiecewiseLinear(tuple(range(len(lr.values))), lr.values)
    return replace(recipe, optimizer=replace(recipe.optimizer, lr=plain))


def measured(rung: Rung, recipe: dyn.Recipe, seed: int, data: Any, known: dict[str, Any]) -> dict[str, Any]:
    """One run: seconds of training without evaluation, and accuracy as the rung wants it measured.

    known: figures of runs made before, by recipe; rungs that only evaluate otherwise share one.
    """
    recipe = replace(recipe, seed=seed)
    key = json.dumps(recipe.to_json(), sort_keys=True)
    if key not in known:
        begin = time.perf_counter()
        run = dyn.train(recipe, data.train, probes={}, progress=False)
        took = time.perf_counter() - begin
        state = dyn.averaged(run) if recipe.average is not None else None
        by_view = {tta: dyn.evaluate(run, data.test, state=state, tta=tta).accuracy for tta in ("none", "flip")}
        known[key] = {"seconds": took, "status": run.status, **by_view}
    return {"rung": rung.name, "seed": seed, **known[key], "accuracy": known[key][rung.tta]}


def collect(
    args: argparse.Namespace, rungs: list[tuple[Rung, dyn.Recipe]], data: Any, out: Path
) -> list[dict[str, Any]]:
    """All runs, seed by seed so that neighbours in a table are neighbours in time; each is written down when made."""
    from tqdm import tqdm

    kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    setting = {
        "data": data.train.name, "images": len(data.train), "fingerprint": data.train.fingerprint(),
        "width": args.width, "epochs": args.epochs, "batch_size": args.batch_size,
    }  # fmt: skip
    if kept and kept[0]["setting"] != setting:
        raise SystemExit(f"{out} holds runs of another setting ({kept[0]['setting']}): choose another --out")
    known = {row["key"]: row["figures"] for row in kept}
    rows = []
    jobs = [(seed, *pair) for seed in range(args.seeds) for pair in rungs]
    for seed, rung, recipe in tqdm(jobs, desc="runs", unit="run"):
        before = set(known)
        rows.append(measured(rung, recipe, seed, data, known))
        for key in known.keys() - before:
            with out.open("a") as file:
                file.write(json.dumps({"key": key, "figures": known[key], "setting": setting}) + "\n")
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", default="shapes", help="shapes, cifar10, a folder or an .npz")
    made.add_argument("--limit", type=int, default=10_000, help="training images")
    made.add_argument("--width", type=int, default=16)
    made.add_argument("--epochs", type=float, default=8)
    made.add_argument("--batch-size", type=int, default=128)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--rungs", nargs="+", metavar="NAME", help="only these")
    made.add_argument("--out", type=Path, default=Path("runs/ladder.jsonl"), help="where figures of runs are kept")
    args = parse(made, limit=256, width=4, epochs=1, batch_size=64, seeds=2, rungs=["4-max-pool", "8-final"])
    if args.seeds < 2:
        raise SystemExit("--seeds must be at least 2: one run has no interval")
    about = machine(args.threads)
    data = dyn.load_data(args.data, limit=args.limit)
    print_header(
        f"The ladder: {len(data.train)} images of {data.train.name}, width {args.width}, {args.epochs:g} epochs of "
        f"batches of {args.batch_size}, {args.seeds} seeds",
        about,
        args.quick,
    )
    rungs = chosen(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = collect(args, rungs, data, args.out)
    figures: dict[str, Any] = {}
    table = []
    last: list[dict[str, Any]] | None = None
    changes: dict[str, float] = {}  # p-values
    for rung, _ in rungs:
        mine = [row for row in rows if row["rung"] == rung.name]
        accuracy = mean_interval([100 * row["accuracy"] for row in mine])
        one: dict[str, Any] = {
            "accuracy": as_json(accuracy), "seconds": median(row["seconds"] for row in mine),
            "diverged": sum(row["status"] == "diverged" for row in mine), "published": rung.accuracy, "tta": rung.tta,
        }  # fmt: skip
        cells = [rung.name, rung.change, f"{accuracy.mean:.2f}", span(accuracy, 2), f"{one['seconds']:.1f}"]
        if last is not None:
            change = paired_difference([100 * r["accuracy"] for r in mine], [100 * r["accuracy"] for r in last])
            ratio = median(a["seconds"] / b["seconds"] for a, b in zip(mine, last, strict=True))
            told = change.low > 0 or change.high < 0
            need = runs_needed(change.mean, change.sd) if not told and abs(change.mean) > change.sd / 100 else None
            one |= {
                "change": {name: getattr(change, name) for name in ("mean", "low", "high", "p", "n")},
                "told_apart": told, "runs_to_tell": need, "time_ratio": ratio,
            }  # fmt: skip
            changes[rung.name] = change.p
            cells += [f"{change.mean:+.2f} ({change.low:.2f} to {change.high:.2f})", "yes" if told else "no"]
            cells += [str(need or ""), f"{ratio:.2f}"]
        figures[rung.name] = one
        table.append(cells)
        last = mine
    if changes:
        for name, told in zip(changes, holm(list(changes.values())).rejected, strict=True):
            figures[name]["as_a_family"] = told
    for cells in table:
        cells[5:] = [*(cells[5:] or [""] * 4), {True: "yes", False: "no"}.get(figures[cells[0]].get("as_a_family"), "")]
    columns = (
        "rung",
        "what changed",
        "accuracy %",
        "95 %",
        "s",
        "change, points",
        "told apart",
        "runs to tell",
        "time",
    )
    print_table((*columns, "as a family"), table)
    if args.json:
        print_json({"rungs": figures, "setting": vars(args) | {"out": str(args.out)}}, about)


if __name__ == "__main__":
    main()
