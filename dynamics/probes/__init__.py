"""Probes: what to measure, and when. A probe is a function of a Snapshot; `every` and `at` say when it is due."""

from .base import At, Every, Probe, Reading, at, every, reads, standard
from .norms import batchnorm
from .weights import angles, effective_lr, gradients, weight_norms

__all__ = [
    "At",
    "Every",
    "Probe",
    "Reading",
    "angles",
    "at",
    "batchnorm",
    "effective_lr",
    "every",
    "gradients",
    "reads",
    "standard",
    "weight_norms",
]
