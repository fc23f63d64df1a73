"""Predictions laid over a run: what theory says its angles and norms should be, from what was in force."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .. import theory
from ..errors import DynamicsError
from ..invariance import Invariance
from ..invariance import invariance as measured_invariance
from ..nets import Net
from ..rng import generator
from .run import Run
from .watch import Recorder

if TYPE_CHECKING:
    import xarray as xr

Floats = np.ndarray


def predict(run: Run | Recorder, *, invariance: Invariance | None = None) -> xr.Dataset:
    """Angles and norms that theory predicts for every layer of a run, at the steps where its gradients were read.

    Variables [step, layer]:
    - `angle`: the equilibrium law of the run's optimizer for a scale-invariant weight, at what was in force (rad);
    - `angle_general`: the same norm balance without scale invariance, from the measured ⟨w,g⟩/‖w‖², averaged over the
      past time constant (for optimizers that normalise, of the normalised gradient);
    - `norm`, `angle_transient`: ‖w‖ and the step angle under the run's own schedule, in and out of equilibrium,
      from the first norm read and the measured G = ‖w‖‖g‖;
    - `time_constant` of ‖w‖ near equilibrium in steps, and `freezes`, where lr falls faster than the norm can follow.

    And `law` [layer]: "equilibrium" where the loss is scale-invariant to the layer, so that `angle` is owed; "general"
    where it is not, and `angle_general` is; "unknown" where nobody has said.
    invariance: the table of `invariance(net, loss, batch)`; a run with a recipe makes it from its net by itself.

    Needs the probes `norms` (weight_norms) and `gradients`; raises DynamicsError without them, or where the optimizer
    has no such theory. Layers whose hyperparameters were not recorded are left out. Sources: the functions of `theory`
    that each is computed by.
    """
    import xarray as xr

    run = run.run() if isinstance(run, Recorder) else run
    gradients, norms, given = run["gradients"], run["norms"], run["hyperparameters"]
    law = _law(run.optimizer, given)
    read = gradients.step.values[np.isin(gradients.step.values, given.step.values)]
    # norms move slowly, so that those of the steps between readings are known too
    read = read[(read >= norms.step.values[0]) & (read <= norms.step.values[-1])]
    if len(read) < 2:
        raise DynamicsError(
            "predict needs gradients read at two steps or more, and norms before and after: use the same every(n)"
        )
    # what is in force at every step from the first reading on, [step, layer]
    span = given.sel(step=slice(read[0], read[-1]))
    group = _groups(run, gradients.layer.values)
    known = np.isfinite(span["lr"].values[:, group]).all(0)
    layers, group = gradients.layer.values[known], group[known]
    if not len(layers):
        raise DynamicsError("no layer's lr was recorded: watch the optimizer that trains these weights")
    force = {str(k): v.values[:, group] for k, v in span.data_vars.items()}

    here = gradients.sel(step=read, layer=layers)
    norm = _fill(read, norms.step.values, norms["norm"].sel(layer=layers).values.astype(float))
    size = here["norm"].values.astype(float)
    cosine = np.nan_to_num(here["cosine"].values.astype(float))  # a gradient of zero has no direction, and no effect
    if not (np.isfinite(norm).all() and np.isfinite(size).all()):
        raise DynamicsError("norms or gradients are not finite: predict needs a run that has not diverged")
    if not norm.all():
        gone = layers[np.argmax((norm == 0).any(0))]
        raise DynamicsError(f"the weights of {gone} are all zero at some step, and have no direction to predict")
    product = _by_filter(norms, here, layers) if law.per_filter else size * norm
    count = np.array([_weight(run, layer).numel() for layer in layers], dtype=float)
    pull = cosine * np.sqrt(count) / norm if law.normalises else cosine * size / norm
    steps, at = span.step.values, np.searchsorted(span.step.values, read)
    radial = _fill(steps, read, pull)
    gradient = np.sqrt(_fill(steps, read, product**2 * np.clip(1 - cosine**2, 0, None)))

    with np.errstate(invalid="ignore", divide="ignore"):
        settled = law.equilibrium(force, gradient, count, 0.0)
        general = law.equilibrium(force, gradient, count, _average(radial, settled.time_constant))
        path = law.trajectory(norm[0], force, gradient, count, radial)
    dims = ("step", "layer")
    rad = {"units": "rad"}
    return xr.Dataset(
        {
            "angle": (dims, settled.angle[at], rad),
            "angle_general": (dims, general.angle[at], rad),
            "angle_transient": (dims, path.angle[at], rad),
            "norm": (dims, path.norm[at], {"units": "1"}),
            "time_constant": (dims, settled.time_constant[at], {"units": "step"}),
            "freezes": (dims, theory.outpaces(force["lr"], settled.time_constant)[at]),
            "law": (("layer",), _owed(run, layers, invariance)),
        },
        {"step": read, "layer": layers},
    )


def intrinsic_time(run: Run | Recorder) -> xr.DataArray:
    """The sum of ηλ over the steps before each one, [step, group]: the clock on which norms forget (Li et al. 2020).

    Coupled decay passes through momentum and runs faster, by 1/(1-ρ). Counted from the first step recorded; whatever
    the probes' intervals, since hyperparameters are recorded at every step.
    """
    given = run["hyperparameters"]
    product = given["lr"] * given["weight_decay"]
    return (product.cumsum("step") - product).assign_attrs(units="1", long_name="intrinsic time Σηλ")


class _Law(NamedTuple):
    """An optimizer's theory: equilibrium(force, G, size, radial) and trajectory(norm0, force, G, size, radial).

    normalises: `radial` is of the normalised gradient. per_filter: gradients are normalised filter by filter.
    """

    equilibrium: Callable[[dict[str, Floats], Floats, Floats, Any], theory.Equilibrium]
    trajectory: Callable[[Floats, dict[str, Floats], Floats, Floats, Any], theory.Trajectory]
    normalises: bool = False
    per_filter: bool = False


def _law(kind: str, given: xr.Dataset) -> _Law:
    """The theory of an optimizer by its kind and settings; raises DynamicsError where there is none."""

    def on(name: str) -> bool:
        return name in given and bool((given[name].fillna(0) != 0).any())

    refused = [name for name in ("dampening", "maximize", "amsgrad", "differentiable") if on(name)]
    if kind == "AdamW" or (kind == "Adam" and on("decoupled")):
        law = _adamw()
    elif kind in _LAWS:
        law = _LAWS[kind](on("nesterov"), on("decoupled"))
    else:
        refused = [kind]
    if refused:
        known = ", ".join(sorted({*_LAWS, "AdamW"}))
        raise DynamicsError(f"no equilibrium theory for {refused[0]}: predict covers {known} without it")
    return law


def _sgd(nesterov: bool, decoupled: bool) -> _Law:
    def moving(force: dict[str, Floats], radial: Any) -> dict[str, Any]:
        return {"momentum": force["momentum"], "nesterov": nesterov, "decoupled": decoupled, "radial": radial}

    return _Law(
        lambda f, g, c, radial: theory.sgd_equilibrium(f["lr"], f["weight_decay"], g, **moving(f, radial)),
        lambda w, f, g, c, radial: theory.sgd_trajectory(w, f["lr"], f["weight_decay"], g, **moving(f, radial)),
    )


def _adamw(*_: bool) -> _Law:
    def path(w: Floats, f: dict[str, Floats], g: Floats, c: Floats, radial: Any) -> theory.Trajectory:
        betas = {"beta1": f["beta1"], "beta2": f["beta2"], "radial": radial}
        return theory.adamw_trajectory(w, f["lr"], f["weight_decay"], c, gradient=g, **betas)

    return _Law(
        lambda f, g, c, radial: theory.adamw_equilibrium(
            f["lr"], f["weight_decay"], c, beta1=f["beta1"], radial=radial
        ),
        path,
        normalises=True,
    )


def _adam(*_: bool) -> _Law:
    def path(w: Floats, f: dict[str, Floats], g: Floats, c: Floats, radial: Any) -> theory.Trajectory:
        betas = {"beta1": f["beta1"], "beta2": f["beta2"], "radial": radial}
        return theory.adam_trajectory(w, f["lr"], f["weight_decay"], g, c, **betas)

    return _Law(
        lambda f, g, c, radial: theory.adam_equilibrium(
            f["lr"], f["weight_decay"], g, c, beta1=f["beta1"], radial=radial
        ),
        path,
    )


def _lion(*_: bool) -> _Law:
    def betas(f: dict[str, Floats], radial: Any) -> dict[str, Any]:
        return {"beta1": f["beta1"], "beta2": f["beta2"], "radial": radial}

    return _Law(
        lambda f, g, c, radial: theory.lion_equilibrium(f["lr"], f["weight_decay"], c, **betas(f, radial)),
        lambda w, f, g, c, radial: theory.lion_trajectory(
            w, f["lr"], f["weight_decay"], c, gradient=g, **betas(f, radial)
        ),
        normalises=True,
    )


def _lars(layerwise: bool) -> Callable[[bool, bool], _Law]:
    def law(nesterov: bool, _: bool) -> _Law:
        def moving(f: dict[str, Floats], radial: Any) -> dict[str, Any]:
            return {"momentum": f["momentum"], "nesterov": nesterov, "layerwise": layerwise, "radial": radial}

        def rate(f: dict[str, Floats]) -> Floats:
            return f["lr"] * f.get("trust", 1.0)

        return _Law(
            lambda f, g, c, radial: theory.lars_equilibrium(rate(f), f["weight_decay"], g, **moving(f, radial)),
            lambda w, f, g, c, radial: theory.lars_trajectory(w, rate(f), f["weight_decay"], g, **moving(f, radial)),
            per_filter=not layerwise,
        )

    return law


_LAWS: dict[str, Callable[[bool, bool], _Law]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "Lion": _lion,
    "LARS": _lars(layerwise=True),
    "PageLARS": _lars(layerwise=False),
}


def _owed(run: Run, layers: Floats, given: Invariance | None) -> list[str]:
    """Which law each layer owes."""
    if given is None and run.recipe is not None:
        given = _of_net(run.recipe.net)
    if given is None:
        return ["unknown"] * len(layers)
    # where a weight is invariant with its bias only, the law is of the two together
    invariant = {name for row in given if row.invariant and not row.with_bias for name in (row.layer, row.name)}
    return ["equilibrium" if str(layer) in invariant else "general" for layer in layers]


@lru_cache(maxsize=32)
def _of_net(net: Net) -> Invariance | None:
    """The invariance of a recipe's net, which does not depend on its data; None where it does not take such images."""
    draws = generator(0, "invariance")
    x = torch.randn(8, 3, 32, 32, generator=draws)
    y = torch.randint(10, (8,), generator=draws)
    try:
        return measured_invariance(net.build(classes=10).train(), F.cross_entropy, (x, y))
    except (DynamicsError, RuntimeError, TypeError):
        return None


