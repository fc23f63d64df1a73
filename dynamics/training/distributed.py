"""Data parallel training: several processes step on parts of one batch, and all hold the same weights.

Every process draws the same batch and takes part j of it: the images j, j + parts, j + 2 parts, ... Loss and gradients
are means over parts, as is what each part does to the running statistics of norms. So batch norm sees one part, and is
ghost norm with as many splits; `SyncNorm` sees the whole batch. Random numbers of a forward pass are drawn alike for
every part, so that whatever is drawn for a whole batch, such as stochastic depth, is one draw.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from ..data import Batch
from ..errors import DynamicsError
from ..nets.syncnorm import SyncNorm, across_processes

LossAndGrads = tuple[torch.Tensor, Sequence[torch.Tensor]]


class World(NamedTuple):
    """Which of how many processes this is, and what carries their sums: "gloo", "nccl", or None for one alone."""

    rank: int = 0
    size: int = 1
    backend: str | None = None


def world() -> World:
    """The processes that train together, which torch.distributed knows."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), dist.get_backend())


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, which environment variables tell; one alone joins nothing.

    With GPUs each process gets its own, and nccl carries the sums; without, gloo does. Raises DynamicsError where there
    are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        if local >= gpus:
            raise DynamicsError(f"each process needs a GPU of its own, and there are {gpus}: --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield world()
    except BaseException:
        if not gpus:  # nccl would wait for the others, which wait for this process
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Rank 0 goes through the block before the others do."""
    if world().rank:
        barrier()
    yield
    if not world().rank:
        barrier()


def barrier() -> None:
    """Wait for all processes; raises DynamicsError if one is gone."""
    if world().size > 1:
        with _others_alive():
            dist.barrier()


def count_parts(net: nn.Module, wanted: int | None) -> int:
    """How many parts a batch is stepped in: as many as wanted, or as there are processes.

    `SyncNorm` knows no parts but those of processes, and its results do not depend on them. Raises DynamicsError for
    parts that the processes cannot share.
    """
    size = world().size
    if wanted is None or any(isinstance(m, SyncNorm) for m in net.modules()):
        return size
    if not isinstance(wanted, int) or wanted < 1 or wanted % size:
        raise DynamicsError(
            f"{size} processes cannot share batches in {wanted!r} parts: use as many processes as the run began with, "
            "or one"
        )
    return wanted


def over_parts(
    step: Callable[[Batch], LossAndGrads],
    net: nn.Module,
    batch: Batch,
    parts: int,
    before: Mapping[str, torch.Tensor],
) -> LossAndGrads:
    """The mean over a batch's parts of `step(part)`: loss and gradients, and what it does to the net's buffers.

    before: the buffers as they were, which each part starts from. One sum over processes carries it all.
    """
    if parts == 1:
        return step(batch)
    here, buffers = world(), dict(net.named_buffers())
    moving = [k for k, b in buffers.items() if b.is_floating_point()]
    sums: list[torch.Tensor] = []
    for part in range(here.rank, parts, here.size):
        for name, buffer in buffers.items() if sums else ():
            buffer.copy_(before[name])
        x = batch.x[part::parts].contiguous(memory_format=torch.channels_last)
        with across_processes(net) if here.size > 1 else nullcontext():
            loss, grads = step(Batch(x, batch.y[part::parts]))
        # changes and not values: where nothing changes, nothing may be rounded
        found = [loss, *grads, *(buffers[k] - before[k] for k in moving)]
        sums = torch._foreach_add(sums, found) if sums else found
    loss, *means = _mean(sums, parts)
    for name, change in zip(moving, means[len(grads) :], strict=True):
        torch.add(before[name], change, out=buffers[name])
    return loss, means[: len(grads)]


def same_everywhere(tensors: Sequence[torch.Tensor]) -> None:
    """Copy rank 0's values into every process's tensors, which libraries may have rounded in other ways."""
    if world().size > 1:
        with _others_alive():
            for tensor in tensors:
                first = tensor.contiguous()
                dist.broadcast(first, 0)
                tensor.copy_(first)


def _mean(tensors: Sequence[torch.Tensor], parts: int) -> list[torch.Tensor]:
    """Sums over parts of all processes, divided by their number, in each tensor's own memory layout."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    if world().size > 1:
        with _others_alive():
            dist.all_reduce(flat)
    flat /= parts
    means = [torch.empty_like(t) for t in tensors]
    pieces = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(means, [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)])
    return means


@contextmanager
def _others_alive() -> Iterator[None]:
    """Say in one line that another process is gone, where torch says so in its own words."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise DynamicsError(
            f"another process of this training has ended ({reason}): mend what its own message says, then resume"
        ) from error
