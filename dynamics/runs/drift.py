"""Internal covariate shift: how the distribution of each channel's outputs moves while the net trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DynamicsError, unknown

if TYPE_CHECKING:
    import xarray as xr

REFERENCES = ("first", "previous")
TINY = 1e-6
"""A channel whose standard deviation is below this share of its mean, or of its layer's largest, is called dead."""


def drift(moments: xr.Dataset, *, since: str = "first") -> xr.Dataset:
    """How far each channel's outputs on a fixed batch have moved since a reference reading.

    Variables [step, channel], with μ and σ the mean and standard deviation that `moments` read: `mean`
    (μ_t − μ_ref)/σ_ref, in standard deviations; `log_sd` ln(σ_t/σ_ref); `skew`, the difference of skews. The images are
    the same at every reading, so all of it comes from the weights: this is what Ioffe and Szegedy (2015, arXiv
    1502.03167, section 2) call internal covariate shift, the change of a layer's distribution while the parameters
    before it train, here in its first three moments. moments: run["moments"], as the probe `moments(x)` read it.

    since: "first" compares with the first reading, which is kept and reads 0; "previous" compares each reading with the
    one before, gives the same changes divided by the steps between as `mean_per_step`, ..., and has no row for the
    first reading; coordinate `interval` is those steps. Channels that are dead at the reference, at which there is no
    scale to compare with, are nan; those that have died since have a mean, and nan elsewhere. Raises DynamicsError for
    other readings, and for fewer than two.
    """
    import xarray as xr

    if since not in REFERENCES:
        raise unknown("reference", since, REFERENCES)
    if not isinstance(moments, xr.Dataset) or not {"mean", "variance", "skew", "channel_layer"} <= set(
        moments.variables
    ):
        raise DynamicsError(
            "drift takes readings of the probe moments: train with probes={'moments': every(10, moments(split[:256]))} "
            "and pass run['moments']"
        )
    if moments.sizes.get("step", 0) < 2:
        raise DynamicsError("drift compares readings over time, and here are fewer than two: lower n in every(n, ...)")
    ordered = moments.transpose("step", "channel")
    mean, variance, skew = (ordered[k].values.astype(float) for k in ("mean", "variance", "skew"))
    steps = ordered.step.values
    sd = np.sqrt(variance)
    dead = _dead(mean, sd, ordered.channel_layer.values)

    now = slice(None) if since == "first" else slice(1, None)
    then = slice(0, 1) if since == "first" else slice(0, -1)
    undefined = dead[now] | dead[then]
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = {
            "mean": np.where(dead[then], np.nan, (mean[now] - mean[then]) / sd[then]),
            "log_sd": np.where(undefined, np.nan, np.log(sd[now] / sd[then])),
            "skew": np.where(undefined, np.nan, skew[now] - skew[then]),
        }
    names = {
        "mean": "shift of the mean, in standard deviations",
        "log_sd": "log ratio of standard deviations",
        "skew": "change of the skew",
    }
    dims = ("step", "channel")
    variables: dict[str, Any] = {k: (dims, v, {"units": "1", "long_name": names[k]}) for k, v in changes.items()}
    coords: dict[str, Any] = {"step": steps[now], **{k: c for k, c in ordered.coords.items() if c.dims == ("channel",)}}
    if since == "previous":
        interval = np.diff(steps)
        for key, change in changes.items():
            about = {"units": "1/step", "long_name": f"{names[key]}, per step"}
            variables[f"{key}_per_step"] = (dims, change / interval[:, None], about)
        coords["interval"] = ("step", interval, {"units": "step"})
    return xr.Dataset(variables, coords, {"since": since, **_mode(ordered)})


def _dead(mean: np.ndarray, sd: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Which channels have no spread beyond rounding, [step, channel]."""
    largest = np.empty_like(sd)
    for layer in np.unique(layers):
        members = layers == layer
        largest[:, members] = np.fmax.reduce(sd[:, members], axis=1, keepdims=True)
    return ~(sd > TINY * np.maximum(np.abs(mean), largest))


def _mode(moments: xr.Dataset) -> dict[str, Any]:
    """Which batch-norm statistics the readings are of, carried over."""
    return {k: v for k, v in moments["mean"].attrs.items() if k == "statistics"}
