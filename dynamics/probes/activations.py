"""Probes of activations: what a net's layers put out on a fixed batch, channel by channel.

Each measurement is a forward pass of its own: on the weights of the snapshot and clones of its buffers, in the weights'
precision whatever the recipe's, and contiguous, since float32 batch norm in channels_last sums naively on CPUs.

Channels are the last axis for linear layers and for norms over one axis; axis 1 for convolutions and other norms; for
any other module the last axis of three, and axis 1 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call

from ..data import Batch, Split
from ..errors import DynamicsError, unknown
from ..nets import modes_kept
from ..rng import seeded
from ..training import Snapshot
from .base import Reading, reads
from .norms import channel_coordinates

STATISTICS = ("batch", "running")
LARGEST_BATCH = 4096
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

Measurement = Callable[[Snapshot], Reading]
Taken = TypeVar("Taken")


def outputs(
    snap: Snapshot, x: torch.Tensor | Batch | Split, layers: Sequence[str], *, statistics: str = "batch"
) -> dict[str, torch.Tensor]:
    """What modules put out when the net sees the batch x: {module path: tensor}, in the order of `layers`.

    statistics: "batch" is training mode, where batch norm uses the statistics of x; "running" is eval mode. Modules
    that training itself keeps in eval mode stay in it. Dropout draws the same masks at every call. Of a module that
    returns several tensors it is the first. Nothing of the run is changed: not its buffers, its modes or torch's random
    state. Raises DynamicsError for layers that do not exist, do not run, or run more than once, and for a batch that
    the net cannot take.
    """
    _check_statistics(statistics)
    # a later module may write into what this one returned, as an in-place ReLU does
    return _collect(snap, _fixed(x), _listed(layers), statistics, lambda _module, tensor: tensor.clone())


def moments(
    x: torch.Tensor | Batch | Split, layers: Sequence[str] | None = None, *, statistics: str = "batch"
) -> Measurement:
    """A measurement of `mean`, `variance` and `skew` [channel] of layers' outputs on the fixed batch x.

    Over images, and positions in them: the variance divides by n (the one that batch norm divides by) and the skew is
    the third central moment over variance^(3/2), nan for a constant channel. Coordinates `channel_layer` (module path)
    and `channel_index`. x: what the net takes ([B, C, H, W], normalised), or a Split, of which all images are taken
    without augmentation: split[:256]. layers: module paths; by default every convolution, linear layer and norm that
    runs once in a forward pass, so that channels are read before and after each norm. statistics and errors: see
    `outputs`. every(10, moments(split[:256])) is a probe; `drift` compares its readings over training.
    """
    batch, names = _fixed(x), None if layers is None else _listed(layers)
    _check_statistics(statistics)

    @reads("params", "buffers")
    def measure(snap: Snapshot) -> Reading:
        taken = _collect(snap, batch, names, statistics, lambda module, tensor: _moments(_rows(module, tensor)))
        mean, variance, skew = (torch.cat(parts) for parts in zip(*taken.values(), strict=True))
        about = {"units": "1", "statistics": statistics}
        return {
            **_channels(taken),
            "mean": (("channel",), mean, {**about, "long_name": "mean of a channel's outputs"}),
            "variance": (("channel",), variance, {**about, "long_name": "variance of a channel's outputs"}),
            "skew": (("channel",), skew, {**about, "long_name": "skew of a channel's outputs"}),
        }

    return measure


def histograms(
    x: torch.Tensor | Batch | Split,
    layers: Sequence[str] | None = None,
    *,
    bins: int = 60,
    low: float = -4.0,
    high: float = 4.0,
    standardise: bool = False,
    statistics: str = "batch",
) -> Measurement:
    """A measurement of histograms of layers' outputs on the fixed batch x: `count` [channel, bin].

    `below` and `above` [channel] count the values below low, and at or above high; a nan is counted nowhere. The bins
    are equal and half-open; coordinates `bin` (centres) and `edge` (bins + 1). A value within rounding of an edge may
    fall on either side. standardise: of (value - mean) / sd of its channel, where a constant channel stands at 0.
    Other arguments and coordinates as in `moments`; raises DynamicsError for bins that are none.
    """
    batch, names = _fixed(x), None if layers is None else _listed(layers)
    _check_statistics(statistics)
    if not isinstance(bins, int) or bins < 1:
        raise DynamicsError(f"bins must be a whole number of at least 1, got {bins!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DynamicsError(f"a histogram runs from low to high, got {low:g} to {high:g}: give finite low < high")
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    centres = [low + (high - low) * (i + 0.5) / bins for i in range(bins)]

    def count(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
        rows = _rows(module, tensor)
        return _counts(_standardised(rows) if standardise else rows, bins, low, high)

    @reads("params", "buffers")
    def measure(snap: Snapshot) -> Reading:
        taken = _collect(snap, batch, names, statistics, count)
        counts = torch.cat(list(taken.values()))
        about = {"units": "1", "statistics": statistics, "standardised": int(standardise)}
        return {
            **_channels(taken),
            "bin": centres,
            "edge": edges,
            "count": (("channel", "bin"), counts[:, 1:-1], {**about, "long_name": "outputs in a bin"}),
            "below": (("channel",), counts[:, 0], {**about, "long_name": "outputs below the first edge"}),
            "above": (("channel",), counts[:, -1], {**about, "long_name": "outputs at or above the last edge"}),
        }

    return measure


def _moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, variance and skew of each row: [channel, values] -> three of [channel]."""
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    rest = centred.mean(1, keepdim=True)  # what rounding left in the mean: much, where it is far above the sd
    centred -= rest
    variance = centred.square().mean(1, keepdim=True)
    # standardised first, since cubes of small numbers underflow
    skew = centred.div_(variance.sqrt()).pow_(3).mean(1)
    return (mean + rest).squeeze(1), variance.squeeze(1), skew


