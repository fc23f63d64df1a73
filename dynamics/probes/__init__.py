"""Probes: what to measure, and when. A probe is a function of a Snapshot; `every` and `at` say when it is due."""

from .activations import histograms, moments, outputs
from .base import At, Every, Probe, Reading, at, every, log_spaced, reads
from .curvature import sharpness, spectrum
from .motion import diffusion, gradient_autocorrelation, momentum_alignment
from .norms import batchnorm
from .standard import standard
from .weights import angles, effective_lr, gradients, weight_norms

__all__ = [
    "At",
    "Every",
    "Probe",
    "Reading",
    "angles",
    "at",
    "batchnorm",
    "diffusion",
    "effective_lr",
    "every",
    "gradient_autocorrelation",
    "gradients",
    "histograms",
    "log_spaced",
    "moments",
    "momentum_alignment",
    "outputs",
    "reads",
    "sharpness",
    "spectrum",
    "standard",
    "weight_norms",
]
