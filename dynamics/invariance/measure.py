"""The two tests of scale invariance: the cosine of weight and gradient, and rescaling."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import DynamicsError
from ..rng import generator, seeded
from .table import WITH_BIAS, Invariance, TensorInvariance

DEAD = 1e-12
"""Rows whose ‖w‖‖g‖ is at most this share of the loss have no gradient: what is left of it is rounding."""
LEAST = 0.05
"""A block size that covers a smaller share of the live rows counts as none: so many cosines are small by chance."""
NEARLY = 0.9
"""A bias is taken along where less than this share is covered without it: single filters fail by eps."""
CANCEL = 0.02
"""The ⟨w,g⟩ of a block's rows cancel to this share of their sizes where the block is invariant as one. Rows that fail
each by eps do not, though they may pass when lumped together."""
SAME = 0.05
"""How far, relative to ‖g‖, the gradient of a block scaled by a may be from g/a."""
ROUNDS = 6
"""Rescalings of one tensor at one block size, each without the blocks that those before it found out."""


def invariance(
    net: nn.Module,
    loss: Callable[[Any, Any], torch.Tensor],
    batch: tuple[Any, Any],
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Invariance:
    """To which tensors of two or more dimensions, and which of their filters, `loss(net(x), y)` is scale-invariant.

    batch is (x, y), and loss gives a scalar, the mean. A block of filters is invariant where two tests agree:
    - its cosine ⟨w,g⟩/(‖w‖‖g‖), which scale invariance makes zero (van Laarhoven 2017, section 2), is at most
      `tolerance`. The eps of a norm alone gives cosines of 1e-6 to 3e-4, which the default lets pass. A small cosine
      can also be luck: in a tensor of n weights that have nothing to do with their gradient it is about 1/√n;
    - multiplied by factors in [0.5, 2], one of its own for every block of the tensor, all at once, the loss changes by
      at most `tolerance` of the larger of |loss| and ‖w‖‖g‖, and the gradient of a block scaled by a becomes g/a.
    Blocks are tried at every size that divides the number of filters; the finest that covers the most filters is
    reported. Filters of zero weight or zero gradient pass trivially, so they are counted apart and decide nothing. A
    tensor that is not invariant by itself is tried together with its own bias: what only holds because a bias is
    small, as at initialisation, is not held to be the tensor's own.

    The table is true of these weights, in the modes that the net's modules are in: a layer or branch that starts at
    zero can hide a dependence, so measure after some steps. Works in float64 on a copy, with the same random draws
    (dropout) in each evaluation: net, gradients, buffers, batch and the global random state stay as they are; only
    hooks of the caller's, which the copy shares, are called. Costs a forward and a backward pass for every tensor and
    block size that the cosines leave in question.

    Raises DynamicsError for a net without parameters, a batch on another device, a loss that is not a finite scalar,
    does not depend on the net or is random in ways that a seed does not fix.
    """
    if not 0.0 < tolerance < 1.0:
        raise DynamicsError(f"tolerance must be between 0 and 1, got {tolerance!r}: the default is 1e-3")
    with torch.inference_mode(False), torch.enable_grad():
        bench = _bench(net, loss, batch, seed)
        prefix = "_orig_mod." if hasattr(net, "_orig_mod") else ""  # as torch.compile names them
        params = dict(bench.net.named_parameters())
        names = [k for k, p in params.items() if p.ndim >= 2 and p.is_floating_point() and p.numel()]
        biases = {k: b for k in names if (b := _own_bias(k, params)) is not None}
        value, grads = _evaluate(bench, {}, [*names, *biases.values()])
        if abs(_evaluate(bench, {}, [])[0] - value) > 1e-9 * abs(value):
            raise DynamicsError(
                "two evaluations of the loss differ: let the net draw from torch's global generator only, "
                "which is seeded here"
            )
        owners = [k.rpartition(".")[0] for k in names]
        aliases: dict[int, list[str]] = {}
        for k, p in bench.net.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(p), []).append(prefix + k)
        rows = []
        for name, owner in zip(names, owners, strict=True):
            found = _find(bench, params, name, biases.get(name), value, grads, tolerance)
            layer = owner if owner and owners.count(owner) == 1 else name
            tied = tuple(a for a in aliases[id(params[name])] if a != prefix + name)
            rows.append(TensorInvariance(name=prefix + name, layer=prefix + layer, tied=tied, **found))
    return Invariance(tuple(rows), value, net.training, tolerance, seed)


class _Bench(NamedTuple):
    """What every evaluation starts from: a float64 copy of the net, which itself is never run."""

    net: nn.Module
    loss: Callable[[Any, Any], torch.Tensor]
    batch: tuple[Any, Any]
    seed: int


class _Block(NamedTuple):
    """Blocks of `size` filters that passed, spread over the live rows they cover, and what was measured of them."""

    size: int
    mask: torch.Tensor
    cosine: float
    loss_change: float
    gradient_change: float

    @property
    def reach(self) -> int:
        return int(self.mask.sum())


Evaluate = Callable[[torch.Tensor], tuple[float, torch.Tensor]]


def _bench(net: nn.Module, loss: Any, batch: Any, seed: int) -> _Bench:
    first = next(net.parameters(), None)
    if first is None:
        raise DynamicsError("this net has no parameters: give one with weights")
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise DynamicsError("batch must be a pair (x, y) of inputs and targets")
    if first.device.type == "mps":
        raise DynamicsError("mps has no float64: move net and batch to the CPU")
    if len({p.device for p in net.parameters()}) == 1:
        for tensor in _tensors(batch):
            if tensor.device != first.device:
                raise DynamicsError(f"batch is on {tensor.device}, net on {first.device}: move one to the other")
    inner = getattr(net, "_orig_mod", net)
    # modules that keep an activation, or a weight computed in a hook, hold tensors that deepcopy refuses
    memo = {
        id(t): t.detach().clone()
        for m in inner.modules()
        for t in vars(m).values()
        if isinstance(t, torch.Tensor) and not t.is_leaf
    }
    try:
        twin = copy.deepcopy(inner, memo).double()
        measure = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DynamicsError(f"cannot copy this net or loss ({_line(error)}): give the bare module") from error
    return _Bench(twin, measure, tuple(_map(lambda t: t.double() if t.is_floating_point() else t, batch)), seed)


def _evaluate(
    bench: _Bench, values: Mapping[str, torch.Tensor], wrt: Sequence[str]
) -> tuple[float, dict[str, torch.Tensor | None]]:
    """The loss with some parameters replaced, and its gradients with respect to some; None for those it does not use.

    Each evaluation has its own copies, so that no buffer, attribute or in-place operation of one reaches the next.
    """
    net = copy.deepcopy(bench.net)
    params = dict(net.named_parameters())
    for name, p in params.items():
        p.requires_grad_(name in wrt)
    with torch.no_grad():
        for name, tensor in values.items():
            params[name].copy_(tensor)
    x, y = _map(torch.Tensor.clone, bench.batch)
    try:
        with _default_float64(), seeded(bench.seed, "invariance"):
            loss = bench.loss(net(x), y)
            if not (isinstance(loss, torch.Tensor) and loss.numel() == 1):
                given = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise DynamicsError(f"loss must give a scalar, the mean over the batch, got {given}")
            loss = loss.reshape(())
            if wrt and not values and not loss.requires_grad:
                raise DynamicsError("the loss does not depend on the net's tensors: compute it from net(x), undetached")
            used = wrt if loss.requires_grad else ()
            grads = torch.autograd.grad(loss, [params[k] for k in used], allow_unused=True) if used else ()
    except RuntimeError as error:
        if not any(word in str(error) for word in ("dtype", "scalar type", "Double", "double")):
            raise
        raise DynamicsError(
            f"net or loss do not run in float64 ({_line(error)}): let constants follow the inputs' dtype"
        ) from error
    if not values and not math.isfinite(loss.item()):
        raise DynamicsError(f"the loss is {loss.item()}: give weights and a batch at which it is finite")
    dense = {k: g.to_dense().double() for k, g in zip(used, grads, strict=True) if g is not None}
    return loss.item(), {k: dense.get(k) for k in wrt}


def _find(
    bench: _Bench,
    params: Mapping[str, torch.Tensor],
    name: str,
    bias: str | None,
    loss: float,
    grads: Mapping[str, torch.Tensor | None],
    tolerance: float,
) -> dict[str, Any]:
    """The measured fields of one tensor's row."""
    weight, grad = params[name].detach(), grads[name]
    rows = len(weight)
    nothing = {"per": "none", "block": 0, "mask": torch.zeros(rows, dtype=torch.bool), "covered": 0.0, "cosine": None}
    nothing.update(loss_change=None, gradient_change=None)
    if grad is None:
        return {"rows": rows, **nothing, "no_gradient": rows, "whole": None, "note": "unused"}
    draws = generator(bench.seed, f"invariance/{name}")

    def alone(at: Mapping[str, torch.Tensor]) -> Evaluate:
        def evaluate(w: torch.Tensor) -> tuple[float, torch.Tensor]:
            value, moved = _evaluate(bench, {**at, name: w.reshape(weight.shape)}, [name])
            return value, _rows(moved[name]) if moved[name] is not None else torch.zeros_like(w)

        return evaluate

    w, g = _rows(weight), _rows(grad)
    found = _finest(alone({}), w, g, loss, tolerance, draws)
    note = joint = ""
    if bias is not None and grads[bias] is not None:
        b = params[bias].detach()
        own = False
        if found:
            # where b is small, w looks as invariant as (w, b): a bias as large as its filter tells them apart
            other = {bias: w.norm(dim=1) * torch.randn(rows, generator=draws).to(w)}
            value, there = alone(other)(w)
            holds = _finest(alone(other), w, there, value, tolerance, draws)
            own = bool(holds and holds.reach >= NEARLY * found.reach)
        if not (own and found.reach >= NEARLY * int(_live(w, g, loss).sum())):

            def together(wb: torch.Tensor) -> tuple[float, torch.Tensor]:
                values = {name: wb[:, :-1].reshape(weight.shape), bias: wb[:, -1]}
                value, moved = _evaluate(bench, values, [name, bias])
                parts = (torch.zeros_like(p) if moved[k] is None else moved[k] for k, p in values.items())
                return value, torch.cat([_rows(p) for p in parts], dim=1)

            wb, gb = torch.cat([w, b.unsqueeze(1)], dim=1), torch.cat([g, grads[bias].unsqueeze(1)], dim=1)
            both = _finest(together, wb, gb, loss, tolerance, draws)
            reach = found.reach if found else 1
            if both and both.reach * (NEARLY if own else 1.0) >= reach:
                found, w, g, joint = both, wb, gb, WITH_BIAS
            elif found and not own:
                note = "at this bias"
    live = _live(w, g, loss)
    alive = int(live.sum())
    whole = _cosine(_rows(weight), _rows(grad)) if alive else None
    result = {"rows": rows, "no_gradient": rows - alive, "whole": whole, "note": note}
    if not alive:
        return {**result, **nothing, "note": "no gradient"}
    if not found:
        a = _factors(1, draws).to(w)
        value, moved = alone({})(w * a)
        if math.isfinite(value) and bool(moved.isfinite().all()):
            nothing["loss_change"] = _change(value, loss, w, g)
            nothing["gradient_change"] = float((a * moved - g).norm() / g.norm())
        return {**result, **nothing}
    size = "filter" if found.size == 1 else "tensor" if found.size == rows else f"block of {found.size}"
    return {
        **result,
        "per": size + joint,
        "block": found.size,
        "mask": found.mask.cpu(),
        "covered": found.reach / alive,
        "cosine": found.cosine,
        "loss_change": found.loss_change,
        "gradient_change": found.gradient_change,
    }


