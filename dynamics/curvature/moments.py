"""The directions in parameter space that move the mean, spread and skew of each output (Page, post 7)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import DynamicsError, unknown
from .evaluate import check_batches, choose, gradients, undisturbed, with_statistics
from .operators import MODES
from .subspaces import orthonormal

MOMENTS = ("means", "variances", "skews")

Batches = Sequence[tuple[Tensor, Any]]
Chosen = str | Iterable[str] | Callable[[str, Tensor], bool] | None


class OutputMoments(NamedTuple):
    """Gradients over the parameters of each output channel's mean, variance and third central moment, all [n, C].

    Rows are in `net.parameters()` order, each parameter flattened in its logical (contiguous) order; `names` [p] are
    the parameters that they are made of. `values` [3, C] are the moments themselves.
    """

    means: Tensor
    variances: Tensor
    skews: Tensor
    values: Tensor
    names: tuple[str, ...]


class MomentSubspaces(NamedTuple):
    """Orthonormal bases [n, r], r <= C: the span of the gradients of means, what those of variances add to it, and
    what those of third moments add to both."""

    means: Tensor
    variances: Tensor
    skews: Tensor


class Gap(NamedTuple):
    """The largest ratio of consecutive eigenvalues, and how many stand above it."""

    count: int
    ratio: float


def output_moments(
    net: nn.Module,
    batches: Batches,
    *,
    bn: str = "batch",
    params: Chosen = None,
    statistics: Mapping[str, Tensor] | None = None,
    progress: bool = True,
) -> OutputMoments:
    """Gradients of the moments of every output channel: the mean, the unbiased variance (over B - 1) and the third
    central moment (over B, not divided by sd³).

    Moments are of one batch's outputs [B, C], after whatever scale the net ends with, and gradients are averaged over
    batches, weighted by size. bn, params, statistics: as in `Hessian`, whose vectors have the same rows; "batch" goes
    through each batch's statistics too. Costs a forward pass and 3C backward passes a batch, in the parameters'
    precision. Of the net nothing changes.
    Raises DynamicsError for outputs that are not [B, C], batches of fewer than 2, values that are not finite, and as
    `Hessian`. Source: Page, "How to train your ResNet" 7, the code beside its tables of overlaps.
    """
    _check_mode(bn)
    leaves, weights = _leaves(net, params)
    inputs, buffers = _batches(batches, weights, least=2), with_statistics(net, bn, statistics)
    total = sum(map(len, inputs))
    sums: list[Tensor] = []
    values: Tensor | float = 0.0
    from tqdm.auto import tqdm

    with tqdm(desc="output moments", unit="gradient", disable=not progress, leave=False) as bar:
        for x in inputs:
            with undisturbed(net, bn, draw=0):
                outputs = _outputs(net, weights, buffers, x)
                moments, pulls = _moments(outputs.detach().double())
                values = values + moments * (len(x) / total)
                along = [(i % len(moments.T), pull) for i, pull in enumerate(pulls.flatten(0, 1) * (len(x) / total))]
                bar.total = len(along) * len(inputs)
                for i, (channel, pull) in enumerate(along):
                    towards = torch.zeros_like(outputs)
                    towards[:, channel] = pull
                    parts = gradients([outputs], leaves.values(), [towards])
                    flat = torch.cat([g.reshape(-1) for g in parts])
                    if len(sums) < len(along):
                        sums.append(flat)
                    else:
                        sums[i] += flat
                    bar.update()
                del outputs
    stacked = torch.stack(sums)
    if not torch.isfinite(stacked).all():
        raise DynamicsError("the gradients of the output moments are not finite: check the weights, or use float64")
    return OutputMoments(*(part.T for part in stacked.chunk(3)), values, tuple(leaves))


def moment_subspaces(moments: OutputMoments) -> MomentSubspaces:
    """The subspaces that the gradients of means, variances and third moments span, each orthogonal to those before.

    Gradients that depend on others, such as those of logits with a fixed sum, are left out (see `orthonormal`).
    Source: Page, post 7: a QR decomposition in the order means, variances, skews.
    """
    return MomentSubspaces(*orthonormal(moments.means, moments.variances, moments.skews))


def moment_shares(vectors: Tensor, subspaces: MomentSubspaces) -> Tensor:
    """The share [k, 3] of each vector's squared length, vectors [n, k], inside each of the three subspaces.

    They add up to at most 1, and are about r/n each for a random vector. nan for a zero vector. Raises DynamicsError
    for vectors of another length.
    """
    columns = vectors[:, None] if vectors.ndim == 1 else vectors
    if columns.ndim != 2 or len(columns) != len(subspaces.means):
        raise DynamicsError(
            f"the subspaces are of {len(subspaces.means)} parameters, got vectors of shape {list(vectors.shape)}: take "
            "eigenvectors and moments of the same params="
        )
    units = columns / columns.norm(dim=0)
    return torch.stack([(basis.T.to(units) @ units).square().sum(0) for basis in subspaces], dim=1)


def by_layer(net: nn.Module, vectors: Tensor, *, params: Chosen = None) -> dict[str, Tensor]:
    """The squared length of a vector [n], or of each of several [n, k], inside each layer: {module path: [] or [k]}.

    They add up to the squared length, so that of a unit vector they are shares. Raises DynamicsError for vectors that
    do not fit the net. by_layer(net, output_moments(net, batches).means) is post 7's table of gradients by layer.
    """
    chosen, parts = _fits(net, vectors, params)
    squares: dict[str, Tensor] = {}
    for name, part in zip(chosen, parts, strict=True):
        layer = name.rpartition(".")[0] or name
        squares[layer] = squares.get(layer, 0) + part.square().sum(0)
    return squares


def perturb(net: nn.Module, direction: Tensor, relative_length: float, *, params: Chosen = None) -> nn.Module:
    """A copy of the net at θ + relative_length ‖θ‖ direction/‖direction‖, with direction [n] and θ of the same params.

    Post 7 moves 1 % (relative_length=0.01) along the gradient of one output's mean. Buffers stay as they are. Raises
    DynamicsError for a direction that does not fit, is zero or not finite.
    """
    moved = copy.deepcopy(net)
    chosen, parts = _fits(moved, direction, params)
    if direction.ndim != 1 or not torch.isfinite(direction).all() or not direction.any():
        raise DynamicsError("a direction is one finite vector [n] that is not zero: pass one column, vectors[:, 0]")
    if not math.isfinite(relative_length):
        raise DynamicsError(f"relative_length is a finite share of the weights' norm, got {relative_length}")
    norm = torch.stack([p.detach().double().square().sum() for p in chosen.values()]).sum().sqrt()
    length = relative_length * norm / direction.double().norm()
    with torch.no_grad():
        for p, part in zip(chosen.values(), parts, strict=True):
            p += (part.double() * length).to(p).view(p.shape)
    return moved


def perturbed_outputs(
    net: nn.Module,
    batches: Batches,
    direction: Tensor | None = None,
    relative_length: float = 0.01,
    *,
    bn: str = "batch",
    params: Chosen = None,
    statistics: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The outputs [N, C] of every image of the batches, in their order, after `perturb`; of the net itself without a
    direction.

    bn, statistics: as in `output_moments`. Of the net nothing changes.
    Raises DynamicsError as `perturb` and `output_moments`.
    """
    _check_mode(bn)
    moved = net if direction is None else perturb(net, direction, relative_length, params=params)
    weights = {k: p.detach().contiguous() for k, p in moved.named_parameters()}
    buffers = with_statistics(moved, bn, statistics)
    outputs = []
    for x in _batches(batches, weights, least=1):
        with undisturbed(moved, bn, draw=0), torch.no_grad():
            outputs.append(_outputs(moved, weights, buffers, x))
    return torch.cat(outputs)


