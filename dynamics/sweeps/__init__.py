"""Sweeps: many recipes by many seeds, in a folder that remembers what was done, on any executor."""

from .arms import Arm, Samples, load_arm, samples
from .cluster import dask_executor
from .grid import grid
from .local import LocalProcesses
from .store import Sweep, load_sweep
from .sweep import sweep

__all__ = [
    "Arm",
    "LocalProcesses",
    "Samples",
    "Sweep",
    "dask_executor",
    "grid",
    "load_arm",
    "load_sweep",
    "samples",
    "sweep",
]
