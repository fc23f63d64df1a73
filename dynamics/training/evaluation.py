"""Loss and accuracy of a net, of a point of a trajectory, or of an average along it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..data import Split
from ..errors import DynamicsError, unknown
from ..nets import modes_kept
from .loop import autocast, load_net, resolve_precision
from .state import Snapshot, State

TTA = ("none", "flip", "flip+translate")


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats, no label smoothing) and accuracy (share) over n images."""

    loss: float
    accuracy: float
    n: int


@torch.no_grad()
def evaluate(
    model: Any,
    split: Split,
    *,
    state: State | None = None,
    flip: bool = False,
    tta: str = "none",
    batch_size: int = 1000,
    precision: str | None = None,
) -> Evaluation:
    """Loss and accuracy in eval mode of a module, a Snapshot, or a Run.

    state: weights and buffers that take the place of the model's own, such as `averaged(run)`. tta: test-time
    augmentation, logits averaged over views: "flip" is over each image and its mirror image (post 8), for which
    `flip=True` is short; "flip+translate" is over six, this pair with weight 1/2 and, reflect-padded, the pairs of the
    image moved by one pixel down and right, and up and left, with 1/4 each (Jordan 2024, arXiv:2404.00498); that is
    flip-invariant nearly and not exactly. precision: by default the recipe's, and "auto" for a module. Nothing of the
    model is changed: not its mode, and not its buffers. Raises DynamicsError for a tta of another name.
    """
    if tta not in TTA:
        raise unknown("tta", tta, TTA)
    tta = "flip" if flip and tta == "none" else tta
    net, weights, own = _evaluable(model, split)
    if state is not None:
        weights = {**weights, **state.params, **state.buffers}
    precision = resolve_precision(precision or own, split.device)
    dtype = next(net.parameters()).dtype
    pixels, total, correct = split.padded(), torch.zeros((), dtype=torch.float64, device=split.device), 0

    def forward(x: torch.Tensor) -> torch.Tensor:
        with autocast(precision, split.device):
            logits = functional_call(net, weights, (x,))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    with modes_kept(net):
        net.eval()
        for first in range(0, len(split), batch_size):
            x = pixels[first : first + batch_size].permute(0, 3, 1, 2).to(dtype)
            y = split.labels[first : first + batch_size]
            logits = _averaged_logits(forward, x, tta)
            total += F.cross_entropy(logits, y, reduction="sum")
            correct = correct + (logits.argmax(1) == y).sum()
    return Evaluation(float(total) / len(split), int(correct) / len(split), len(split))


def _averaged_logits(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, tta: str) -> torch.Tensor:
    """The logits of images x [B, 3, H, W], averaged over the views of a test-time augmentation."""

    def pair(x: torch.Tensor) -> torch.Tensor:
        return (forward(x) + forward(x.flip(3))) / 2

    if tta == "none":
        return forward(x)
    if tta == "flip":
        return pair(x)
    height, width = x.shape[2:]
    wide = F.pad(x, (1, 1, 1, 1), mode="reflect")
    moved = pair(wide[:, :, :height, :width]) + pair(wide[:, :, 2:, 2:])
    return pair(x) / 2 + moved / 4


@torch.no_grad()
def averaged(model: Any, split: Split | None = None, *, batch_size: int = 500) -> State:
    """A Snapshot's or Run's state with its average in place of its weights: evaluate(run, test, state=averaged(run)).

    Norms' running statistics are the averaged ones too, or, where a split is given, the mean over its batches of
    `batch_size` images (at the end a smaller one is left out) of what the averaged weights make of them, as SWA asks
    for. Raises DynamicsError for a recipe without an average.
    """
    state = model.state
    if state.average is None:
        raise DynamicsError("this run keeps no average: give its recipe average=EMA() or average=SWA()")
    params, floats = state.average["params"], state.average["buffers"]
    buffers = {k: floats.get(k, b).clone() for k, b in state.buffers.items()}
    if split is not None:
        net, _, own = _evaluable(model, split)
        params = {k: p.to(split.device) for k, p in params.items()}
        buffers = {k: b.to(split.device) for k, b in buffers.items()}
        _recompute(net, params, buffers, split, min(batch_size, len(split)), resolve_precision(own, split.device))
    return replace(state, params=params, buffers=buffers, opt=None, average=None)


def _recompute(
    net: nn.Module,
    params: Mapping[str, torch.Tensor],
    buffers: dict[str, torch.Tensor],
    split: Split,
    batch_size: int,
    precision: str,
) -> None:
    """Set running statistics to their mean over the split's batches, in place."""
    norms = [m for m in net.modules() if getattr(m, "running_var", None) is not None]
    momenta = [m.momentum for m in norms]
    pixels, dtype = split.padded(), next(iter(params.values())).dtype
    with modes_kept(net):
        net.eval()
        try:
            for i in range(len(split) // batch_size):
                for norm in norms:
                    norm.training, norm.momentum = True, 1 / (i + 1)
                x = pixels[i * batch_size : (i + 1) * batch_size].permute(0, 3, 1, 2).to(dtype)
                with autocast(precision, split.device):
                    functional_call(net, {**params, **buffers}, (x,))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _evaluable(model: Any, split: Split) -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    """A module, the weights that take the place of its own, and its precision."""
    if isinstance(model, nn.Module):
        return model, {}, "auto"
    if isinstance(model, Snapshot):
        return model.net, {**model.params, **model.buffers}, model.recipe.precision if model.recipe else "auto"
    if model.recipe is None:
        raise DynamicsError("a watched run has no recipe to build its net from: evaluate the module itself")
    return load_net(model.recipe, split, model.state)[0], {}, model.recipe.precision
