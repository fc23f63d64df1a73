"""Predictions laid over a run: what theory says its angles and norms should be, from what was in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import theory
from ..errors import DynamicsError
from .run import Run

if TYPE_CHECKING:
    import xarray as xr


def predict(run: Run) -> xr.Dataset:
    """Angles and norms that theory predicts for every layer of a run, at the steps where its gradients were read.

    Variables [step, layer]:
    - `angle`: the equilibrium law for a scale-invariant weight, at the lr and decay in force (rad);
    - `angle_general`: the same norm balance without scale invariance, from the measured ⟨w,g⟩/‖w‖², averaged over the
      past time constant;
    - `norm`, `angle_transient`: ‖w‖ and the step angle under the run's own schedule, in and out of equilibrium,
      from the first norm read and the measured G = ‖w‖‖g‖;
    - `time_constant` of ‖w‖⁴ in steps, and `freezes`, where lr falls faster than the norm can follow (P6-9).

    Needs the probes `norms` (weight_norms) and `gradients`; raises DynamicsError without them, or where the optimizer
    has no such theory. Sources: the functions of `theory` that each is computed by.
    """
    import xarray as xr

    if type(run.recipe.optimizer).__name__ != "SGD":
        raise DynamicsError(f"no equilibrium theory for {type(run.recipe.optimizer).__name__} here: predict covers SGD")
    gradients, norms, given = run["gradients"], run["norms"], run["hyperparameters"]
    read = np.intersect1d(gradients.step.values, norms.step.values)
    read = read[np.isin(read, given.step.values)]
    if len(read) < 2:
        raise DynamicsError(
            "predict needs norms and gradients read at the same steps, at least two: use the same every(n)"
        )
    layers = gradients.layer.values
    group = _groups(run, layers)
    # lr and decay at every step from the first reading on, [step, layer]
    span = given.sel(step=slice(read[0], read[-1]))
    lr, decay, momentum = (span[k].values[:, group] for k in ("lr", "weight_decay", "momentum"))
    nesterov, decoupled = bool(given["nesterov"].values.any()), bool(given["decoupled"].values.any())
    law = {"momentum": momentum, "decoupled": decoupled}

    here = gradients.sel(step=read)
    norm = norms["norm"].sel(step=read).values.astype(float)
    size = here["norm"].values.astype(float)
    cosine = np.nan_to_num(here["cosine"].values.astype(float))  # a gradient of zero has no direction, and no effect
    if not (np.isfinite(norm).all() and np.isfinite(size).all()):
        raise DynamicsError("norms or gradients are not finite: predict needs a run that has not diverged")
    if not norm.all():
        gone = layers[np.argmax((norm == 0).any(0))]
        raise DynamicsError(f"the weights of {gone} are all zero at some step, and have no direction to predict")
    radial_read = cosine * size / norm
    tangential = size * norm * np.sqrt(np.clip(1 - cosine**2, 0, None))
    steps = span.step.values
    radial, squared = (_fill(steps, read, values) for values in (radial_read, tangential**2))

    with np.errstate(invalid="ignore", divide="ignore"):
        constant = theory.time_constant(lr, decay, **law)
    mean_radial = _average(radial, constant)
    moving = {"momentum": momentum, "nesterov": nesterov, "decoupled": decoupled, "radial": radial}
    start, gradient = norm[0], np.sqrt(squared)
    at = np.searchsorted(steps, read)
    dims = ("step", "layer")
    rad = {"units": "rad"}
    return xr.Dataset(
        {
            "angle": (dims, theory.equilibrium_angle(lr, decay, nesterov=nesterov, **law)[at], rad),
            "angle_general": (
                dims,
                theory.equilibrium_angle(lr, decay, nesterov=nesterov, radial=mean_radial, **law)[at],
                rad,
            ),
            "angle_transient": (dims, theory.angle_trajectory(start, lr, decay, gradient, **moving)[at], rad),
            "norm": (dims, theory.norm_trajectory(start, lr, decay, gradient, **moving)[at], {"units": "1"}),
            "time_constant": (dims, constant[at], {"units": "step"}),
            "freezes": (dims, theory.freezes(lr, decay, **law)[at]),
        },
        {"step": read, "layer": layers},
    )


def _groups(run: Run, layers: np.ndarray) -> np.ndarray:
    """The parameter group of each layer's weight."""
    given = run["hyperparameters"]
    of = dict(zip(given.parameter.values.tolist(), given.group_of.values.tolist(), strict=True))
    weights = [k for k, p in run.weights.items() if p.ndim >= 2]
    return np.array([of[next(k for k in weights if k == layer or k.rpartition(".")[0] == layer)] for layer in layers])


def _fill(steps: np.ndarray, read: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Readings [read, layer] at every step, by linear interpolation."""
    return np.stack([np.interp(steps, read, column) for column in values.T], axis=1)


def _average(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Exponential average along step over `window` steps, as long as ‖w‖ itself remembers; a plain mean at first."""
    out, mean = np.empty_like(values), np.zeros(values.shape[1])
    for t, (value, width) in enumerate(zip(values, window, strict=True)):
        mean = mean + (value - mean) / np.minimum(t + 1.0, np.maximum(width, 1.0))
        out[t] = mean
    return out