def _finest(
    evaluate: Evaluate, w: torch.Tensor, g: torch.Tensor, loss: float, tolerance: float, draws: torch.Generator
) -> _Block | None:
    """The finest blocks of rows of w [rows, n] that cover the most live rows and pass both tests; g is the gradient."""
    live = _live(w, g, loss)
    alive = int(live.sum())
    sizes = [s for s in range(1, len(w) + 1) if len(w) % s == 0]
    flat = {s: (_cosines(w, g, s) <= tolerance) & _any(live, s) for s in sizes}
    for s in sizes[1:]:
        dots = torch.linalg.vecdot(w, g).reshape(-1, s)
        flat[s] &= dots.sum(1).abs() <= CANCEL * dots.abs().sum(1)
    reach = {s: int((live & flat[s].repeat_interleave(s)).sum()) for s in sizes}
    sizes = [s for s in sizes if reach[s] and reach[s] >= LEAST * alive]
    best: _Block | None = None
    for s in sizes:
        if best is None or reach[s] > best.reach:
            block = _rescale(evaluate, w, g, loss, s, flat[s], live, tolerance, draws)
            if block and (best is None or block.reach > best.reach):
                best = block
    return best


def _rescale(
    evaluate: Evaluate,
    w: torch.Tensor,
    g: torch.Tensor,
    loss: float,
    size: int,
    blocks: torch.Tensor,
    live: torch.Tensor,
    tolerance: float,
    draws: torch.Generator,
) -> _Block | None:
    """Those of `blocks` (bool, [rows / size]) that may be multiplied by any factors at once, or None."""
    turned = torch.full((len(blocks),), math.inf).to(w)
    for attempt in range(ROUNDS):
        covered = live & blocks.repeat_interleave(size)
        if int(covered.sum()) < max(1.0, LEAST * int(live.sum())):
            return None
        a = torch.where(blocks, _factors(len(blocks), draws).to(w), 1.0)
        scale = a.repeat_interleave(size).unsqueeze(1)
        value, moved = evaluate(w * scale)
        if not (math.isfinite(value) and bool(moved.isfinite().all())):
            return None
        # eps weighs on a norm as 1/a². Blocks that fail here may have moved the gradients of the others, but never
        # their cosines, so these are asked first
        guilty = blocks & (_cosines(w * scale, moved, size) * a.square().clamp(max=1.0) > tolerance)
        if guilty.any():
            blocks = blocks & ~guilty
            continue
        # a ReLU or a max-pool that eps tips over moves gradients too, but not in every draw
        turned = torch.minimum(turned, _norms(moved * scale - g, size) / _norms(g, size))
        unproven = blocks & (turned > SAME)
        if not unproven.any():
            change = _change(value, loss, w[covered], g[covered])
            cosine = float(_cosines(w, g, size)[blocks].max())
            return _Block(size, covered, cosine, change, float(turned[blocks].max())) if change <= tolerance else None
        if attempt % 3 == 2:
            blocks = blocks & ~unproven
    return None


