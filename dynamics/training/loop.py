"""The training loop: a generator of Snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Batch, Split, batches, batches_per_epoch
from ..errors import DynamicsError
from ..nets import GhostNorm, images_to_prepare, norm_of, prepare
from ..optim import Optimizer
from ..rng import seeded
from .averages import add_to_average, begin_average
from .distributed import count_parts, over_parts, same_everywhere
from .precision import autocast, begin_scale, compiled, next_scale, resolve_precision, unscale
from .recipe import Recipe
from .state import Hyperparameters, Snapshot, State, flatten


def steps(recipe: Recipe, split: Split, start: State | None = None, *, parts: int | None = None) -> Iterator[Snapshot]:
    """Train: yield a Snapshot before each update, and one after the last.

    start: any State, to resume, to fork with another recipe, or to begin from rescaled weights. The learning rate of
    step t (from 0) is the schedule's at epoch (t + 1) / steps per epoch, as in Page's code. No context manager
    is open while the caller runs. Where torch.distributed is initialised, its processes train together and yield the
    same snapshots. parts: a batch is stepped in so many parts, by default one a process; parts=2 in one process is what
    two processes do. Raises DynamicsError, when called, for a batch larger than the split or one that its parts, or
    ghost norm's, do not divide, for fp16 without a GPU, and for a start that does not fit the recipe.
    """
    if torch.is_inference_mode_enabled():
        raise DynamicsError("torch cannot train inside torch.inference_mode: use torch.no_grad, or leave it")
    precision = resolve_precision(recipe.precision, split.device)
    state = start or initial_state(recipe, split)
    net, params, buffers = load_net(recipe, split, state)
    parts = count_parts(net, parts)
    _check_batch(recipe, net, parts)
    leaves, live, norms = list(net.parameters()), list(buffers.values()), norm_of(net)
    same_everywhere([*params.values(), *live])
    kept = {k: b.clone() for k, b in buffers.items()}
    optimizer, loss_of = recipe.optimizer, _loss_of(recipe, net, precision, split.device)
    begin, total, per_epoch = state.step, recipe.steps_in(split), batches_per_epoch(split, recipe.batch_size)
    groups = optimizer.partition(tuple(params))
    fresh, average = _opt(optimizer, state.opt, params), _average(recipe, state, params, buffers)

    def walk() -> Iterator[Snapshot]:
        opt, feed, skipped = fresh, iter(()), False
        scale = begin_scale(state.loss_scale) if precision == "fp16" else None
        for step in range(begin, total):
            epoch, k = divmod(step, per_epoch)
            if k == 0 or step == begin:
                order = {"seed": recipe.seed, "epoch": epoch, "augment": recipe.augment, "start": k}
                feed = batches(split, recipe.batch_size, **order)
            batch = next(feed)
            if live:  # the forward pass moves running statistics; a State has them as they were before
                torch._foreach_copy_(list(kept.values()), live)
            # whatever mode the caller is in, a recipe is one trajectory
            bare = torch.autocast(split.device.type, enabled=False)
            of_part = partial(_loss_and_grads, loss_of, leaves, scale, (recipe.seed, "forward", step))
            with torch.enable_grad(), bare:
                loss, found = over_parts(of_part, net, batch, parts, kept)
            grads, time = dict(zip(params, found, strict=True)), (step + 1) / per_epoch
            if scale is not None:
                grads, finite = unscale(grads, scale)
                skipped = not finite
            if skipped:
                updates, next_opt = {k: torch.zeros_like(p) for k, p in params.items()}, opt
            else:
                updates, next_opt = optimizer.update(grads, opt, params, time)
            yield Snapshot(
                State(step, params, kept, opt, average=average, loss_scale=scale), net, norms, recipe,
                step / per_epoch, batch, loss, grads, updates,
                Hyperparameters(groups, optimizer.hyperparameters(time)), skipped,
            )  # fmt: skip
            with torch.no_grad():
                torch._foreach_add_(leaves, list(updates.values()))
            opt = next_opt
            scale = None if scale is None else next_scale(scale, not skipped)
            if average is not None and not skipped:
                add_to_average(recipe.average, average, step + 1, time, params, buffers)
        last = max(begin, total)
        end = State(last, params, buffers, opt, average=average, loss_scale=scale)
        yield Snapshot(end, net, norms, recipe, last / per_epoch)

    return walk()


def batch_loss(recipe: Recipe, net: nn.Module, batch: Batch, precision: str) -> torch.Tensor:
    """The recipe's loss of one batch: a scalar, the mean of cross-entropy over the batch, in float32 or float64.

    Labels are classes [B], or shares of all classes [B, K] as mixup makes them.
    """
    x = batch.x if recipe.channels_last else batch.x.contiguous()
    with autocast(precision, x.device):
        logits = net(x.double() if precision == "float64" else x)
    logits = logits if precision == "float64" else logits.float()
    y = batch.y.to(logits.dtype) if batch.y.is_floating_point() else batch.y
    return F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)


def _loss_of(recipe: Recipe, net: nn.Module, precision: str, device: torch.device) -> Callable[[Batch], torch.Tensor]:
    def loss_of(batch: Batch) -> torch.Tensor:
        return batch_loss(recipe, net, batch, precision)

    return compiled(loss_of, device) if recipe.compile else loss_of


def _loss_and_grads(
    loss_of: Callable[[Batch], torch.Tensor],
    leaves: Sequence[torch.Tensor],
    scale: Mapping[str, torch.Tensor] | None,
    noise: tuple[int, str, int],
    batch: Batch,
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """The loss of a batch, and the gradients of the loss times the scale."""
    with seeded(*noise):
        loss = loss_of(batch)
        scaled = loss if scale is None else loss * scale["scale"]
        # what a pass leaves out, as stochastic depth does, has zeros
        return loss.detach(), torch.autograd.grad(scaled, leaves, materialize_grads=True)


def initial_state(recipe: Recipe, split: Split) -> State:
    """The state at step 0: seeded weights, and what `nets.prepare` fits to the first training images.

    Raises DynamicsError where the net cannot take images of this size.
    """
    batches_per_epoch(split, recipe.batch_size)
    net = recipe.net.build(classes=len(split.classes), seed=recipe.seed).to(split.device).eval()
    images = split[: max(images_to_prepare(net), 1)].padded().permute(0, 3, 1, 2).contiguous()
    try:
        with torch.no_grad(), seeded(recipe.seed, "check"):
            prepare(net, images)
            net(images[:1])
    except RuntimeError as error:
        side = "x".join(map(str, images.shape[2:]))
        reason = str(error).splitlines()[0]
        raise DynamicsError(f"{recipe.net!r} cannot take images of {side} ({reason}): use larger ones") from None
    params = {k: p.detach() for k, p in net.named_parameters()}
    return State(0, params, dict(net.named_buffers()))


def _check_batch(recipe: Recipe, net: nn.Module, parts: int) -> None:
    """Raise DynamicsError for a batch that processes, or the splits of ghost norm, cannot share equally."""
    n = recipe.batch_size
    if n % parts:
        raise DynamicsError(f"{parts} processes cannot share a batch of {n} images: make batch_size a multiple")
    n, whose = n // parts, f" (of {parts} processes each)" if parts > 1 else ""
    for splits in (m.splits for m in net.modules() if isinstance(m, GhostNorm) and n % m.splits):
        raise DynamicsError(
            f"ghost norm cannot split a batch of {n} images{whose} into {splits} equal parts: choose ghost_splits and "
            "batch_size so that it divides it"
        )


def load_net(
    recipe: Recipe, split: Split, state: State
) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Build the net in the recipe's precision and layout and copy a state into it: net, parameters, buffers (live)."""
    net = recipe.net.build(classes=len(split.classes), seed=recipe.seed)
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    net = net.to(device=split.device, dtype=dtype, memory_format=layout).train()
    params = {k: p.detach() for k, p in net.named_parameters()}
    buffers = dict(net.named_buffers())
    for kind, mine, given in (("parameters", params, state.params), ("buffers", buffers, state.buffers)):
        odd = sorted(set(mine) ^ set(given)) or [k for k in mine if mine[k].shape != given[k].shape]
        if odd:
            raise DynamicsError(
                f"the start's {kind} do not fit {recipe.net!r} (first difference: {odd[0]!r}): "
                "start from a run of the same net"
            )
        for name, tensor in mine.items():
            tensor.copy_(given[name])
    return net, params, buffers


def _opt(optimizer: Optimizer, given: Mapping[str, Any] | None, params: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The optimizer state to start from: afresh, or the given one in the params' device, precision and layout."""
    fresh = optimizer.init(params)
    if given is None:
        return fresh
    mine, theirs = flatten(fresh), flatten(given)
    if {k: t.shape for k, t in mine.items()} != {k: t.shape for k, t in theirs.items()}:
        raise DynamicsError(
            f"the start's optimizer state does not fit {type(optimizer).__name__} with these settings: "
            "pass replace(state, opt=None) to start the optimizer afresh"
        )
    for key, tensor in mine.items():
        tensor.copy_(theirs[key])
    return fresh


def _average(
    recipe: Recipe, state: State, params: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
) -> dict[str, Any] | None:
    """The average to go on with: none, the start's own, or one that begins here."""
    if recipe.average is None:
        return None
    fresh = begin_average(params, buffers)
    if state.average is not None:
        mine = flatten(fresh)
        for key, tensor in flatten(state.average).items():
            mine[key].copy_(tensor)
    return fresh
