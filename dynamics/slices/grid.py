"""The cells of a slice as recipes, and their results as one labelled array."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Split
from ..errors import DynamicsError, unknown
from ..optim import Constant, PiecewiseLinear
from ..sweeps import sweep
from ..training import Recipe

if TYPE_CHECKING:
    import xarray as xr

EXPONENTS = {"lr": 1.0, "weight_decay": 1.0, "momentum": -1.0, "batch_size": -1.0}
"""Powers of lr, weight_decay, 1 - momentum and batch_size in what flat directions hold fixed."""

DAMPING = "1 - momentum"
"""The coordinate that stands beside `momentum` in a slice: its logarithm is what matters."""

Axis = Mapping[str, Iterable[float]]


def flat_slope(x: str, y: str) -> float:
    """The slope of log x over log y along the theoretical flat direction: 1 for lr over batch_size or 1 - momentum, -1
    for lr over weight_decay. Source: Page, post 5."""
    return -EXPONENTS[_known(y)] / EXPONENTS[_known(x)]


def hyperparameters(recipe: Recipe) -> dict[str, float]:
    """lr (the largest of the schedule), batch_size, momentum and weight_decay of a recipe."""
    lr = getattr(recipe.optimizer, "lr", None)
    peak = max(lr.values) if isinstance(lr, PiecewiseLinear) else lr.value if isinstance(lr, Constant) else lr
    if isinstance(peak, bool) or not isinstance(peak, int | float):
        raise DynamicsError(f"a slice needs an lr that is a number, Constant or PiecewiseLinear, got {lr!r}: use one")
    found = {"lr": float(peak), "batch_size": recipe.batch_size}
    for name in ("momentum", "weight_decay"):
        if not hasattr(recipe.optimizer, name):
            raise DynamicsError(f"{type(recipe.optimizer).__name__} has no {name}: slices are for SGD and its like")
        found[name] = getattr(recipe.optimizer, name)
    return found


def with_values(recipe: Recipe, values: Mapping[str, float]) -> Recipe:
    """The recipe at other hyperparameters; a schedule keeps its shape, with `lr` as its largest value.

    Raises DynamicsError for a name that is none of lr, batch_size, momentum and weight_decay, and for a batch size that
    is no whole number.
    """
    optimizer = recipe.optimizer
    for name, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        if _known(name) == "batch_size":
            if value != int(value):
                raise DynamicsError(f"batch_size must be a whole number, got {value!r}")
            recipe = replace(recipe, batch_size=int(value))
        elif name == "lr":
            optimizer = replace(optimizer, lr=_with_peak(optimizer.lr, float(value), hyperparameters(recipe)["lr"]))
        elif is_dataclass(optimizer) and name in {f.name for f in fields(optimizer)}:
            optimizer = replace(optimizer, **{name: value})
        else:
            raise DynamicsError(f"{type(optimizer).__name__} has no {name}: slices are for SGD and its like")
    return replace(recipe, optimizer=optimizer)


def slice_recipes(recipe: Recipe, x: Axis, y: Axis) -> dict[str, Recipe]:
    """Every cell of a slice by name: slice_recipes(recipe, {"lr": [0.1, 0.2]}, {"batch_size": [32, 64]}).

    A name says all four hyperparameters, so slices through one recipe share the cells in which they cross:
    {**slice_recipes(r, x, y), **slice_recipes(r, x, z)}. Raises DynamicsError as `slice2d`.
    """
    (x_name, xs), (y_name, ys) = _axis(x), _axis(y)
    if x_name == y_name:
        raise DynamicsError(f"a slice needs two hyperparameters, got {x_name} twice: choose another y")
    cells = (with_values(recipe, {x_name: a, y_name: b}) for b in ys for a in xs)
    return {cell_name(cell): cell for cell in cells}


def cell_name(recipe: Recipe) -> str:
    return ",".join(f"{name}={value:g}" for name, value in hyperparameters(recipe).items())


def slice2d(
    recipe: Recipe,
    x: Axis,
    y: Axis,
    seeds: Iterable[int],
    *,
    out: str | Path,
    train: Split | str,
    valid: Split | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Train a recipe over two hyperparameters and seeds, as one sweep, and return `loss` (nat) and `error` (share).

    x, y: {name: values}, increasing, names among lr (the schedule's peak), batch_size, momentum and weight_decay. The
    result has dimensions of those names, x first, and seed; nan where a run diverged. Beside momentum stands the
    coordinate "1 - momentum". attrs["flat"] is `flat_slope`. Factors alike in x and y are best: where the ridge has
    slope 1 or -1, every row then sees the same points around its minimum. Other arguments, and what a sweep that was
    stopped does, as `sweep`. Raises DynamicsError for other names, fewer than two values, values that do not increase
    or have no logarithm, and as `sweep`.
    """
    if isinstance(train, Split) and valid is None:
        raise DynamicsError("a slice is of the test loss: pass valid=, a Split, or train= as a name")
    made = sweep(
        slice_recipes(recipe, x, y), seeds, out=out, train=train, valid=valid, executor=executor, workers=workers,
        threads=threads, progress=progress,
    )  # fmt: skip
    return slice_of(made.table(), recipe, x, y)


