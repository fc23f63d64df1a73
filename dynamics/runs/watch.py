"""The same probes on a training loop that is not ours, through its optimizer's own step hooks."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..data import Batch
from ..errors import DynamicsError, unknown
from ..nets import norm_of
from ..optim import torch_hyperparameters, torch_state
from ..probes import Probe, standard
from ..rng import keep
from ..training import Hyperparameters, Snapshot, State, tree_map
from .budget import Ledger
from .measure import Guard, Logs, measure
from .record import check_probes, environment
from .run import Run, assemble, concatenate, dataset
from .store import Chunk, Series, create, write_chunk

if TYPE_CHECKING:
    import xarray as xr

CHUNK_STEPS = 1000
OTHERS = "others"
"""The group of parameters that the watched optimizer does not have; nothing is known of their hyperparameters."""


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    probes: Mapping[str, Probe] | None = None,
    out: str | Path | None = None,
    chunk_steps: int = CHUNK_STEPS,
    budget: float | None = None,
) -> Recorder:
    """Record any torch training loop: rec["norms"] is a Dataset at any time, and nothing else in the loop changes.

    probes: as for `train`, by default `standard(10)`; a step is one `optimizer.step()` that was carried out. Gradients
    are those that the optimizer got: accumulated, clipped, and without a GradScaler's scale. With a closure they are
    those of its first call. Running statistics are those after the step's forward pass. A probe that reads the batch or
    the loss gets what the loop tells by `rec.batch(x, y, loss)` before the step. The watched loop ends bit-identical to
    the unwatched one. out: a new run folder, written every `chunk_steps` steps and by `detach`, which `load_run` reads.
    budget: as for `train`.

    Raises DynamicsError for a model without parameters, an optimizer of other tensors than the model's, one that is
    watched already, and, in the loop, for a probe that fails or writes to the model.
    """
    if probes is not None and not isinstance(probes, Mapping):
        raise DynamicsError("probes are given by name: probes={'norms': every(10, weight_norms)}")
    return Recorder(model, optimizer, standard(10) if probes is None else dict(probes), out, chunk_steps, budget)


class Recorder:
    """What `watch` returns: readings so far by name, until `detach`; as a context manager it detaches at the end."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        probes: Mapping[str, Probe],
        out: str | Path | None,
        chunk_steps: int,
        budget: float | None,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # torch.compile wraps what it compiles, and prefixes every name
        if not isinstance(model, nn.Module):
            raise DynamicsError(f"watch takes a torch.nn.Module and its optimizer, got {type(model).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise DynamicsError(
                f"watch takes a torch.optim.Optimizer, got {type(optimizer).__name__}: a recipe is recorded by train"
            )
        if not isinstance(chunk_steps, int) or chunk_steps < 1:
            raise DynamicsError(f"chunk_steps must be a whole number of at least 1, got {chunk_steps!r}")
        check_probes(probes)
        self.model, self.optimizer = model, optimizer
        self.partition, self._groups = _partition(model, optimizer), len(optimizer.param_groups)
        if any(getattr(hook, "__self__", None).__class__ is Recorder for hook in _hooks(optimizer)):
            raise DynamicsError(
                "this optimizer is watched already: detach() that recorder first, or give it all probes"
            )
        self.steps, self.skipped = 0, 0
        self.ledger = Ledger(budget, probes)
        self._params = dict(model.named_parameters())
        self._norms = norm_of(model)
        self._logs, self._carries, self._past = Logs(), {}, []
        self._chunk_steps, self._folder = chunk_steps, None if out is None else Path(out)
        self._told: tuple[Batch | None, torch.Tensor | None] = (None, None)
        self._before: Snapshot | None = None
        self._due: list[tuple[str, Probe]] = []
        self._within: FrameType | None = None
        self._warned: set[str] = set()
        # the names in force now: one that comes or goes later does not change what a reading looks like
        self._given = dict.fromkeys((*torch_hyperparameters(optimizer), "lr"))
        self._manifest = {
            "recipe": None,
            "model": type(model).__name__,
            "optimizer": type(optimizer).__name__,
            "probes": {k: p.to_json() for k, p in probes.items()},
            "data": {"train": None, "valid": None},
            "chunk_steps": chunk_steps,
            "budget": budget,
            "environment": environment(None, next(iter(self._params.values())).device),
        }
        self._first = self._state()
        if self._folder is not None:
            create(self._folder, self._manifest, [Chunk(self._first)])
        wanting = [k for k, p in probes.items() if _declared(p) & {"batch", "loss"}]
        if wanting:
            warnings.warn(
                f"the probe {wanting[0]!r} reads the batch or the loss: call rec.batch(x, y, loss) before each step",
                stacklevel=3,
            )
        self._handles = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
            register_optimizer_step_post_hook(_told_of_others(self)),
        ]
        weakref.finalize(self, self._handles[-1].remove)

    def batch(self, x: Any, y: Any = None, loss: torch.Tensor | float | None = None) -> None:
        """Tell the batch and the loss of the step that comes, for probes that read them; run["train"] keeps the loss.

        Told more than once before a step, as in accumulation, the last one counts. Raises DynamicsError for a loss that
        is not one number.
        """
        number = _number(loss)
        if loss is not None and number is None:
            what = f"shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise DynamicsError(f"the loss of a step is one number, got {what}: pass loss.mean()")
        self._told = (Batch(x, y), number)

    def detach(self) -> None:
        """Take the hooks off; the readings stay, and with `out` the last of them are written."""
        if self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self._close("finished")

    @property
    def readings(self) -> dict[str, xr.Dataset]:
        """Every group read so far, as Datasets along step."""
        return {name: dataset(series) for name, series in self._so_far().items()}

    def __getitem__(self, name: str) -> xr.Dataset:
        found = self._so_far()
        if name in found:
            return dataset(found[name])
        if name in self.ledger.probes:
            raise DynamicsError(f"the probe {name!r} has not been due yet, after {self.steps} steps")
        raise unknown("reading", name, found)

    def __contains__(self, name: str) -> bool:
        return name in self._so_far()

    def run(self) -> Run:
        """All of it so far as a Run, to save, to plot, or for `predict`."""
        last = Chunk(self._state(), self._so_far(), "running" if self._handles else "finished")
        manifest = {"format": 0, **self._manifest, "chunk_steps": max(self.steps, 1)}
        return assemble(manifest, [Chunk(self._first), last], None)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        how = "watching" if self._handles else "detached from"
        skipped = f" ({self.skipped} skipped)" if self.skipped else ""
        what = f"{type(self.model).__name__} under {type(self.optimizer).__name__}"
        return f"<Recorder {how} {what}: {self.steps} steps{skipped}>"

    def _pre(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a step: what is due, and what it will need of the weights as they are now."""
        if self._stepping():
            return None
        self._within, self._before = sys._getframe(1), None
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._look()
            return None
        later = self._first_call(closure)  # there are no gradients yet
        return ((args[0], later, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": later})

    def _first_call(self, closure: Any) -> Any:
        """The closure, looking at what its first call in a step leaves: gradients at the weights it starts from."""
        seen = False

        def evaluated() -> Any:
            nonlocal seen
            loss = closure()
            if not seen:
                seen = True
                if self._told[1] is None:
                    self._told = (self._told[0], _number(loss))
                self._look()
            return loss

        return evaluated

    def _stepping(self) -> bool:
        """Whether a step of the watched optimizer is under way: one may call its parent's, or another optimizer's."""
        frame = sys._getframe(1) if self._within else None
        while frame is not None and frame is not self._within:
            frame = frame.f_back
        return frame is not None  # a step that raised left its frame here, but is on no stack

    def _look(self) -> None:
        self.ledger.recording()
        with self.ledger.elsewhere():
            self._keep()
        self.ledger.stepping()

    def _keep(self) -> None:
        """Keep θ_t, its gradients and what is in force, if a probe is due; nothing if the step is skipped."""
        optimizer, step = self.optimizer, self.steps
        if _overflowed(optimizer):
            return
        if len(optimizer.param_groups) != self._groups:
            self._warn("groups", f"the optimizer got new groups by step {step}: watch it again to record their lr")
        found, n = torch_hyperparameters(optimizer), len(self.partition)
        values = {k: (*found.get(k, ())[: self._groups], *[math.nan] * n)[:n] for k in self._given}
        given = Hyperparameters(self.partition, values)
        self._logs.add_hyperparameters(step, given)
        batch, loss = self._told
        if loss is not None:
            self._logs.add("train", step, {"loss": ((), loss, {"units": "nat"})})
        due = [(k, p) for k, p in self.ledger.probes.items() if p.due(step)]
        for name, probe in list(due):
            lacking = {"batch": batch, "loss": loss}
            if any(k in _declared(probe) and v is None for k, v in lacking.items()):
                self._warn(name, f"the probe {name!r} has no batch or loss at step {step}: call rec.batch(x, y, loss)")
                due.remove((name, probe))
        self._due = [(name, probe) for name, probe in due if self.ledger.due(name)]
        if not self._due:
            return
        # a fused optimizer gets scaled gradients, and unscales them itself
        scale = getattr(optimizer, "grad_scale", None)
        with torch.inference_mode(False), torch.no_grad():
            params = {k: p.detach().clone() for k, p in self._params.items()}
            grads = {k: _gradient(p, scale) for k, p in self._params.items()}
            buffers = {k: b.detach().clone() for k, b in self.model.named_buffers()}
            opt = None
            if any("opt" in probe.reads for _, probe in self._due):
                opt = tree_map(torch.clone, torch_state(optimizer, self._params.items()))
        state = State(step, params, buffers, opt)
        self._before = Snapshot(state, self.model, self._norms, None, math.nan, batch, loss, grads, None, given)

    def _post(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After a step: the updates, and with them the readings."""
        if self._within is None or (sys._getframe(1) is not self._within and self._stepping()):
            return  # of a step within the step
        self._within = None
        self.ledger.recording()
        with self.ledger.elsewhere():
            self._told = (None, None)
            if _overflowed(optimizer):
                self.skipped += 1
                snap = None
            else:
                self.steps += 1
                snap = self._before
                self._before = None
        if snap is not None:
            self._measure(snap)
        if self.steps % self._chunk_steps == 0 and self._logs.steps:
            with self.ledger.elsewhere():
                self._close("running")
        self.ledger.stepping()

    def _measure(self, before: Snapshot) -> None:
        device = next(iter(before.params.values())).device
        bare = torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False)
        with _random_state_kept(self.ledger), bare[0], bare[1], bare[2]:
            with self.ledger.elsewhere():
                after = [self._params[k].detach() for k in before.params]
                moved = torch._foreach_sub(after, list(before.params.values()))
                snap = replace(before, updates=dict(zip(before.params, moved, strict=True)))
                guard = Guard(snap)
            self._carries = measure(self._due, snap, guard, self._carries, self._logs, self.ledger)

    def _other(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After any optimizer's step: whether another one has taken over weights that this recorder follows."""
        if optimizer is self.optimizer or "replaced" in self._warned or self._stepping():
            return
        names = {id(self._params[k]): k for _, members in self.partition[: self._groups] for k in members}
        taken = next((names[id(p)] for g in optimizer.param_groups for p in g["params"] if id(p) in names), None)
        if taken is not None:
            self._warn(
                "replaced",
                f"another optimizer ({type(optimizer).__name__}) now updates {taken!r}: what was read up to step "
                f"{self.steps} is kept; watch(model, optimizer) the new one to go on",
            )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            frame, level = sys._getframe(), 1
            while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("dynamics", "torch"):
                frame, level = frame.f_back, level + 1
            warnings.warn(message, stacklevel=level)  # at the line of the loop that took the step

    def _state(self) -> State:
        copies = [
            {k: t.detach().cpu().clone() for k, t in tensors}
            for tensors in (self._params.items(), self.model.named_buffers())
        ]
        return State(self.steps, *copies)

    def _so_far(self) -> dict[str, Series]:
        totals = Logs()
        self._settle(totals)
        return concatenate([*self._past, {**self._logs.series(), **totals.series()}])

    def _settle(self, logs: Logs) -> None:
        """The ledger's totals, into these logs, if a step was taken since they were kept last."""
        if self.ledger.budget is not None and self._logs.steps:
            logs.add("ledger", self.steps, self.ledger.reading())

    def _close(self, status: str) -> None:
        """Bring what was read to the CPU, and into the folder if there is one."""
        self._settle(self._logs)
        self._past.append(self._logs.take())
        if self._folder is not None:
            write_chunk(self._folder, Chunk(self._state(), self._past[-1], status))


def _partition(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The optimizer's groups by the model's names, and last the parameters that it does not have."""
    names = {id(p): name for name, p in model.named_parameters()}
    if not names:
        raise DynamicsError(f"{type(model).__name__} has no parameters: watch a model that is trained")
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise DynamicsError(
            f"{type(model).__name__} has lazy parameters without a shape: run one batch through it first"
        )
    groups = [(f"group {i}", group["params"]) for i, group in enumerate(optimizer.param_groups)]
    strange = [(where, i, p) for where, params in groups for i, p in enumerate(params) if id(p) not in names]
    if strange:
        where, i, p = strange[0]
        raise DynamicsError(
            f"the optimizer is of another model: {len(strange)} of its tensors are not {type(model).__name__}'s "
            f"(first: {where}, number {i}, shape {list(p.shape)}): pass the module whose parameters() it was made with"
        )
    found = tuple((where, tuple(names[id(p)] for p in params)) for where, params in groups)
    known = {name for _, members in found for name in members}
    others = tuple(name for name in names.values() if name not in known)
    return (*found, (OTHERS, others)) if others else found


def _hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    return list(getattr(optimizer, "_optimizer_step_pre_hooks", {}).values())


def _told_of_others(recorder: Recorder) -> Any:
    """A hook of every optimizer's steps, which must not keep a recorder alive that nobody else holds."""
    held = weakref.ref(recorder)

    def hook(*given: Any) -> None:
        alive = held()
        if alive is not None:
            alive._other(*given)

    return hook


@contextmanager
def _random_state_kept(ledger: Ledger) -> Iterator[None]:
    """Whatever a probe draws, the loop draws as without it: torch's generators, numpy's and Python's."""
    with ledger.elsewhere():
        restore = keep()
    try:
        yield
    finally:
        with ledger.elsewhere():
            restore()


def _number(loss: Any) -> torch.Tensor | None:
    """A loss as a 0-d tensor, or None for what is not one number."""
    if isinstance(loss, torch.Tensor):
        return loss.detach().reshape(()) if loss.numel() == 1 else None
    return torch.tensor(float(loss)) if isinstance(loss, int | float | np.number) else None


def _declared(probe: Probe) -> frozenset[str]:
    """The parts that a probe's @reads names; without @reads nothing is known, and it is called with what there is."""
    return getattr(probe.measure, "reads", frozenset())


def _overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer to leave this step out; the others it does not call at all."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _gradient(param: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """A copy of the gradient that the optimizer gets; zeros where it gets none, as for a frozen parameter."""
    if param.grad is None:
        return torch.zeros_like(param)
    grad = param.grad.detach()
    if grad.is_sparse:
        grad = grad.to_dense()
    return grad.clone() if scale is None else grad / scale
