"""Probes of motion over several steps: diffusive angles, autocorrelation of gradients, alignment of momentum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import DynamicsError
from ..training import Snapshot, as_rows
from .base import Reading, reads
from .weights import _layers, _live, _pairs, angles

MOMENTUM_BUFFERS = ("velocity", "momentum_buffer", "exp_avg")
"""Names of momentum in optimizer states: ours, torch.optim.SGD's, and that of the Adam family."""


@reads("params", "buffers")
def diffusion(snap: Snapshot, carry: Any) -> tuple[Reading, Any]:
    """Angles between the weights now and at this probe's reading before: `angle` [layer] and `filter_angle` [filter]
    in rad, and `window`, the number of steps between; nan and 0 at the first reading.

    every(k, diffusion) makes windows of k steps. In equilibrium `theory.angular_diffusion` at steps=window predicts
    -2 ln<cos angle>, <> being a mean over readings or filters, and the squared angle only while it is small. Angles are
    computed from the difference of the weights, as in `angles`, so that small ones keep their relative accuracy; in
    float32, weights that shrank n-fold within a window add an error of about 2e-7 n rad. Weights of zero have no
    direction: nan.
    """
    layers, rows = _layers(snap), snap.filter_rows
    kept = {k: snap.params[k].detach().clone() for k in rows}
    now = {"step": torch.tensor(snap.step), "weights": kept}
    norms = torch.cat(list(snap.filter_norms.values()))
    angle, filter_angle = norms.new_full((len(layers.keys),), torch.nan), torch.full_like(norms, torch.nan)
    window = 0
    if carry is not None:
        window = snap.step - int(carry["step"])
        # a carry from a checkpoint is on the CPU, and in torch's default memory order
        before = {k: as_rows(carry["weights"][k].to(w.device), snap.params[k]) for k, w in rows.items()}
        moved = {k: w - before[k] for k, w in rows.items()}
        earlier = replace(snap, state=replace(snap.state, params=before), updates=moved)
        turned, norms_before = angles(earlier), torch.cat(list(earlier.filter_norms.values()))
        directed = (layers.total(norms) > 0) & (layers.total(norms_before) > 0)
        angle = torch.where(directed, turned["angle"][1], torch.nan)
        filter_angle = torch.where((norms > 0) & (norms_before > 0), turned["filter_angle"][1], torch.nan)
    reading = {
        **layers.coords,
        "angle": (("layer",), angle, {"units": "rad", "long_name": "angle since the reading before"}),
        "filter_angle": (
            ("filter",),
            filter_angle,
            {"units": "rad", "long_name": "angle of a filter since the reading before"},
        ),
        "window": ((), window, {"units": "step", "long_name": "steps since the reading before"}),
        "live": _live(snap),
    }
    return reading, now