def _standardised(rows: torch.Tensor) -> torch.Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    centred -= centred.mean(1, keepdim=True)
    sd = centred.square().mean(1, keepdim=True).sqrt()
    return centred.div_(torch.where(sd > 0, sd, 1.0))


def _counts(rows: torch.Tensor, bins: int, low: float, high: float) -> torch.Tensor:
    """Counts of each row: [channel, values] -> [channel, below | bins | above]."""
    slots = bins + 3  # the last one takes what is not a number
    place = (rows - low).mul_(bins / (high - low)).floor_().clamp_(-1, bins).add_(1).nan_to_num_(nan=slots - 1.0)
    first = torch.arange(len(rows), device=rows.device).mul_(slots).unsqueeze(1)
    counts = torch.bincount((place.long() + first).view(-1), minlength=len(rows) * slots)
    return counts.view(len(rows), slots)[:, :-1]


def _rows(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """A module's outputs as [channel, values], contiguous, in float32 or wider."""
    rows = tensor.movedim(_channel_axis(module, tensor.ndim), 0).flatten(1).contiguous()
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _channel_axis(module: nn.Module, ndim: int) -> int:
    over_one = isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1
    if isinstance(module, nn.Linear) or over_one:
        return ndim - 1
    if isinstance(module, (*CONVOLUTIONS, nn.GroupNorm)) or hasattr(module, "running_var"):
        return 1
    return ndim - 1 if ndim == 3 else 1


def _channels(taken: Mapping[str, Any]) -> Reading:
    """The coordinates of channels, from what was taken of each layer, a tensor [channel, ...] or a tuple of them."""
    return channel_coordinates(tuple(taken), tuple(len(t[0] if isinstance(t, tuple) else t) for t in taken.values()))


def _collect(
    snap: Snapshot,
    x: torch.Tensor,
    layers: Sequence[str] | None,
    statistics: str,
    take: Callable[[nn.Module, torch.Tensor], Taken],
) -> dict[str, Taken]:
    """One forward pass of x, with `take` called on the output of every layer as soon as it is there."""
    net = snap.net
    paths = _default_layers(net) if layers is None else layers
    modules = dict(net.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in modules:
            raise unknown("layer", path, (k for k in modules if k))
    taken: dict[str, Taken] = {}
    again: set[str] = set()

    def hook(path: str, module: nn.Module, output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is None or tensor.ndim < 2:
            what = "no tensor" if tensor is None else f"a tensor of shape {list(tensor.shape)}"
            raise DynamicsError(f"the layer {path!r} puts out {what}, without channels: leave it out of layers=")
        if path in taken:
            again.add(path)
        else:
            taken[path] = take(module, tensor)

    weights = {**dict(net.named_parameters()), **snap.params}
    weights = {k: p.detach().contiguous() for k, p in weights.items()}
    buffers = {**dict(net.named_buffers()), **snap.buffers}
    buffers = {k: b.detach().clone(memory_format=torch.contiguous_format) for k, b in buffers.items()}
    x = _fitting(x, weights)
    bare = torch.autocast(x.device.type, enabled=False)
    hooks = [
        modules[path].register_forward_hook(lambda module, _, output, path=path: hook(path, module, output))
        for path in paths
    ]
    try:
        with _mode(net, statistics), _eager(net), seeded(0, "activations"), torch.no_grad(), bare:
            functional_call(net, {**weights, **buffers}, (x,))
    except DynamicsError:
        raise
    except Exception as error:  # whatever somebody's forward raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DynamicsError(
            f"the net cannot take the fixed batch {str(x.dtype).removeprefix('torch.')} {list(x.shape)} ({reason}): "
            "give the probe a batch as training sees it"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    if layers is None:
        once = {path: taken[path] for path in paths if path in taken and path not in again}
        if not once:
            raise DynamicsError(
                "no convolution, linear layer or norm of this net runs once in a forward pass: name modules, layers="
            )
        return once
    for path in layers:
        if path not in taken:
            raise DynamicsError(f"the layer {path!r} does not run when the net sees the batch: leave it out of layers=")
        if path in again:
            raise DynamicsError(
                f"the layer {path!r} runs more than once in a forward pass, so its outputs are several: "
                "name the modules around it instead"
            )
    return {path: taken[path] for path in layers}


def _default_layers(net: nn.Module) -> list[str]:
    kinds = (*CONVOLUTIONS, nn.Linear, *OTHER_NORMS)
    return [path for path, m in net.named_modules() if isinstance(m, kinds) or hasattr(m, "running_var")]


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((t for t in map(_first_tensor, parts) if t is not None), None)


@contextmanager
def _mode(net: nn.Module, statistics: str) -> Iterator[None]:
    """Training mode as the loop has it, or eval mode, and each module's own mode put back after."""
    with modes_kept(net):
        if statistics == "running" or not net.training:
            for module in net.modules():  # not net.train(), which a net may have made its own
                module.training = statistics == "batch"
        yield


def _eager(net: nn.Module) -> Any:
    """torch.compile's graphs know nothing of new hooks, and must not be compiled anew for them."""
    compiled = any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in net.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _fixed(x: Any) -> torch.Tensor:
    """The fixed batch as a contiguous copy, which stays as it is whatever the caller does with x."""
    if isinstance(x, Split):
        if len(x) > LARGEST_BATCH:
            raise DynamicsError(f"a fixed batch of {len(x)} images is too large for one forward pass: pass split[:512]")
        x = x.padded().permute(0, 3, 1, 2)
    elif isinstance(x, Batch):
        x = x.x
    if not isinstance(x, torch.Tensor):
        raise DynamicsError(f"activations are read on a fixed batch, got {type(x).__name__}: pass a tensor or a Split")
    if x.dtype in (torch.uint8, torch.bool) or x.is_complex():
        raise DynamicsError(f"the fixed batch is {x.dtype}: normalise it as for training, or pass a Split")
    if x.ndim < 1 or not x.numel():
        raise DynamicsError(f"the fixed batch has shape {list(x.shape)}: give it at least one example")
    return x.detach().clone(memory_format=torch.contiguous_format)


def _fitting(x: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The batch in the weights' precision; raises DynamicsError for one on another device."""
    devices = dict.fromkeys(str(p.device) for p in weights.values())
    if devices and str(x.device) not in devices:
        here = next(iter(devices))
        raise DynamicsError(f"the fixed batch is on {x.device} and the weights are on {here}: pass x.to({here!r})")
    dtypes = [p.dtype for p in weights.values() if p.is_floating_point()]
    # whole numbers are tokens, which an embedding takes
    return x.to(dtypes[0]) if dtypes and x.is_floating_point() else x


def _listed(layers: Sequence[str]) -> list[str]:
    names = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise DynamicsError(f"layers are module paths, got {layers!r}: write layers=['layer1.conv', 'layer1.norm']")
    return list(dict.fromkeys(names))


def _check_statistics(statistics: str) -> None:
    if statistics not in STATISTICS:
        raise unknown("statistics", statistics, STATISTICS)
