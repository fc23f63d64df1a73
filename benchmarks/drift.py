"""Internal covariate shift itself: how far do channels' means and scales move in training, with batch norm and without?

    python benchmarks/drift.py --out drift.png                    # the embedded data
    python benchmarks/drift.py --data FOLDER --out drift.png --json   # real images in CIFAR-10's binary layout

The eight-layer net of Page's post 7 with batch norm, the same with its norms frozen at the statistics of the initial
weights, and without norm: one recipe, the same initial weights, data order and augmentation. On a fixed batch of
training images, the moments of every convolution's outputs at logarithmically spaced steps; their shift since the start
is in standard deviations of the start. Drawn with `plot_drift`, one panel a net.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _common import machine, parse, parser, print_header, print_json, print_table

import dynamics as dyn

NORMS = ("batch", "frozen", "none")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", default="shapes", help="shapes, cifar10, a folder or an .npz")
    made.add_argument("--limit", type=int, default=10_000, help="training images (default 10000)")
    made.add_argument("--width", type=int, default=16)
    made.add_argument("--epochs", type=float, default=8)
    made.add_argument("--lr", type=float, default=0.05, help="peak lr, batch size 128 (default 0.05)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="a picture of the drift, one panel a net")
    arguments = parse(made, epochs=1, limit=2560)
    about = machine(arguments.threads)
    print_header("drift: moments of channels over training", about, arguments.quick)
    train, test = dyn.load_data(arguments.data, limit=arguments.limit)
    runs = {}
    for norm in NORMS:
        lr = dyn.PiecewiseLinear((0, arguments.epochs / 4, arguments.epochs), (0, arguments.lr, 0))
        recipe = dyn.Recipe(
            dyn.Net("plain8", width=arguments.width, norm=norm),
            dyn.SGD(lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
            batch_size=128, epochs=arguments.epochs, label_smoothing=0.2, seed=arguments.seed,
        )  # fmt: skip
        read = dyn.moments(train[:512])
        probes = {"moments": dyn.at(dyn.log_spaced(recipe.steps_in(train), 25), read)}
        runs[norm] = dyn.train(recipe, train, test, probes=probes, progress=False)
        scored = runs[norm]["valid"]
        print(f"norm={norm}: {runs[norm].status}, test accuracy {float(scored.accuracy[-1]):.1%}", flush=True)

    shifts = {norm: dyn.drift(run["moments"]) for norm, run in runs.items()}
    layers = [n for n in dict.fromkeys(shifts["none"].channel_layer.values.tolist()) if n.endswith("conv")]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for variable, what in (("mean", "means, in initial standard deviations"), ("log_sd", "log standard deviations")):
        print(f"\nshift of {what} over the run: median over channels of its size")
        rows = []
        for layer in layers:
            row = {}
            for norm, shift in shifts.items():
                last = shift[variable].isel(step=-1, channel=shift.channel_layer.values == layer)
                row[norm] = float(np.nanmedian(np.abs(last.values)))
            rows.append((layer, *(f"{row[norm]:.3f}" for norm in NORMS)))
            result.setdefault(variable, {})[layer] = row
        print_table(("layer", *NORMS), rows)
    if arguments.out:
        import matplotlib as mpl

        mpl.use("agg")
        axes = dyn.plot_drift(runs, layers=layers, log_steps=True)
        axes[0].figure.savefig(arguments.out, dpi=150)
        print(f"wrote {arguments.out}")
    if arguments.json:
        accuracy = {norm: float(run["valid"].accuracy[-1]) for norm, run in runs.items()}
        print_json({"shift": result, "accuracy": accuracy, "n": len(train), "epochs": arguments.epochs}, about)


if __name__ == "__main__":
    main()
