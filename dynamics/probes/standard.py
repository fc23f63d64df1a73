"""The standard set of probes."""

from __future__ import annotations

from .base import Probe, every
from .norms import batchnorm
from .weights import angles, effective_lr, gradients, weight_norms

MEASURES = {
    "norms": weight_norms,
    "angles": angles,
    "gradients": gradients,
    "effective_lr": effective_lr,
    "batchnorm": batchnorm,
}


def standard(n: int = 10) -> dict[str, Probe]:
    """The standard set at every n-th step: norms, angles, gradients, effective lr, batch-norm parameters."""
    return {name: every(n, measure) for name, measure in MEASURES.items()}