def slice_of(table: xr.Dataset, recipe: Recipe, x: Axis, y: Axis) -> xr.Dataset:
    """The slice that lies in a table [recipe, seed] of a sweep or a pack: `loss` and `error` as `slice2d` returns them.

    table: has `loss` and `accuracy`. Raises DynamicsError where a cell is missing.
    """
    import xarray as xr

    (x_name, xs), (y_name, ys) = _axis(x), _axis(y)
    names = list(slice_recipes(recipe, x, y))
    here = set(table.recipe.values.tolist())
    if missing := [name for name in names if name not in here]:
        raise DynamicsError(f"{len(missing)} cells of this slice are not in the table, first {missing[0]}: train them")
    cells = table.sel(recipe=names)
    shape, dims = (len(ys), len(xs), table.sizes["seed"]), (y_name, x_name, "seed")
    found = xr.Dataset(
        {
            "loss": (dims, cells.loss.values.reshape(shape), {"units": "nat"}),
            "error": (dims, 1 - cells.accuracy.values.reshape(shape), {"units": "1"}),
        },
        {x_name: xs, y_name: ys, "seed": table.seed.values},
        {"x": x_name, "y": y_name, "flat": flat_slope(x_name, y_name)},
    ).transpose(x_name, y_name, "seed")
    if "momentum" in (x_name, y_name):
        found = found.assign_coords({DAMPING: ("momentum", 1 - found.momentum.values)})
    return found


def logs(found: xr.Dataset, name: str) -> np.ndarray:
    """The logarithm of a slice's coordinate, of 1 - momentum for momentum."""
    return np.log(np.asarray(found.coords[DAMPING if name == "momentum" else name].values, dtype=float))


def _axis(given: Axis) -> tuple[str, list[float]]:
    if not isinstance(given, Mapping) or len(given) != 1:
        raise DynamicsError("an axis of a slice is one name with its values, such as {'lr': [0.1, 0.2, 0.4]}")
    ((name, values),) = given.items()
    _known(name)
    values = [v.item() if isinstance(v, np.generic) else v for v in values]
    if len(values) < 2:
        raise DynamicsError(f"the slice's {name} has {len(values)} values: give at least two")
    if any(b <= a for a, b in pairwise(values)):
        raise DynamicsError(f"the slice's {name} must increase, got {values}: sort it, each value once")
    low, high = (0.0, 1.0) if name == "momentum" else (math.ulp(0.0), math.inf)
    if not (low <= values[0] and values[-1] < high):
        what = "at least 0 and below 1" if name == "momentum" else "positive and finite"
        raise DynamicsError(f"the slice's {name} must be {what} to have a logarithm, got {values}")
    return name, values


def _known(name: str) -> str:
    if name not in EXPONENTS:
        raise unknown("hyperparameter of a slice", name, EXPONENTS)
    return name


def _with_peak(lr: Any, peak: float, before: float) -> Any:
    if isinstance(lr, PiecewiseLinear):
        if not before:
            raise DynamicsError("this schedule is 0 throughout, so it has no shape to keep: give it another peak")
        return PiecewiseLinear(lr.knots, tuple(v / before * peak for v in lr.values))
    return Constant(peak) if isinstance(lr, Constant) else peak
