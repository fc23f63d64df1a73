"""Any torch.optim optimizer as a value, and what a torch optimizer holds as plain numbers and tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..errors import DynamicsError, unknown
from .base import Group, Schedule, Tensors, check_shared, lr_at, partition

REFUSED = {
    "LBFGS": "it evaluates the loss again within a step: use torch.optim.LBFGS in a loop of your own",
    "SparseAdam": "it takes sparse gradients alone: use Adam",
}
KNOWN: dict[str, type[torch.optim.Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
_DECOUPLED = tuple(KNOWN[name] for name in ("AdamW", "Adafactor", "Muon") if name in KNOWN)
# of a parameter group: how the arithmetic is carried out, and the bounds that schedulers leave there
_NOT_IN_FORCE = {
    "params", "foreach", "fused", "capturable", "differentiable",
    "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum",
}  # fmt: skip


@dataclass(frozen=True, init=False)
class TorchOptimizer:
    """An optimizer of torch.optim by its name, as a pure function: TorchOptimizer("RAdam", lr=1e-3, betas=(0.9, 0.99)).

    lr: a number or a schedule in epochs; by default torch's own for this optimizer. arguments: what else it takes,
    as pairs in the order of their names. A group's weight_decay_factor multiplies the optimizer's weight_decay.
    State: torch's, {entry: {parameter: tensor}}, and `count`, the number of updates made; until the first one torch has
    no state, and the zeros that `init` returns only hold its place. Copies of parameters, gradients and state are made
    in every update, so that nothing given is written to. Rprop reads lr in its first update only, and ASGD's lr lags
    by one update, as torch has them.

    Raises DynamicsError for an unknown name or argument, for what torch refuses (Muon: parameters that are not
    matrices), and for LBFGS and SparseAdam, which do not fit: one needs the loss, the other sparse gradients.
    """

    name: str
    lr: float | Schedule
    arguments: tuple[tuple[str, Any], ...]
    groups: tuple[Group, ...]

    def __init__(
        self,
        name: str,
        *,
        lr: float | Schedule | None = None,
        groups: tuple[Group, ...] = (),
        arguments: Iterable[tuple[str, Any]] | Mapping[str, Any] = (),
        **given: Any,
    ) -> None:
        if name in REFUSED:
            raise DynamicsError(f"torch.optim.{name} does not fit: {REFUSED[name]}")
        if name not in KNOWN:
            fits = [k for k in KNOWN if k not in REFUSED]
            raise unknown("torch optimizer", name, [k for k in fits if k.lower() == str(name).lower()] or fits)
        takes = {k: v for k, v in _signature(name).items() if k not in ("params", "lr")}
        try:
            merged = {**dict(arguments), **given}
        except (TypeError, ValueError):
            raise DynamicsError(f"arguments must be pairs of a name and a value, got {arguments!r}") from None
        for key, value in merged.items():
            if key not in takes:
                raise unknown(f"argument of torch.optim.{name}", key, takes)
            if not _plain(value):
                raise DynamicsError(f"torch.optim.{name}'s {key} must be numbers, strings or tuples, got {value!r}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "lr", _signature(name)["lr"] if lr is None else lr)
        object.__setattr__(self, "arguments", tuple(sorted((k, _hashable(v)) for k, v in merged.items())))
        object.__setattr__(self, "groups", groups)
        check_shared(self)
        if "weight_decay" not in takes and any(g.weight_decay_factor != 1 for g in self.groups):
            raise DynamicsError(f"torch.optim.{name} has no weight_decay: leave weight_decay_factor at 1")
        _in_force(self.name, self.arguments, self.groups)  # torch checks the values

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        """As `torch_hyperparameters` of the optimizer at this epoch."""
        lr = lr_at(self.lr, epoch)
        return {**_in_force(self.name, self.arguments, self.groups), "lr": _lrs(self.groups, lr)}

    def init(self, params: Tensors) -> dict[str, Any]:
        # what a step leaves behind has the structure of the state; its values are not a beginning (counters, averages)
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        empty = {"count": torch.zeros((), dtype=torch.float32)}
        state = self.update(zeros, empty, params, 0.0)[1]
        return empty | {
            entry: {k: torch.zeros_like(t) for k, t in tensors.items()}
            for entry, tensors in state.items()
            if entry != "count"
        }

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        lr = lr_at(self.lr, epoch)
        leaves = {k: torch.nn.Parameter(p.detach().clone()) for k, p in params.items()}
        for name, leaf in leaves.items():
            # a copy, for torch's foreach SGD with Nesterov writes to it; fused kernels assume the weights' layout
            leaf.grad = torch.empty_like(leaf).copy_(grads[name])
        split = [[leaves[k] for k in names] for _, names in self.partition(tuple(params))]
        try:
            optimizer = _build(self.name, self.arguments, self.groups, split, lr)
            if opt["count"]:
                # not load_state_dict, which casts scalars to the parameters' precision
                for name, leaf in leaves.items():
                    optimizer.state[leaf] = {k: v[name].clone() for k, v in opt.items() if k != "count" and name in v}
            optimizer.step()
        except _REFUSALS as error:
            raise _refused(self.name, error) from None
        updates = torch._foreach_sub([leaf.detach() for leaf in leaves.values()], [*params.values()])
        return dict(zip(params, updates, strict=True)), {
            "count": opt["count"] + 1,
            **torch_state(optimizer, leaves.items()),
        }


def torch_hyperparameters(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, ...]]:
    """What is in force in a torch optimizer: name -> one number a parameter group.

    Numbers and flags are floats, a tuple is spread (betas: beta1, beta2), and what a group lacks is nan. decoupled is 1
    where weight decay shrinks the weights apart from the gradient, 0 where it is added to the gradient, and absent
    where that is not known (an optimizer that is not torch's). Flags that choose the implementation alone (foreach,
    fused) are left out.
    """
    coupled = None
    if isinstance(optimizer, _DECOUPLED):
        coupled = 1.0
    elif isinstance(optimizer, tuple(KNOWN.values())):
        coupled = 0.0
    found = [_numbers(group, coupled) for group in optimizer.param_groups]
    names = dict.fromkeys(name for values in found for name in values)
    return {name: tuple(values.get(name, math.nan) for values in found) for name in names}


def torch_state(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    """A torch optimizer's state as {entry: {parameter: tensor}}, of the parameters named, as by named_parameters().

    Tensors are the optimizer's own, to be read and not written; its numbers become 0-d tensors. What is neither (LBFGS
    keeps lists), and parameters that have no state yet, are left out.
    """
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, param in named:
        for entry, value in optimizer.state.get(param, {}).items():  # [] would make an entry
            if isinstance(value, int | float):
                value = torch.tensor(float(value), dtype=torch.float64)
            if isinstance(value, torch.Tensor):
                state.setdefault(entry, {})[name] = value
    return state


def _numbers(group: Mapping[str, Any], decoupled: float | None) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in group.items():
        if key in _NOT_IN_FORCE:
            continue
        if isinstance(value, tuple | list):
            stem = key if key == "eps" else key.removesuffix("s")
            values.update({f"{stem}{i}": float(v) for i, v in enumerate(value, 1) if _is_number(v)})
        elif _is_number(value):
            values[key] = float(value)
    flag = values.pop("decoupled_weight_decay", None)
    if "weight_decay" in values and (flag is not None or decoupled is not None):
        values["decoupled"] = max(flag or 0.0, decoupled or 0.0)
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _lrs(groups: tuple[Group, ...], lr: float) -> tuple[float, ...]:
    return (*(lr * g.lr_factor for g in groups), lr)


@lru_cache(maxsize=64)
def _signature(name: str) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(KNOWN[name]).parameters.items()}


@lru_cache(maxsize=64)
def _in_force(
    name: str, arguments: tuple[tuple[str, Any], ...], groups: tuple[Group, ...]
) -> dict[str, tuple[float, ...]]:
    """The hyperparameters at lr 1; raises DynamicsError for values that torch refuses."""
    matrices = [[torch.nn.Parameter(torch.zeros(1, 1))] for _ in range(len(groups) + 1)]
    try:
        return torch_hyperparameters(_build(name, arguments, groups, matrices, 1.0))
    except _REFUSALS as error:
        raise _refused(name, error) from None


def _build(
    name: str,
    arguments: tuple[tuple[str, Any], ...],
    groups: tuple[Group, ...],
    params: list[list[torch.nn.Parameter]],
    lr: float,
) -> torch.optim.Optimizer:
    """The torch optimizer of parameters listed by group, the default group last."""
    given = dict(arguments)
    decay = given.get("weight_decay", _signature(name).get("weight_decay"))
    listed = [
        {"params": p, "lr": rate} | ({} if decay is None else {"weight_decay": decay * factor})
        for p, rate, factor in zip(
            params, _lrs(groups, lr), (*(g.weight_decay_factor for g in groups), 1.0), strict=True
        )
        if p
    ]  # fmt: skip
    return KNOWN[name](listed, lr=lr, **given)


def _refused(name: str, error: Exception) -> DynamicsError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DynamicsError(f"torch.optim.{name} refuses its arguments or the parameters ({reason}): change them")


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def _hashable(value: Any) -> Any:
    # JSON knows lists only
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
