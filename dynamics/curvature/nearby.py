"""What a net does a small step away: gradients of its outputs' means, shifts of its channels, smoothness ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DynamicsError, unknown
from .evaluate import check_batches, gradients, undisturbed, with_statistics
from .moments import Batches, Chosen, _batches, _check_mode, _leaves, _outputs, perturbed_outputs


class AlongGradient(NamedTuple):
    """Loss and gradient at θ − d g for distances d [D], g the gradient at θ.

    `loss` [D]; `change` [D], ‖g(θ − d g) − g‖ / ‖g‖; `start`, the loss at θ, and `norm`, ‖g‖.
    """

    distances: Tensor
    loss: Tensor
    change: Tensor
    start: float
    norm: float

    @property
    def smoothness(self) -> float:
        """The largest change of the gradient per distance moved, which bounds the curvature that a step meets."""
        return float((self.change / self.distances).max())


class Pushed(NamedTuple):
    """What classes are predicted after a step along a direction of each class k, in order, all [C] but the last.

    `share`: of the images that are now said to be of class k; `loss`: the mean cross-entropy; `margin` [C, N]: each
    image's logit k less the largest of the others, which is positive where class k is predicted.
    """

    share: Tensor
    loss: Tensor
    margin: Tensor


def mean_gradients(
    net: nn.Module,
    batches: Batches,
    *,
    bn: str = "batch",
    params: Chosen = None,
    statistics: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Gradients [n, C] over the parameters of each output channel's mean: `output_moments(...).means`, at a third of
    its price.

    Arguments, order of rows and errors are those of `output_moments`. Of the net nothing changes. Source: Page, "How to
    train your ResNet" 7.
    """
    _check_mode(bn)
    leaves, weights = _leaves(net, params)
    inputs, buffers = _batches(batches, weights, least=1), with_statistics(net, bn, statistics)
    total, sums = sum(map(len, inputs)), None
    for x in inputs:
        with undisturbed(net, bn, draw=0):
            outputs = _outputs(net, weights, buffers, x)
            towards = torch.eye(outputs.shape[1]).to(outputs) / total
            columns = [gradients([outputs], leaves.values(), [row.expand_as(outputs)]) for row in towards]
        found = torch.stack([torch.cat([g.reshape(-1) for g in parts]) for parts in columns], dim=1)
        sums = found if sums is None else sums + found
    if not torch.isfinite(sums).all():
        raise DynamicsError("the gradients of the outputs' means are not finite: check the weights, or use float64")
    return sums


def push(
    net: nn.Module, batches: Batches, directions: Tensor, relative_length: float = 0.01, *, bn: str = "batch"
) -> Pushed:
    """Move the weights by relative_length ‖θ‖ along each of C directions [n, C], direction k for class k, and look.

    Post 7's nearby bad configurations are push(net, batches, mean_gradients(net, batches)). A relative_length of 0 is
    the net itself. batches: with labels [B]. Of the net nothing changes. Raises DynamicsError for other than one
    direction a class, and as `perturbed_outputs`.
    """
    labels = torch.cat([y for _, y in batches])
    still = perturbed_outputs(net, batches, bn=bn)
    if directions.ndim != 2 or directions.shape[1] != still.shape[1]:
        raise DynamicsError(
            f"the net has {still.shape[1]} classes, got directions of shape {list(directions.shape)}: "
            "give one column a class"
        )
    share, losses, margins = [], [], []
    for k, v in enumerate(directions.T):
        out = perturbed_outputs(net, batches, v, relative_length, bn=bn) if relative_length else still
        others = torch.cat([out[:, :k], out[:, k + 1 :]], dim=1)
        margins.append(out[:, k] - others.max(1).values)
        share.append((margins[-1] > 0).double().mean())
        losses.append(F.cross_entropy(out.double(), labels))
    return Pushed(torch.stack(share), torch.stack(losses), torch.stack(margins))


