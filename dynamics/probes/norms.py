"""Probes of normalisation layers."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..training import Snapshot
from .base import Reading, reads


@reads("params", "buffers")
def batchnorm(snap: Snapshot) -> Reading:
    """Per channel of every norm with running statistics: `scale`, `bias`, `running_mean`, `running_var` [channel].

    Coordinates `channel_layer` (module path) and `channel_index`. A norm without learned scale or bias reads 1 and 0.
    The running statistics are those before this step's batch.
    """
    norms = [k.removesuffix(".running_var") for k in snap.buffers if k.endswith(".running_var")]
    like = next(iter(snap.params.values()))
    read: dict[str, list[torch.Tensor]] = {"scale": [], "bias": [], "running_mean": [], "running_var": []}
    for path in norms:
        variance = snap.buffers[f"{path}.running_var"]
        read["scale"].append(snap.params.get(f"{path}.weight", torch.ones_like(variance)))
        read["bias"].append(snap.params.get(f"{path}.bias", torch.zeros_like(variance)))
        read["running_mean"].append(snap.buffers[f"{path}.running_mean"])
        read["running_var"].append(variance)
    return {
        **channel_coordinates(tuple(norms), tuple(len(v) for v in read["running_var"])),
        # a net without norms reads zero channels
        **{k: (("channel",), torch.cat([like.new_empty(0), *v]), {"units": "1"}) for k, v in read.items()},
    }


@lru_cache(maxsize=64)
def channel_coordinates(norms: tuple[str, ...], sizes: tuple[int, ...]) -> Reading:
    return {
        "channel_layer": (("channel",), [n for n, size in zip(norms, sizes, strict=True) for _ in range(size)]),
        "channel_index": (("channel",), [i for size in sizes for i in range(size)]),
    }
