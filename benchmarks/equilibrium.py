"""Do step angles settle on the equilibrium law? Measured over predicted, layer by layer, at constant lr.

    python benchmarks/equilibrium.py                       # the embedded data
    python benchmarks/equilibrium.py --data FOLDER --json  # real images in CIFAR-10's binary layout

Heavy ball and Nesterov, each from three seeds: root mean square of the single-step angle over the steps after sixteen
time constants (800 steps, until gradient norms drift little: the law takes them as constant), at least 400 of them,
over the law sqrt(2 lr wd / (1 + momentum)) or Nesterov's. Hidden convolutions are judged; the first and the last layer,
and dead filters, are reported apart.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np

import dynamics as dyn
from dynamics import theory
from dynamics.recipes import EQUILIBRIUM
from dynamics.stats import rms

BOUNDS = {"heavy ball": (0.04, 0.08), "nesterov": (0.06, 0.15)}


def ratios(recipe: dyn.Recipe, split: dyn.Split) -> dict[str, object]:
    """Measured over predicted angle by layer, and over live filters, and how many filters are dead."""
    optimizer = recipe.optimizer
    law = theory.equilibrium_angle(
        optimizer.lr, optimizer.weight_decay, momentum=optimizer.momentum, nesterov=optimizer.nesterov
    )
    settled = int(16 * theory.time_constant(optimizer.lr, optimizer.weight_decay, momentum=optimizer.momentum))
    run = dyn.train(recipe, split, probes={"angles": dyn.every(1, dyn.angles)}, progress=False)
    angles = run["angles"].sel(step=slice(settled, None))
    assert len(angles.step) >= 400, f"only {len(angles.step)} steps after the transient: raise epochs"
    live = angles.live.values.mean(0) > 0.5
    by_filter = rms(angles.filter_angle.values, axis=0) / law
    return {
        "layers": dict(
            zip(angles.layer.values.tolist(), (rms(angles.angle.values, axis=0) / law).tolist(), strict=True)
        ),
        "live_filters": float(np.median(by_filter[live])),
        "dead": int((~live).sum()),
        "filters": len(live),
        "steps": len(angles.step),
        "loss": float(run["train"].loss.values[-100:].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="shapes, cifar10, a folder or an .npz")
    parser.add_argument("--limit", type=int, default=10_000, help="training images (default 10000)")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    split = dyn.load_data(arguments.data, limit=arguments.limit).train
    result: dict[str, object] = {"data": split.name if arguments.data == "shapes" else "images", "n": len(split)}
    for kind, (median_bound, worst_bound) in BOUNDS.items():
        base = replace(EQUILIBRIUM, net=EQUILIBRIUM.net.replace(width=arguments.width), epochs=16)
        recipe = replace(base, optimizer=replace(base.optimizer, nesterov=kind == "nesterov"))
        found = [ratios(replace(recipe, seed=seed), split) for seed in range(arguments.seeds)]
        names = list(found[0]["layers"])
        print(f"\n{kind}, width {arguments.width}, {len(split)} images, {arguments.seeds} seeds, "
              f"{found[0]['steps']} steps each: measured / predicted")  # fmt: skip
        for name in names:
            print(f"  {name:26}" + " ".join(f"{f['layers'][name]:7.3f}" for f in found))
        hidden = np.array([[f["layers"][n] for n in names[1:-1]] for f in found])
        off = np.abs(hidden - 1)
        print(f"  hidden convolutions: median off by {np.median(off):.1%} (bound {median_bound:.0%}), "
              f"worst {off.max():.1%} (bound {worst_bound:.0%})")  # fmt: skip
        dead = ", ".join(f"{f['dead']} of {f['filters']}" for f in found)
        print(f"  dead filters: {dead}; live filters, median ratio: "
              + ", ".join(f"{f['live_filters']:.3f}" for f in found)
              + "; final loss: " + ", ".join(f"{f['loss']:.3f}" for f in found))  # fmt: skip
        result[kind.replace(" ", "_")] = {
            "median_off": float(np.median(off)),
            "worst_off": float(off.max()),
            "first": [f["layers"][names[0]] for f in found],
            "last": [f["layers"][names[-1]] for f in found],
            "dead": [f["dead"] for f in found],
            "live_filters": [f["live_filters"] for f in found],
            "within_bounds": bool(np.median(off) <= median_bound and off.max() <= worst_bound),
        }
    if arguments.json:
        print(json.dumps(result, allow_nan=False))


if __name__ == "__main__":
    main()
