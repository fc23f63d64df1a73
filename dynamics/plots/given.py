"""What a plot is given: runs, their readings and their layers, each refused in one line where it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DynamicsError, unknown
from ..runs import predict


def is_run(given: Any) -> bool:
    """Whether it can be asked for readings by name: a Run, a recorder, or a plain dict of Datasets."""
    import xarray as xr

    if isinstance(given, str | bytes | Sequence | xr.Dataset | xr.DataArray):
        return False
    if isinstance(given, Mapping):
        return bool(given) and all(isinstance(v, xr.Dataset) for v in given.values())
    return hasattr(given, "__getitem__") and hasattr(given, "__contains__")


def one_run(given: Any, plot: str, why: str = "train(...), load_run(...) and watch(...) make them") -> Any:
    if not is_run(given):
        raise DynamicsError(f"{plot} takes one Run: {why}")
    return given


def as_runs(given: Any) -> list[Any]:
    """One run or several as a list."""
    runs = [given] if is_run(given) else list(given) if isinstance(given, Iterable) else []
    if not runs or not all(map(is_run, runs)):
        raise DynamicsError(
            "a plot takes a Run, or a list of runs of one recipe: train(...) and load_run(...) make them"
        )
    return runs


def read(run: Any, name: str, *variables: str) -> Any:
    """The readings of a probe, which have these variables."""
    import xarray as xr

    try:
        found = run[name]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, xr.Dataset):
        known = ", ".join(map(str, run)) if isinstance(run, Mapping) else "none of that name"
        raise DynamicsError(f"no {name!r} readings in this run (it has {known}): record them with that probe")
    missing = [v for v in variables if v not in found.data_vars]
    if missing:
        holds = ", ".join(map(str, found.data_vars)) or "nothing"
        raise DynamicsError(
            f"the readings {name!r} have no variable {missing[0]!r} (they have {holds}): name= says which to draw"
        )
    if not found.sizes.get("step", 0):
        raise DynamicsError(f"the readings {name!r} are empty so far: draw them after the first step that was read")
    return found


def predicted(run: Any, invariance: Any = None) -> Any:
    """`predict`, of what has an optimizer."""
    if not hasattr(run, "optimizer"):
        raise DynamicsError("bare readings do not say which optimizer they are of: predictions need the Run itself")
    return predict(run, invariance=invariance)


def together(readings: list[Any]) -> list[Any]:
    """Readings that can be drawn as one band; raises DynamicsError where steps or layers differ."""
    for other in readings[1:]:
        for name in ("step", "layer"):
            if not np.array_equal(readings[0][name].values, other[name].values):
                raise DynamicsError(
                    f"these runs differ in their {name}s: plot runs of one recipe, read at the same steps"
                )
    return readings


def pick_layers(known: Iterable[Any], wanted: Sequence[str] | None) -> list[str]:
    """The layers to draw, in the order wanted, else in order of depth."""
    known = list(dict.fromkeys(map(str, known)))
    if isinstance(wanted, str):
        raise DynamicsError(f"layers is a list of names: write layers=[{wanted!r}]")
    for name in wanted or ():
        if name not in known:
            raise unknown("layer", name, known)
    return list(wanted) if wanted else known


def channels_of(readings: Any, layer: str) -> np.ndarray:
    """Positions along `channel` of one layer's channels."""
    return np.flatnonzero(readings.channel_layer.values == layer)