def _factors(n: int, draws: torch.Generator) -> torch.Tensor:
    """Log-uniform on [0.5, 2], but for the middle third, where a factor near 1 shows little."""
    exponent = torch.rand(n, generator=draws, dtype=torch.float64) * 2 / 3 + 1 / 3
    sign = torch.randint(2, (n,), generator=draws) * 2 - 1
    return torch.exp2(sign * exponent)


def _change(value: float, loss: float, w: torch.Tensor, g: torch.Tensor) -> float:
    # a loss near zero, as one of either sign may be, is no measure of what its gradient could do
    return abs(value - loss) / max(abs(loss), float(w.norm() * g.norm()), 1e-300)


def _live(w: torch.Tensor, g: torch.Tensor, loss: float) -> torch.Tensor:
    return w.norm(dim=1) * g.norm(dim=1) > DEAD * abs(loss)


def _cosine(w: torch.Tensor, g: torch.Tensor) -> float:
    return float((w * g).sum() / (w.norm() * g.norm()))


def _cosines(w: torch.Tensor, g: torch.Tensor, size: int) -> torch.Tensor:
    """|⟨w,g⟩|/(‖w‖‖g‖) of every block of `size` rows; nan where one of them is zero."""
    dots = torch.linalg.vecdot(w, g).reshape(-1, size).sum(1)
    return dots.abs() / (_norms(w, size) * _norms(g, size))


def _norms(w: torch.Tensor, size: int) -> torch.Tensor:
    return w.reshape(len(w) // size, -1).norm(dim=1)


def _any(mask: torch.Tensor, size: int) -> torch.Tensor:
    return mask.reshape(-1, size).any(1)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(len(tensor), -1)


def _own_bias(name: str, params: Mapping[str, torch.Tensor]) -> str | None:
    """The bias that is added to what this weight gives: x.weight and x.bias, in_proj_weight and in_proj_bias."""
    owner, dot, local = name.rpartition(".")
    bias = owner + dot + local.replace("weight", "bias")
    return bias if bias != name and bias in params and params[bias].shape == params[name].shape[:1] else None


def _map(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Apply to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {k: _map(function, v) for k, v in value.items()}
    return [_map(function, v) for v in value] if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _map(lambda t: found.append(t) or t, value)
    return found


@contextmanager
def _default_float64() -> Iterator[None]:
    """Constants that a forward pass makes must not be float32 among float64 weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
