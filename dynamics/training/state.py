"""A point of a trajectory, and everything that is true there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..data import Batch
from ..nets import NormOf

if TYPE_CHECKING:
    from .recipe import Recipe

LIVE_ABOVE_EPS = 10.0
"""Below this many eps of running variance, a norm barely normalises its channel, which is called dead."""


@dataclass(frozen=True, eq=False)
class State:
    """The point that a step starts from: weights, buffers, optimizer state, average, loss scale. It is the checkpoint.

    `opt=None` starts the optimizer afresh, `average=None` the recipe's average, and `loss_scale=None` the scale of
    fp16, which is {"scale", "good_steps"}. carries: what probes remember, by probe name (kept by `train`).
    """

    step: int
    params: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    opt: Mapping[str, Any] | None = None
    carries: Mapping[str, Any] = field(default_factory=dict)
    average: Mapping[str, Any] | None = None
    loss_scale: Mapping[str, torch.Tensor] | None = None

    def clone(self) -> State:
        """A copy that later steps do not change."""
        return tree_map(lambda t: t.detach().clone(), self)


class Hyperparameters(NamedTuple):
    """In force at a step: groups as (name, names of their parameters), and one number a group."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything true at one step before the update is applied; tensors are live views, to be read and not written.

    state is where the step starts: `steps(recipe, split, start=snap.state)` yields this snapshot again. In the last
    snapshot, which no step follows, batch, loss, grads, updates and hyperparameters are None. In a loop that is not
    ours (`watch`), recipe is None, epoch is nan, and batch and loss are None unless the loop tells them. skipped: fp16
    gradients overflowed; they are shown as they came (unscaled), updates are zeros, and the optimizer's state and the
    average stay as they are, while the schedule goes on. With several processes all of it is of the whole batch.
    """

    state: State
    net: nn.Module
    norms: Mapping[str, NormOf]
    recipe: Recipe | None
    epoch: float
    batch: Batch | None = None
    loss: torch.Tensor | None = None
    grads: Mapping[str, torch.Tensor] | None = None
    updates: Mapping[str, torch.Tensor] | None = None
    hyperparameters: Hyperparameters | None = None
    skipped: bool = False

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def params(self) -> Mapping[str, torch.Tensor]:
        return self.state.params

    @property
    def buffers(self) -> Mapping[str, torch.Tensor]:
        return self.state.buffers

    @cached_property
    def filter_rows(self) -> dict[str, torch.Tensor]:
        """Convolutions and matrices as [filters, fan_in], a row for each slice along the first dimension."""
        return {k: as_rows(p, p) for k, p in self.params.items() if p.ndim >= 2}

    @cached_property
    def filter_norms(self) -> dict[str, torch.Tensor]:
        """‖w‖ of each of these rows, [filters]."""
        return {k: torch.linalg.vector_norm(rows, dim=1) for k, rows in self.filter_rows.items()}

    @cached_property
    def live_filters(self) -> dict[str, torch.Tensor]:
        """Which of these slices are live: their norm's running variance is above `LIVE_ABOVE_EPS` times its eps, or
        no norm follows them."""
        live = {}
        for key, norms in self.filter_norms.items():
            norm = self.norms.get(key.rpartition(".")[0])
            variance = norms.new_ones(len(norms)) if norm is None else self.buffers[f"{norm.path}.running_var"]
            live[key] = variance > (LIVE_ABOVE_EPS * norm.eps if norm else 0.0)
        return live


def as_rows(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[filters, fan_in], copied only where memory order demands it; `like` decides the order of coordinates."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)


def tree_map(fn: Any, tree: Any) -> Any:
    """Apply fn to every tensor of nested dicts, tuples, lists and dataclasses."""
    if isinstance(tree, torch.Tensor):
        return fn(tree)
    if isinstance(tree, Mapping):
        return {k: tree_map(fn, v) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        made = [tree_map(fn, v) for v in tree]
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: tree_map(fn, getattr(tree, f.name)) for f in dataclasses.fields(tree)})
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested dicts of tensors as one dict, keys joined by "/"."""
    flat: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree
