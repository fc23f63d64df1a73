"""Curvature of the loss: the Hessian and Gauss-Newton operators, their spectra, and the subspaces that matter."""

from .density import Density, spectral_density
from .eigen import Eigenpairs, top_eigenpairs
from .krylov import Operator
from .moments import (
    MOMENTS,
    Gap,
    MomentSubspaces,
    OutputMoments,
    by_layer,
    largest_gap,
    moment_shares,
    moment_subspaces,
    output_moments,
    perturb,
    perturbed_outputs,
)
from .operators import GaussNewton, Hessian
from .oracle import pyhessian_eigenvalues, pyhessian_trace
from .subspaces import Projected, orthonormal, project_out, shares, subspace_overlap
from .trace import Trace, trace

__all__ = [
    "MOMENTS",
    "Density",
    "Eigenpairs",
    "Gap",
    "GaussNewton",
    "Hessian",
    "MomentSubspaces",
    "Operator",
    "OutputMoments",
    "Projected",
    "Trace",
    "by_layer",
    "largest_gap",
    "moment_shares",
    "moment_subspaces",
    "orthonormal",
    "output_moments",
    "perturb",
    "perturbed_outputs",
    "project_out",
    "pyhessian_eigenvalues",
    "pyhessian_trace",
    "shares",
    "spectral_density",
    "subspace_overlap",
    "top_eigenpairs",
    "trace",
]