def largest_gap(values: Tensor | Sequence[float]) -> Gap:
    """How many leading eigenvalues stand above the largest ratio of two consecutive ones, and that ratio.

    The usual count of a spectrum's outliers, of the positive values in descending order; it means something where the
    ratio is well above the others. (0, 1) for fewer than two positive values.
    """
    found = sorted((float(v) for v in values if v > 0), reverse=True)
    ratios = [a / b for a, b in pairwise(found)]
    if not ratios:
        return Gap(0, 1.0)
    count = max(range(len(ratios)), key=ratios.__getitem__)
    return Gap(count + 1, ratios[count])


def _moments(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Moments [3, C] of outputs [B, C], and their derivatives by each output [3, C, B]."""
    n = len(outputs)
    centred = outputs - outputs.mean(0)
    squares = centred.square()
    values = torch.stack([outputs.mean(0), squares.sum(0) / (n - 1), (squares * centred).mean(0)])
    # the mean that is taken away moves too: it adds nothing to the variance, and -3 E[c²]/B to the third moment
    pulls = torch.stack(
        [torch.full_like(outputs, 1 / n), 2 * centred / (n - 1), 3 * (squares - squares.mean(0)) / n]
    )  # fmt: skip
    return values, pulls.transpose(1, 2)


def _check_mode(bn: str) -> None:
    if bn not in MODES:
        raise unknown("bn mode", bn, MODES)


def _leaves(net: nn.Module, params: Chosen) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the chosen parameters, and all weights with these copies in them, contiguous."""
    named = dict(net.named_parameters())
    # float32 batch norm in channels_last on CPU is 800 times less accurate than contiguous
    weights = {k: p.detach().contiguous() for k, p in named.items()}
    leaves = {k: weights[k].clone().requires_grad_() for k in choose(named, params)}
    return leaves, {**weights, **leaves}


def _batches(batches: Batches, weights: Mapping[str, Tensor], *, least: int) -> list[Tensor]:
    """The inputs of batches, contiguous."""
    like = next(iter(weights.values()))
    found = [x.contiguous() for x, _ in check_batches(batches, like.device, {p.dtype for p in weights.values()})]
    if min(map(len, found)) < least:
        raise DynamicsError(f"a batch needs at least {least} images to have a variance: leave smaller ones out")
    return found


def _outputs(net: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs [B, C] of a batch, which moves copies of the buffers only."""
    outputs = functional_call(net, {**weights, **{k: b.clone() for k, b in buffers.items()}}, (x,))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(x):
        what = f"shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DynamicsError(f"moments are of outputs [B, C], here of B={len(x)}, and the net gave {what}")
    if not torch.isfinite(outputs).all():
        raise DynamicsError("the net's outputs are not finite: check the weights and the batches")
    return outputs


def _fits(net: nn.Module, vectors: Tensor, params: Chosen) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The chosen parameters, and the rows of the vectors that belong to each."""
    named = dict(net.named_parameters())
    chosen = {k: named[k] for k in choose(named, params)}
    n = sum(p.numel() for p in chosen.values())
    if vectors.ndim not in (1, 2) or len(vectors) != n:
        raise DynamicsError(f"these parameters are {n} numbers, got shape {list(vectors.shape)}: take the same params=")
    return chosen, vectors.split([p.numel() for p in chosen.values()])