def gradient_autocorrelation(
    lags: Sequence[int] = (1, 2, 4, 8),
) -> Callable[[Snapshot, Any], tuple[Reading, Any]]:
    """A measurement of how alike gradients of different steps are, by the number of steps between them.

    It reads `cosine`, of g_t and g_(t-lag), and `tangential_cosine`, of their parts orthogonal to the weights at t
    [layer, lag]; gradients are of the batch-mean loss, weight decay not included. Pythagorean growth of the norm and
    the equilibrium laws take them to be near zero (claim P6-6). nan where the probe was not called lag
    steps ago, and where a gradient is zero. Every gradient of the last max(lags) steps that it was called at is kept,
    in checkpoints too: every(1, ...) keeps max(lags) times the size of the weights, every(4,
    gradient_autocorrelation((4, 8))) twice.
    Raises DynamicsError for lags that are not whole numbers of at least 1.
    """
    wanted = list(lags) if isinstance(lags, Sequence) else []
    if not wanted or any(not isinstance(n, int) or n < 1 for n in wanted) or len(set(wanted)) < len(wanted):
        raise DynamicsError(f"lags must be different whole numbers of steps of at least 1, got {lags!r}: (1, 2, 4, 8)")

    @reads("params", "grads")
    def autocorrelation(snap: Snapshot, carry: Any) -> tuple[Reading, Any]:
        layers = _layers(snap)
        step = torch.tensor([snap.step])
        past = carry["steps"].tolist() if carry else []  # never on an accelerator, so nothing waits for one here
        found = {lag: past.index(snap.step - lag) for lag in wanted if snap.step - lag in past}
        stale = sum(s <= snap.step - max(wanted) for s in past)  # these come first
        columns = [i for i, lag in enumerate(wanted) if lag in found]
        kept, cosines = {}, []
        for key, (w, g) in zip(layers.keys, _pairs(snap, snap.grads), strict=True):
            older = carry["gradients"][key].to(g.device) if carry else g.new_empty(0, *snap.params[key].shape)
            w, g = w.flatten(), g.flatten()
            of_layer = g.new_full((2, len(wanted)), torch.nan)
            if found:
                then = torch.stack([as_rows(older[i], snap.params[key]).flatten() for i in found.values()])
                of_layer[0, columns] = _cosine(then, g)
                of_layer[1, columns] = _cosine(_tangential(then, w), _tangential(g, w))
            cosines.append(of_layer)
            kept[key] = torch.cat([older[stale:], snap.grads[key].detach()[None]])
        plain, tangential = torch.stack(cosines, dim=1)
        about = {"units": "1", "long_name": "cosine of gradients lag steps apart"}
        about_tangential = {"units": "1", "long_name": "cosine of tangential gradients lag steps apart"}
        reading = {
            "layer": layers.coords["layer"],
            "lag": wanted,
            "cosine": (("layer", "lag"), plain, about),
            "tangential_cosine": (("layer", "lag"), tangential, about_tangential),
        }
        return reading, {"steps": torch.cat([carry["steps"][stale:], step]) if carry else step, "gradients": kept}

    return autocorrelation


@reads("params", "opt", "grads", "hyperparameters")
def momentum_alignment(snap: Snapshot) -> Reading:
    """Where momentum points: its cosines with the gradient and the weights, `gradient_cosine` and `weight_cosine`, and
    its `norm` [layer].

    Momentum is the optimizer's buffer as it enters the step, before this step's gradient is added: a sum of gradients,
    coupled weight decay included, in SGD, and a mean of them in Adam. A buffer of zeros, as at the first step, has no
    direction: nan. Raises DynamicsError for an optimizer without momentum.
    """
    layers, opt = _layers(snap), snap.state.opt or {}
    name = next((k for k in MOMENTUM_BUFFERS if k in opt), None)
    if name is None and not _has_momentum(snap):
        raise DynamicsError(
            f"the optimizer keeps no momentum ({' or '.join(MOMENTUM_BUFFERS)}): give it some, or leave out this probe"
        )
    # torch.optim makes a parameter's buffer at its first step
    buffers = {k: opt[name][k] if name and k in opt[name] else torch.zeros_like(snap.params[k]) for k in layers.keys}
    triples = [
        (m.to(w.dtype).flatten(), g.flatten(), w.flatten())
        for (w, g), (_, m) in zip(_pairs(snap, snap.grads), _pairs(snap, buffers), strict=True)
    ]
    return {
        "layer": layers.coords["layer"],
        "gradient_cosine": (
            ("layer",),
            torch.stack([_cosine(m, g) for m, g, _ in triples]),
            {"units": "1", "long_name": "cosine of momentum and gradient"},
        ),
        "weight_cosine": (
            ("layer",),
            torch.stack([_cosine(m, w) for m, _, w in triples]),
            {"units": "1", "long_name": "cosine of momentum and weight"},
        ),
        "norm": (
            ("layer",),
            torch.stack([torch.linalg.vector_norm(m) for m, _, _ in triples]),
            {"units": "1", "long_name": "norm of momentum"},
        ),
    }


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of each of a [..., n] with b [n]; nan where one of the two is zero."""
    return a @ b / (torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b))


def _tangential(g: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The part of g [..., n] orthogonal to w [n]."""
    return g - (g @ w / w.square().sum())[..., None] * w


def _has_momentum(snap: Snapshot) -> bool:
    """Whether the hyperparameters in force say that the optimizer will keep momentum."""
    values = snap.hyperparameters.values if snap.hyperparameters else {}
    return any(v > 0 for k in ("momentum", "beta1") for v in values.get(k, ()))  # nan where a group has none