def _groups(run: Run, layers: Floats) -> Floats:
    """The parameter group of each layer's weight."""
    given = run["hyperparameters"]
    of = dict(zip(given.parameter.values.tolist(), given.group_of.values.tolist(), strict=True))
    return np.array([of[_name(run, layer)] for layer in layers])


def _name(run: Run, layer: str) -> str:
    return next(
        k for k, p in run.weights.items() if p.ndim >= 2 and (k == str(layer) or k.rpartition(".")[0] == str(layer))
    )


def _weight(run: Run, layer: str) -> torch.Tensor:
    return run.weights[_name(run, layer)]


def _by_filter(norms: xr.Dataset, gradients: xr.Dataset, layers: Floats) -> Floats:
    """The sum of ‖w‖‖g‖ over each layer's filters, [step, layer]."""
    sizes = _fill(gradients.step.values, norms.step.values, norms["filter_norm"].values.astype(float))
    product = sizes * gradients["filter_norm"].values
    owner = norms.filter_layer.values
    return np.stack([product[:, owner == layer].sum(1) for layer in layers], axis=1)


def _fill(steps: Floats, read: Floats, values: Floats) -> Floats:
    """Readings [read, layer] at every step, by linear interpolation."""
    return np.stack([np.interp(steps, read, column) for column in values.T], axis=1)


def _average(values: Floats, window: Floats) -> Floats:
    """Exponential average along step over `window` steps, as long as ‖w‖ itself remembers; a plain mean at first."""
    out, mean = np.empty_like(values), np.zeros(values.shape[1])
    for t, (value, width) in enumerate(zip(values, window, strict=True)):
        mean = mean + (value - mean) / np.minimum(t + 1.0, np.maximum(width, 1.0))
        out[t] = mean
    return out
