"""The edge of stability: the learning rate in force beside the largest that the measured sharpness allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import theory
from ..errors import DynamicsError
from .run import Run
from .watch import Recorder

if TYPE_CHECKING:
    import xarray as xr

REFUSED = ("dampening", "maximize")


def edge_of_stability(run: Run | Recorder, *, name: str = "sharpness") -> xr.Dataset:
    """The sharpness of a run against the stability bound of its own optimizer: gradient descent, heavy ball, Nesterov.

    Variables [step], at the steps where the probe `sharpness` was read and an update followed: `lr` in force, `bound`,
    the largest stable lr at the measured curvature (sharpness plus coupled weight decay), `ratio` lr/bound and its
    `standard_error`; and `sharpness` beside `critical`, the sharpness at which the lr in force is at its bound. A ratio
    above 1 means that full-batch steps along the leading eigenvector grow; training with small batches hovers
    elsewhere (see `theory.batch_sharpness`). name: under which the readings are kept.
    Raises DynamicsError for runs without them, for optimizers other than SGD (what preconditions has another Hessian),
    and for groups of parameters with different hyperparameters, for which no single bound holds.
    Source: `theory.stability_bound`; Cohen et al. 2021, arXiv 2103.00065; claim P7-16.
    """
    import xarray as xr

    run = run.run() if isinstance(run, Recorder) else run
    readings, given = run[name], run["hyperparameters"]
    missing = [k for k in ("sharpness", "standard_error") if k not in readings]
    if missing:
        raise DynamicsError(f"the readings {name!r} are not of the probe sharpness: name= says which are")
    nesterov = _nesterov(run, given)
    steps = np.intersect1d(readings.step.values, given.step.values)
    if not len(steps):
        raise DynamicsError(f"no update followed the readings {name!r}: read sharpness before the last step too")
    here, force = readings.sel(step=steps), given.sel(step=steps)
    lr, decay, momentum = (_shared(force, k) for k in ("lr", "weight_decay", "momentum"))
    sharpness, error = (here[k].values.astype(float) for k in ("sharpness", "standard_error"))
    bound = theory.stability_bound(sharpness + decay, momentum=momentum, nesterov=nesterov)
    # the bound is a constant over the curvature, and so it maps an lr to the curvature that it is the bound of
    most = theory.stability_bound(lr, momentum=momentum, nesterov=nesterov)
    values = {
        "lr": (lr, "lr in force"),
        "bound": (bound, "largest stable lr"),
        "ratio": (lr / bound, "lr over the largest stable lr"),
        "standard_error": (error / most, "standard error of the ratio over batches"),
        "sharpness": (sharpness, "largest eigenvalue of the Hessian"),
        "critical": (most - decay, "sharpness at which the lr in force is at its bound"),
    }
    about = {"optimizer": run.optimizer, "nesterov": int(nesterov)}
    return xr.Dataset(
        {k: (("step",), v, {"units": "1", "long_name": label}) for k, (v, label) in values.items()},
        {"step": steps},
        about,
    )


def _nesterov(run: Run, given: xr.Dataset) -> bool:
    """Whether the run's optimizer is Nesterov's; raises DynamicsError for one without this bound."""

    def on(name: str) -> bool:
        return name in given and bool((given[name].fillna(0) != 0).any())

    refused = [f"SGD with {k}" for k in REFUSED if on(k)]
    if on("decoupled") and on("momentum") and on("weight_decay"):
        refused.append("SGD with momentum and decoupled weight decay")
    if run.optimizer != "SGD":
        refused = [run.optimizer]
    if refused:
        raise DynamicsError(
            f"no stability bound for {refused[0]}: it is known for SGD, plain, with heavy-ball momentum or Nesterov's"
        )
    return on("nesterov")


def _shared(force: xr.Dataset, key: str) -> np.ndarray:
    """What all groups that have parameters share, [step]; of parameters without an optimizer nothing is known."""
    used = np.unique(force.group_of.values)
    values = force[key].transpose("step", "group").values[:, used].astype(float)
    values = values[:, np.isfinite(values).all(0)]
    if not values.shape[1] or not (values == values[:, :1]).all():
        raise DynamicsError(
            f"groups of parameters differ in their {key}, so no single bound holds: take a run whose groups agree"
        )
    return values[:, 0]
