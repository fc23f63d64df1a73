"""Probes of weights: norms, step angles, gradients and effective learning rates, per tensor and per filter.

A layer is a tensor of two or more dimensions (a convolution or a matrix), named by its module path; its filters are
the slices along its first dimension. Per-filter readings are one flat dimension `filter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ..errors import DynamicsError
from ..optim import Tensors
from ..training import Snapshot, as_rows
from .base import Reading, reads


def layer_names(keys: Sequence[str]) -> list[str]:
    """Names of layers from the names of their weights: module paths, path.parameter where a module owns several."""
    owners = [k.rpartition(".")[0] for k in keys]
    return [o if o and owners.count(o) == 1 else k for k, o in zip(keys, owners, strict=True)]


class _Layers(NamedTuple):
    """The layers of a snapshot: names of their weights, the coordinates of readings, and filters in each layer."""

    keys: tuple[str, ...]
    coords: Reading
    sizes: torch.Tensor

    def total(self, per_filter: torch.Tensor) -> torch.Tensor:
        """Sums over each layer's filters: [filter] -> [layer]."""
        return torch.segment_reduce(per_filter, "sum", lengths=self.sizes)

    def spread(self, per_layer: torch.Tensor) -> torch.Tensor:
        """[layer] -> [filter]."""
        return torch.repeat_interleave(per_layer, self.sizes)


def _layers(snap: Snapshot) -> _Layers:
    keys = tuple(snap.filter_norms)
    if not keys:
        raise DynamicsError("this net has no matrix or convolution to measure: leave this probe out")
    sizes = tuple(len(n) for n in snap.filter_norms.values())
    return _Layers(keys, _coordinates(keys, sizes), torch.tensor(sizes, device=next(iter(snap.params.values())).device))


@lru_cache(maxsize=64)
def _coordinates(keys: tuple[str, ...], sizes: tuple[int, ...]) -> Reading:
    names = layer_names(keys)
    return {
        "layer": names,
        "filter_layer": (("filter",), [n for n, size in zip(names, sizes, strict=True) for _ in range(size)]),
        "filter_channel": (("filter",), [i for size in sizes for i in range(size)]),
    }


