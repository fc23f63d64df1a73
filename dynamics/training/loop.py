"""The training loop: a generator of Snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Batch, Split, batches, batches_per_epoch
from ..errors import DynamicsError
from ..nets import FrozenNorm, capture_statistics, norm_of
from ..optim import Optimizer
from ..rng import seeded
from .averages import add_to_average, begin_average
from .recipe import Recipe
from .state import Hyperparameters, Snapshot, State, flatten

CAPTURE_IMAGES = 512


def steps(recipe: Recipe, split: Split, start: State | None = None) -> Iterator[Snapshot]:
    """Train: yield a Snapshot before each update, and one after the last.

    start: any State, to resume, to fork with another recipe, or to begin from rescaled weights. The learning rate of
    step t (from 0) is the schedule's at epoch (t + 1) / steps per epoch, as in Page's code. No context manager
    is open while the caller runs. Raises DynamicsError, when called, for a batch larger than the split, and for a
    start that does not fit the recipe.
    """
    if torch.is_inference_mode_enabled():
        raise DynamicsError("torch cannot train inside torch.inference_mode: use torch.no_grad, or leave it")
    state = start or initial_state(recipe, split)
    net, params, buffers = load_net(recipe, split, state)
    leaves, live, norms = list(net.parameters()), list(buffers.values()), norm_of(net)
    kept = {k: b.clone() for k, b in buffers.items()}
    optimizer, precision = recipe.optimizer, resolve_precision(recipe.precision, split.device)
    begin, total, per_epoch = state.step, recipe.steps_in(split), batches_per_epoch(split, recipe.batch_size)
    groups = optimizer.partition(tuple(params))
    fresh, average = _opt(optimizer, state.opt, params), _average(recipe, state, params, buffers)

    def walk() -> Iterator[Snapshot]:
        opt, feed = fresh, iter(())
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
            with torch.enable_grad(), bare, seeded(recipe.seed, "forward", step):
                loss = batch_loss(recipe, net, batch, precision)
                grads = dict(zip(params, torch.autograd.grad(loss, leaves), strict=True))
            time = (step + 1) / per_epoch
            updates, next_opt = optimizer.update(grads, opt, params, time)
            yield Snapshot(
                State(step, params, kept, opt, average=average), net, norms, recipe, step / per_epoch, batch,
                loss.detach(), grads, updates, Hyperparameters(groups, optimizer.hyperparameters(time)),
            )  # fmt: skip
            with torch.no_grad():
                torch._foreach_add_(leaves, list(updates.values()))
            opt = next_opt
            if average is not None:
                add_to_average(recipe.average, average, step + 1, time, params, buffers)
        last = max(begin, total)
        yield Snapshot(State(last, params, buffers, opt, average=average), net, norms, recipe, last / per_epoch)

    return walk()


def batch_loss(recipe: Recipe, net: nn.Module, batch: Batch, precision: str) -> torch.Tensor:
    """The recipe's loss of one batch: a scalar, the mean of cross-entropy over the batch, in float32 or float64."""
    x = batch.x if recipe.channels_last else batch.x.contiguous()
    with autocast(precision, x.device):
        logits = net(x.double() if precision == "float64" else x)
    logits = logits if precision == "float64" else logits.float()
    return F.cross_entropy(logits, batch.y, label_smoothing=recipe.label_smoothing)


def initial_state(recipe: Recipe, split: Split) -> State:
    """The state at step 0: seeded weights, and frozen norms' statistics captured from the first training images.

    Raises DynamicsError where the net cannot take images of this size.
    """
    batches_per_epoch(split, recipe.batch_size)
    net = recipe.net.build(classes=len(split.classes), seed=recipe.seed).to(split.device)
    images = split[:CAPTURE_IMAGES].padded().permute(0, 3, 1, 2).contiguous()
    try:
        with torch.no_grad(), seeded(recipe.seed, "check"):
            net.eval()(images[:1])
    except RuntimeError as error:
        side = "x".join(map(str, images.shape[2:]))
        reason = str(error).splitlines()[0]
        raise DynamicsError(f"{recipe.net!r} cannot take images of {side} ({reason}): use larger ones") from None
    if any(isinstance(m, FrozenNorm) for m in net.modules()):
        capture_statistics(net, images)
    params = {k: p.detach() for k, p in net.named_parameters()}
    return State(0, params, dict(net.named_buffers()))


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bf16 where the hardware multiplies it natively, float32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # without avx512_bf16 or AMX the CPU emulates bf16 and is slower than in float32
    native = any(getattr(torch.cpu, f"_is_{k}_supported", bool)() for k in ("avx512_bf16", "amx_tile"))
    return "bf16" if native else "float32"


def autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


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
