"""A training run as a trajectory: recipes, states, and the generator that is the training loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .data import Augment, Batch, Split, batches, batches_per_epoch
from .errors import DynamicsError, unknown
from .nets import FrozenNorm, Net, NormOf, Stage, capture_statistics, norm_of
from .optim import SGD, Constant, Group, Optimizer, PiecewiseLinear
from .rng import seeded

PRECISIONS = ("auto", "float32", "bf16", "float64")
CAPTURE_IMAGES = 512
LIVE_ABOVE_EPS = 10.0
"""Below this many eps of running variance, a norm barely normalises its channel, which is called dead."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a trajectory, given the data; equal recipes are equal, and JSON round-trips.

    precision: float32; bf16 (autocast; master weights stay float32); float64; or auto, which is bf16 where the
    machine computes it fast and float32 elsewhere. epochs may be a fraction. seed decides initial weights, order and
    augmentation. The loss is the batch mean of cross-entropy with `label_smoothing`.
    """

    net: Net = field(default_factory=lambda: Net("resnet9"))
    optimizer: Optimizer = field(
        default_factory=lambda: SGD(PiecewiseLinear((0, 5, 24), (0, 0.4, 0)), momentum=0.9, nesterov=True)
    )
    batch_size: int = 512
    epochs: float = 24
    augment: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    precision: str = "auto"
    channels_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.net, Net):
            raise DynamicsError(f"net must be a Net, got {self.net!r}: write Net({str(self.net)!r})")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if not (isinstance(self.epochs, int | float) and 0 <= self.epochs < math.inf):
            raise DynamicsError(f"epochs must be a number of at least 0, got {self.epochs!r}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise DynamicsError(f"batch_size must be a whole number of at least 1, got {self.batch_size!r}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise DynamicsError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing!r}")
        if not isinstance(self.seed, int):
            raise DynamicsError(f"seed must be a whole number, got {self.seed!r}")

    def stretch(self, epochs: float) -> Recipe:
        """The same recipe over another number of epochs, its schedule stretched in proportion."""
        lr = getattr(self.optimizer, "lr", None)
        if not 0 < epochs < math.inf or not self.epochs:
            raise DynamicsError(f"epochs must be above 0, got {epochs:g}: give a finite number")
        if not hasattr(lr, "stretch"):
            return replace(self, epochs=epochs)
        return replace(self, epochs=epochs, optimizer=replace(self.optimizer, lr=lr.stretch(epochs / self.epochs)))

    def steps_in(self, split: Split) -> int:
        """The number of updates that this recipe makes on a split."""
        return round(self.epochs * batches_per_epoch(split, self.batch_size))

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `Recipe.from_json` turns into an equal recipe."""
        return _encode(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Recipe:
        recipe = _decode(value)
        if not isinstance(recipe, Recipe):
            raise DynamicsError("this JSON is not a recipe: write one with Recipe.to_json")
        return recipe


@dataclass(frozen=True, eq=False)
class State:
    """The point that a step starts from: weights, buffers and optimizer state. It is the checkpoint.

    `opt=None` starts the optimizer afresh. carries: what probes remember, by probe name (kept by `train`).
    """

    step: int
    params: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    opt: Mapping[str, Any] | None = None
    carries: Mapping[str, Any] = field(default_factory=dict)

    def clone(self) -> State:
        """A copy that later steps do not change."""
        return tree_map(lambda t: t.detach().clone(), self)


class Hyperparameters(NamedTuple):
    """In force at a step: group names, and one number a group."""

    groups: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything true at one step before the update is applied; tensors are live views, to be read and not written.

    state is where the step starts: `steps(recipe, split, start=snap.state)` yields this snapshot again. In the last
    snapshot, which no step follows, batch, loss, grads, updates and hyperparameters are None.
    """

    state: State
    net: nn.Module
    norms: Mapping[str, NormOf]
    recipe: Recipe
    epoch: float
    batch: Batch | None = None
    loss: torch.Tensor | None = None
    grads: Mapping[str, torch.Tensor] | None = None
    updates: Mapping[str, torch.Tensor] | None = None
    hyperparameters: Hyperparameters | None = None

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
    net, params, buffers = _load(recipe, split, state)
    leaves, live, norms = list(net.parameters()), list(buffers.values()), norm_of(net)
    kept = {k: b.clone() for k, b in buffers.items()}
    optimizer, precision = recipe.optimizer, resolve_precision(recipe.precision, split.device)
    begin, total, per_epoch = state.step, recipe.steps_in(split), batches_per_epoch(split, recipe.batch_size)
    groups = tuple(name for name, _ in optimizer.partition(tuple(params)))
    fresh = _opt(optimizer, state.opt, params)

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
                State(step, params, kept, opt), net, norms, recipe, step / per_epoch, batch, loss.detach(), grads,
                updates, Hyperparameters(groups, optimizer.hyperparameters(time)),
            )  # fmt: skip
            with torch.no_grad():
                torch._foreach_add_(leaves, list(updates.values()))
            opt = next_opt
        last = max(begin, total)
        yield Snapshot(State(last, params, buffers, opt), net, norms, recipe, last / per_epoch)

    return walk()


def batch_loss(recipe: Recipe, net: nn.Module, batch: Batch, precision: str) -> torch.Tensor:
    """The recipe's loss of one batch: a scalar, the mean of cross-entropy over the batch, in float32 or float64."""
    x = batch.x if recipe.channels_last else batch.x.contiguous()
    with _autocast(precision, x.device):
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


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats, no label smoothing) and accuracy (share) over n images."""

    loss: float
    accuracy: float
    n: int


@torch.no_grad()
def evaluate(
    model: Any, split: Split, *, flip: bool = False, batch_size: int = 1000, precision: str | None = None
) -> Evaluation:
    """Loss and accuracy in eval mode of a module, a Snapshot, or a Run.

    flip: average the logits over each image and its mirror image (test-time augmentation, post 8). precision: by
    default the recipe's, and "auto" for a module. Nothing of the model is changed: not its mode, and not its buffers.
    """
    net, weights, own = _evaluable(model, split)
    precision = resolve_precision(precision or own, split.device)
    modes = [(m, m.training) for m in net.modules()]
    dtype = next(net.parameters()).dtype
    pixels, total, correct = split.padded(), torch.zeros((), dtype=torch.float64, device=split.device), 0
    net.eval()
    try:
        for first in range(0, len(split), batch_size):
            x = pixels[first : first + batch_size].permute(0, 3, 1, 2).to(dtype)
            y = split.labels[first : first + batch_size]
            with _autocast(precision, split.device):
                outputs = [functional_call(net, weights, (v,)) for v in ([x, x.flip(3)] if flip else [x])]
            logits = sum(o.to(torch.promote_types(o.dtype, torch.float32)) for o in outputs) / len(outputs)
            total += F.cross_entropy(logits, y, reduction="sum")
            correct = correct + (logits.argmax(1) == y).sum()
    finally:
        for module, mode in modes:
            module.training = mode
    return Evaluation(float(total) / len(split), int(correct) / len(split), len(split))


def _evaluable(model: Any, split: Split) -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    """A module, the weights that take the place of its own, and its precision."""
    if isinstance(model, nn.Module):
        return model, {}, "auto"
    if isinstance(model, Snapshot):
        return model.net, {**model.params, **model.buffers}, model.recipe.precision
    return _load(model.recipe, split, model.state)[0], {}, model.recipe.precision


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bf16 where the hardware multiplies it natively, float32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # without avx512_bf16 or AMX the CPU emulates bf16 and is slower than in float32
    native = any(getattr(torch.cpu, f"_is_{k}_supported", bool)() for k in ("avx512_bf16", "amx_tile"))
    return "bf16" if native else "float32"


def _autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _load(
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


# What a recipe may be made of; other frozen dataclasses are named by module and must be imported before loading.
_KINDS: dict[str, type] = {c.__name__: c for c in (Recipe, SGD, Group, PiecewiseLinear, Constant, Augment, Stage)}


def _encode(value: Any) -> Any:
    if isinstance(value, Net):
        return {"kind": "Net", "name": value.name, "arguments": {k: _encode(v) for k, v in value.arguments}}
    if dataclasses.is_dataclass(value):
        name = type(value).__name__
        kind = name if _KINDS.get(name) is type(value) else f"{type(value).__module__}:{name}"
        return {"kind": kind, **{f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise DynamicsError(f"a recipe cannot hold {value!r}: use numbers, strings, tuples and frozen dataclasses")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    fields = {k: _decode(v) for k, v in value.items() if k not in ("kind", "arguments")}
    if "kind" not in value:
        raise DynamicsError("this JSON is not a recipe: write one with Recipe.to_json")
    if value["kind"] == "Net":
        return Net(fields["name"], **{k: _decode(v) for k, v in value["arguments"].items()})
    kind = _KINDS.get(value["kind"]) or _already_imported(value["kind"])
    known = {f.name for f in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise unknown(f"field of {value['kind']}", name, known)
    try:
        return kind(**fields)
    except TypeError as error:
        raise DynamicsError(f"this recipe's {value['kind']} is not whole ({error})") from None


def _already_imported(path: str) -> type:
    # never imports: reading a run folder must not run code that the folder names
    import sys

    module, _, name = path.partition(":")
    kind = getattr(sys.modules.get(module), name, None) if name else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise DynamicsError(f"this recipe uses {path!r}, which is not loaded: import its module first, then load again")
    return kind