def _pairs(snap: Snapshot, others: Tensors) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each weight beside another tensor of its shape, both as [filters, fan_in]."""
    return [(rows, as_rows(others[k], snap.params[k])) for k, rows in snap.filter_rows.items()]


def _live(snap: Snapshot) -> tuple[tuple[str], torch.Tensor, dict[str, str]]:
    """The mask of live filters, as norms and angles both record it."""
    return ("filter",), torch.cat(list(snap.live_filters.values())), {"long_name": "running variance above 10 eps"}


def _lrs(snap: Snapshot, keys: tuple[str, ...]) -> torch.Tensor:
    """The lr in force for each layer, [layer]."""
    groups, values = snap.hyperparameters
    lr = {k: v for (_, members), v in zip(groups, values["lr"], strict=True) for k in members}
    return next(iter(snap.params.values())).new_tensor([lr[k] for k in keys])


@reads("params", "buffers")
def weight_norms(snap: Snapshot) -> Reading:
    """Euclidean norms of weights: `norm` [layer], `filter_norm` [filter]; `live` [filter] masks the live filters."""
    layers = _layers(snap)
    norms = torch.cat(list(snap.filter_norms.values()))
    return {
        **layers.coords,
        "norm": (("layer",), layers.total(norms.square()).sqrt(), {"units": "1", "long_name": "weight norm"}),
        "filter_norm": (("filter",), norms, {"units": "1", "long_name": "weight norm of a filter"}),
        "live": _live(snap),
    }


@reads("params", "buffers", "updates")
def angles(snap: Snapshot) -> Reading:
    """Single-step angles between w and w + update: `angle` [layer] and `filter_angle` [filter] in rad, and
    `relative_update` ‖update‖/‖w‖.

    The angle is atan2(‖u⊥‖, ‖w‖ + ⟨w,u⟩/‖w‖) with u⊥ the part of the update orthogonal to w, which keeps its relative
    accuracy down to the smallest angles; acos of a float32 cosine sees nothing below 3.5e-4 rad. The single-step angle
    is one of three step sizes in use (Kosson et al. 2023, section 3): see `theory` for the others.
    """
    layers = _layers(snap)
    pairs = _pairs(snap, snap.updates)
    norms = torch.cat(list(snap.filter_norms.values()))
    squares = norms.square()
    dots = torch.cat([torch.linalg.vecdot(w, u) for w, u in pairs])
    slopes = torch.where(squares > 0, dots / squares, 0.0)  # a filter of zeros has no direction
    per_layer = [s.unsqueeze(1) for s in slopes.split([len(w) for w, _ in pairs])]
    tangents = torch.cat(
        [
            torch.linalg.vector_norm(torch.addcmul(u, s, w, value=-1), dim=1)
            for (w, u), s in zip(pairs, per_layer, strict=True)
        ]
    )
    # u = u⊥ + slope w in each filter, so the tensor's own orthogonal part needs no second pass over the weights
    square = layers.total(squares)
    norm, slope = square.sqrt(), layers.total(dots) / square
    orthogonal = layers.total(tangents.square() + (slopes - layers.spread(slope)).square() * squares)
    update = tangents.square() + slopes.square() * squares
    relative = {"units": "1", "long_name": "update over weight norm"}
    return {
        **layers.coords,
        "angle": (
            ("layer",),
            torch.atan2(orthogonal.sqrt(), norm + slope * norm),
            {"units": "rad", "long_name": "single-step angle"},
        ),
        "relative_update": (("layer",), (layers.total(update) / square).sqrt(), relative),
        "filter_angle": (
            ("filter",),
            torch.atan2(tangents, norms + slopes * norms),
            {"units": "rad", "long_name": "single-step angle of a filter"},
        ),
        "filter_relative_update": (("filter",), (update / squares).sqrt(), relative),
        "live": _live(snap),
    }


@reads("params", "grads", "hyperparameters")
def gradients(snap: Snapshot) -> Reading:
    """Gradients of the batch-mean loss, weight decay not included: `norm` ‖g‖, `cosine` ⟨w,g⟩/(‖w‖‖g‖) and `raw_step`
    η‖g‖/‖w‖ [layer], and the same per filter.

    The cosine is zero for weights that a batch norm follows (claim P5-9), up to eps of the norm and rounding.
    """
    layers = _layers(snap)
    pairs = _pairs(snap, snap.grads)
    dot = torch.cat([torch.linalg.vecdot(w, g) for w, g in pairs])
    norms = torch.cat([torch.linalg.vector_norm(g, dim=1) for _, g in pairs])
    weights = torch.cat(list(snap.filter_norms.values()))
    norm, weight = layers.total(norms.square()).sqrt(), layers.total(weights.square()).sqrt()
    cosine = {"units": "1", "long_name": "cosine of gradient and weight"}
    return {
        **layers.coords,
        "norm": (("layer",), norm, {"units": "1", "long_name": "gradient norm"}),
        "cosine": (("layer",), layers.total(dot) / (norm * weight), cosine),
        "raw_step": (
            ("layer",),
            _lrs(snap, layers.keys) * norm / weight,
            {"units": "1", "long_name": "lr times gradient norm over weight norm"},
        ),
        "filter_norm": (("filter",), norms, {"units": "1", "long_name": "gradient norm of a filter"}),
        "filter_cosine": (("filter",), dot / (norms * weights), cosine),
    }


@reads("params", "hyperparameters")
def effective_lr(snap: Snapshot) -> Reading:
    """`effective_lr` η/‖w‖² [layer], the learning rate on the unit sphere of a scale-invariant weight (van Laarhoven
    2017, section 2)."""
    layers = _layers(snap)
    squares = layers.total(torch.cat(list(snap.filter_norms.values())).square())
    attrs = {"units": "1", "long_name": "effective learning rate"}
    return {"layer": layers.coords["layer"], "effective_lr": (("layer",), _lrs(snap, layers.keys) / squares, attrs)}