def channel_shifts(
    net: nn.Module, moved: nn.Module, batches: Batches, layers: Sequence[str], *, bn: str = "batch"
) -> dict[str, Tensor]:
    """By how much each channel's mean differs in `moved`, in standard deviations that it has in `net`: {layer: [C]}.

    moved: a net of the same modules, such as `perturb` makes. layers: module paths, whose outputs [B, C, ...] are read
    over images and positions, averaged over batches; a channel that is constant in `net` is nan. bn: as in
    `output_moments`. Of the nets nothing changes. Raises DynamicsError for layers that do not exist or do not run.
    """
    _check_mode(bn)
    (mean, sd), (then, _) = (_channel_statistics(of, batches, layers, bn) for of in (net, moved))
    return {k: (then[k] - mean[k]) / torch.where(sd[k] > 0, sd[k], torch.nan) for k in layers}


def along_gradient(
    net: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    distances: Sequence[float],
    *,
    bn: str = "batch",
) -> AlongGradient:
    """How the loss and its gradient change along a step of gradient descent on these batches, at several lengths.

    distances: multiples d of the gradient g, as a learning rate is. loss: of (outputs, targets), a mean over its batch.
    bn: as in `output_moments`. Costs a gradient for each distance, and one. Of the net nothing changes.
    Raises DynamicsError for distances that are not above 0, and for a gradient that is zero or not finite.
    Source: Santurkar et al. 2018, arXiv 1805.11604, figure 4: variation of the loss, predictiveness of gradients, and
    effective smoothness.
    """
    _check_mode(bn)
    far = torch.tensor([float(d) for d in distances], dtype=torch.float64)
    if not len(far) or not (far > 0).all() or not torch.isfinite(far).all():
        raise DynamicsError(f"distances are finite numbers above 0, got {list(distances)!r}: write (0.05, 0.1)")
    leaves, weights = _leaves(net, None)
    listed = check_batches(batches, next(iter(weights.values())).device, {p.dtype for p in weights.values()})
    buffers, total = with_statistics(net, bn, None), sum(len(x) for x, _ in listed)

    def at(point: Mapping[str, Tensor]) -> tuple[float, Tensor]:
        value, sums = 0.0, 0.0
        for x, y in listed:
            with undisturbed(net, bn, draw=0):
                here = {k: p.detach().requires_grad_() for k, p in point.items()}
                found = loss(_outputs(net, {**weights, **here}, buffers, x.contiguous()), y)
                parts = gradients([found], here.values())
            value += float(found.detach()) * len(x) / total
            sums = sums + torch.cat([g.reshape(-1) for g in parts]) * (len(x) / total)
        return value, sums

    start, g = at(leaves)
    norm = float(g.norm())
    if not 0 < norm < torch.inf:
        raise DynamicsError(f"the gradient has length {norm:g}, so it is no direction: check the weights")
    parts = g.split([p.numel() for p in leaves.values()])
    ahead = [
        at({k: p.detach() - float(d) * q.view(p.shape) for (k, p), q in zip(leaves.items(), parts, strict=True)})
        for d in far
    ]
    change = torch.tensor([float((there - g).norm()) / norm for _, there in ahead], dtype=torch.float64)
    return AlongGradient(far, torch.tensor([v for v, _ in ahead], dtype=torch.float64), change, start, norm)


def _channel_statistics(
    net: nn.Module, batches: Batches, layers: Sequence[str], bn: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and standard deviation of each channel of each layer's outputs, averaged over batches."""
    modules, sums = dict(net.named_modules()), {}
    for path in layers:
        if path not in modules:
            raise unknown("layer", path, (k for k in modules if k))
    weights = {k: p.detach().contiguous() for k, p in net.named_parameters()}
    inputs, buffers = _batches(batches, weights, least=2), with_statistics(net, bn, None)
    total = sum(map(len, inputs))

    def hook(path: str) -> Callable[..., None]:
        def see(module: nn.Module, given: Any, output: Tensor) -> None:
            rows = output.double().transpose(0, 1).flatten(1)
            read = torch.stack([rows.mean(1), rows.std(1, correction=0)]) * (len(output) / total)
            sums[path] = sums.get(path, 0) + read

        return see

    handles = [modules[path].register_forward_hook(hook(path)) for path in layers]
    try:
        for x in inputs:
            with undisturbed(net, bn, draw=0), torch.no_grad():
                _outputs(net, weights, buffers, x)
    finally:
        for handle in handles:
            handle.remove()
    for path in layers:
        if path not in sums:
            raise DynamicsError(f"the layer {path!r} does not run when the net sees the batch: leave it out")
    return {k: v[0] for k, v in sums.items()}, {k: v[1] for k, v in sums.items()}
