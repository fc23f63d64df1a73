"""Runs: train and record, watch other loops, keep, load, resume, export, and lay predictions over what was measured."""

from .drift import drift
from .edge import edge_of_stability
from .export import to_npz, to_pandas, to_tensorboard, to_xarray
from .predict import intrinsic_time, predict
from .record import resume, train
from .run import Run, load_run
from .watch import Recorder, watch

__all__ = [
    "Recorder",
    "Run",
    "drift",
    "edge_of_stability",
    "intrinsic_time",
    "load_run",
    "predict",
    "resume",
    "to_npz",
    "to_pandas",
    "to_tensorboard",
    "to_xarray",
    "train",
    "watch",
]
