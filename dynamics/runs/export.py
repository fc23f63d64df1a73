"""What was recorded, for other tools: pandas, NumPy archives, xarray trees, TensorBoard.

Each function takes a Run, or anything else that has `readings`: a recorder still at work too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import DynamicsError, unknown

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

NULLABLE = {"i": "Int64", "u": "UInt64", "b": "boolean"}
"""pandas' kinds that know a missing value: without them whole numbers become floats, and truth values objects."""


class Recorded(Protocol):
    """What has readings: datasets along `step`, by name."""

    @property
    def readings(self) -> Mapping[str, xr.Dataset]: ...


def to_pandas(run: Recorded, name: str) -> pd.DataFrame:
    """One group of readings as a tidy frame: a row for each step and element, coordinates and variables as columns.

    What is one number a step repeats along the rows; a group of nothing else is indexed by step. Where variables differ
    in their dimensions (a norm by layer, another by filter), each set of dimensions has rows of its own, missing in the
    others' columns (nan, <NA>): frame.dropna(subset="norm"). Raises DynamicsError for a name that was not recorded.
    """
    import pandas as pd

    readings = run.readings  # a recorder makes them anew at every look
    if name not in readings:
        raise unknown("reading", name, readings)
    dataset = readings[name]
    by_dims: dict[tuple, list] = {}
    for key, variable in dataset.data_vars.items():
        by_dims.setdefault(variable.dims, []).append(key)
    scalars = by_dims.pop(("step",), [])
    if not by_dims:
        return dataset[scalars].to_dataframe()
    blocks = [
        dataset[[*keys, *scalars]].to_dataframe(dim_order=list(dims)).reset_index() for dims, keys in by_dims.items()
    ]
    if len(blocks) > 1:
        blocks = [
            block.astype({c: NULLABLE[t.kind] for c, t in block.dtypes.items() if c != "step" and t.kind in NULLABLE})
            for block in blocks
        ]
    frame = pd.concat(blocks, ignore_index=True)
    variables = list(dataset.data_vars)
    return frame[[*(c for c in frame if c not in variables), *variables]]


def to_npz(run: Recorded, path: str | Path) -> Path:
    """Write all readings as one compressed .npz: "norms/norm", and the coordinates "norms/step" and "norms/layer".

    numpy.load reads it with allow_pickle=False, its default; names are unicode arrays. Returns the path, with .npz
    added where it is missing. Raises DynamicsError where the file exists or cannot be written.
    """
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    arrays = {
        f"{name}/{key}": _without_objects(variable.values)
        for name, dataset in run.readings.items()
        for key, variable in dataset.variables.items()
    }
    with _writing(path):
        if path.exists():
            raise DynamicsError(f"{path} exists already: choose another name, or delete it")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            np.savez_compressed(aside, **arrays)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def to_xarray(run: Recorded) -> xr.DataTree:
    """All readings as one tree with a child for each: tree["norms"]["norm"].

    The groups are siblings: each has its own steps, and in a DataTree a child shares its parent's coordinates.
    """
    import xarray as xr

    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in run.readings.items()})


def to_tensorboard(run: Recorded, folder: str | Path, *, per_filter: bool = False) -> None:
    """Write readings as TensorBoard scalars at their steps, under tags such as "train/loss", "norms/norm/layer1.conv".

    A tag is group, variable and the coordinates of the element. Dimensions without a coordinate of their own name are
    filters and channels, and make thousands of tags: they are left out unless `per_filter`, which writes
    "norms/filter_norm/layer1.conv/3". nan is left out. Raises DynamicsError where the folder holds something or cannot
    be written, and where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DynamicsError("TensorBoard is not installed: pip install training-dynamics[tensorboard]") from None
    folder = Path(folder)
    with _writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DynamicsError(f"{folder} exists already: choose another folder, or delete it")
        with SummaryWriter(folder) as writer:
            for name, dataset in run.readings.items():
                steps = dataset["step"].values.tolist()
                for key, array in dataset.data_vars.items():
                    for labels, column in _columns(array, per_filter):
                        tag = "/".join((name, str(key), *labels))
                        for step, value in zip(steps, column.tolist(), strict=True):
                            if not math.isnan(value):
                                writer.add_scalar(tag, float(value), step)


def _columns(array: xr.DataArray, per_filter: bool) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Each element's labels, and its values along step."""
    array = array.transpose("step", ...)
    dims, values = array.dims[1:], array.values
    if per_filter or all(d in array.coords for d in dims):
        labels = [_labels(array, d) for d in dims]
        for index in np.ndindex(values.shape[1:]):
            yield tuple(names[i] for names, i in zip(labels, index, strict=True)), values[(slice(None), *index)]


def _labels(array: xr.DataArray, dim: object) -> list[str]:
    """What tells the elements along a dimension apart: its own coordinate, or all others, or their place."""
    own = [array[dim]] if dim in array.coords else [c for c in array.coords.values() if c.dims == (dim,)]
    parts = [c.values.tolist() for c in own]
    size = array.sizes[dim]
    if len(set(zip(*parts, strict=True))) < size:
        parts.append(list(range(size)))
    return ["/".join(map(str, part)) for part in zip(*parts, strict=True)]


def _without_objects(values: np.ndarray) -> np.ndarray:
    """Names as a unicode array: NumPy would pickle objects."""
    return values.astype(np.str_) if values.dtype.kind in "OT" else values


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn storage errors into one line."""
    try:
        yield
    except OSError as error:
        raise DynamicsError(f"cannot write {path} ({error.strerror}): choose a place that you may write to") from None
