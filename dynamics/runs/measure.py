"""Call the probes that are due, hold them to reading only, and keep what they return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import DynamicsError
from ..probes import Probe
from ..training import Hyperparameters, Snapshot, flatten, tree_map
from .budget import Ledger
from .store import Series


class Schema(NamedTuple):
    """What a probe's readings look like, from its first one on: variables (dims, attributes, shape), coordinates."""

    variables: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any], tuple[int, ...]]]
    coords: Mapping[str, tuple[tuple[str, ...], list[Any]]]
    source: Mapping[str, Any]


@dataclass
class Log:
    """One probe's readings since the last chunk, on their device."""

    schema: Schema | None = None
    steps: list[int] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, step: int, reading: Any) -> None:
        """Keep copies of a reading's tensors: live views would all show the last step."""
        if self.schema is None:
            self.schema = _schema(name, reading)
        variables, coords, first = self.schema
        if not isinstance(reading, Mapping) or reading.keys() != first.keys():
            raise DynamicsError(
                f"the probe {name!r} returns other names at step {step} than at first: return all of them always"
            )
        for key in coords:
            again = reading[key]
            if again is not first[key] and again != first[key] and _normal(key, again)[1] != coords[key][1]:
                raise DynamicsError(f"the coordinate {key!r} of the probe {name!r} changes over time: make it a tensor")
        self.steps.append(step)
        for key in variables:
            value = reading[key]
            value = value[1] if isinstance(value, tuple) else value
            if np.shape(value) != variables[key][2]:
                raise DynamicsError(
                    f"{key!r} of the probe {name!r} changes its shape over time: return one shape always"
                )
            self.values.setdefault(key, []).append(value.detach().clone() if isinstance(value, torch.Tensor) else value)

    def series(self, name: str) -> Series:
        assert self.schema is not None
        variables = {}
        for key, (dims, attrs, _) in self.schema.variables.items():
            values = self.values[key]
            if isinstance(values[0], torch.Tensor):
                stacked = torch.stack(values).cpu()
                # numpy, and with it xarray, has no bf16
                stacked = stacked.float() if stacked.dtype == torch.bfloat16 else stacked
            else:
                stacked = torch.from_numpy(np.array(values, dtype=np.float64))
            variables[key] = (dims, stacked, attrs)
        return Series(list(self.steps), variables, self.schema.coords)


def _schema(name: str, reading: Any) -> Schema:
    """Check a probe's first reading; raises DynamicsError with the form that a reading has."""
    form = 'return {"layer": names, "norm": (("layer",), tensor, {"units": "1"})}, or {"loss": number}'
    if not isinstance(reading, Mapping):
        raise DynamicsError(f"the probe {name!r} returned a {type(reading).__name__}: {form}")
    variables, coords = {}, {}
    for key, value in reading.items():
        dims, values, attrs = _normal(key, value)
        if not isinstance(key, str) or key == "step" or "step" in dims:
            raise DynamicsError(f"the probe {name!r} cannot use the name {key!r} or the dimension 'step': rename them")
        if isinstance(values, list):
            coords[key] = (dims, values)
            continue
        if not isinstance(values, torch.Tensor | np.ndarray | np.generic | int | float):
            raise DynamicsError(f"{key!r} of the probe {name!r} is a {type(values).__name__}: {form}")
        shape = tuple(np.shape(values))
        if len(shape) != len(dims):
            raise DynamicsError(
                f"{key!r} of the probe {name!r} has shape {shape} but {len(dims)} dimension names: "
                f"return {{{key!r}: ((names of its dimensions), tensor, {{'units': ...}})}}"
            )
        variables[key] = (dims, {k: _plain(v) for k, v in attrs.items()}, shape)
    return Schema(variables, coords, reading)


def _normal(key: str, value: Any) -> tuple[tuple[str, ...], Any, Mapping[str, Any]]:
    """(dims, values, attrs) of one entry; a bare list is a coordinate of its own name, anything else bare a scalar."""
    if isinstance(value, tuple) and len(value) >= 2 and not isinstance(value[0], int | float):
        dims, values, *attrs = value
        dims = (dims,) if isinstance(dims, str) else tuple(dims)
    else:
        dims, values, attrs = ((key,) if isinstance(value, list | tuple) else ()), value, []
    if isinstance(values, list | tuple):
        values = [_plain(v) for v in values]
    return dims, values, attrs[0] if attrs else {}


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python's own, which JSON knows."""
    return value.item() if hasattr(value, "item") and value.ndim == 0 else value


@dataclass
class Logs:
    """Everything read since the last chunk: a Log for each group, and the hyperparameters in force at every step."""

    groups: dict[str, Log] = field(default_factory=dict)
    partition: tuple[tuple[str, tuple[str, ...]], ...] = ()
    steps: list[int] = field(default_factory=list)
    values: list[Mapping[str, tuple[float, ...]]] = field(default_factory=list)

    def add(self, name: str, step: int, reading: Any) -> None:
        self.groups.setdefault(name, Log()).add(name, step, reading)

    def add_hyperparameters(self, step: int, given: Hyperparameters) -> None:
        """Values that did not change since the step before are kept once."""
        self.partition = given.groups
        self.steps.append(step)
        self.values.append(self.values[-1] if self.values and self.values[-1] == given.values else given.values)

    def series(self) -> dict[str, Series]:
        """What was read, stacked along step and on the CPU: the one crossing of the device."""
        found = {name: log.series(name) for name, log in self.groups.items() if log.steps}
        if self.steps:
            members = {name: i for i, (_, names) in enumerate(self.partition) for name in names}
            coords = {
                "group": (("group",), [pattern for pattern, _ in self.partition]),
                "parameter": (("parameter",), list(members)),
                "group_of": (("parameter",), list(members.values())),
            }
            columns = {k: torch.tensor([v[k] for v in self.values], dtype=torch.float64) for k in self.values[0]}
            variables = {k: (("group",), column, {}) for k, column in columns.items()}
            found["hyperparameters"] = Series(list(self.steps), variables, coords)
        return dict(sorted(found.items()))

    def take(self) -> dict[str, Series]:
        """The series, leaving the logs empty."""
        found = self.series()
        self.groups = {name: Log(log.schema) for name, log in self.groups.items()}
        self.steps, self.values = [], []
        return found


class Guard:
    """Sees whether anything of a run was written to: torch counts the writes to a tensor (all but those through
    `.data`); buffers are compared bit by bit, since batch norm's own writes are not counted; modes are compared, and so
    are the gradients that lie in a watched loop's parameters."""

    def __init__(self, snap: Snapshot) -> None:
        self.modules, self.leaves = list(snap.net.modules()), list(snap.net.parameters())
        # a snapshot's params share their counters of writes with these, or are copies of them
        self.fixed = [*self.leaves, *snap.net.buffers()]
        self.bits: dict[torch.device, list[torch.Tensor]] = {}
        for buffer in snap.net.buffers():
            self.bits.setdefault(buffer.device, []).append(_bytes(buffer))

    def watched(self, snap: Snapshot) -> list[torch.Tensor]:
        """The tensors of a snapshot that nothing may write to."""
        opt = flatten(snap.state.opt or {}).values()
        live = (snap.params, snap.buffers, snap.grads or {}, snap.updates or {})
        return [*self.fixed, *opt, *(tensor for tensors in live for tensor in tensors.values())]

    def state(self, watched: list[torch.Tensor]) -> Written:
        """What changes when something was written."""
        grads = [p.grad for p in self.leaves]
        counted = [*watched, *(g for g in grads if g is not None)]
        bits = [torch.cat(b) for b in self.bits.values()]
        return Written([t._version for t in counted], [m.training for m in self.modules], grads, bits)


class Written(NamedTuple):
    """What changes when something of a run is written to."""

    versions: list[int]
    modes: list[bool]
    grads: list[torch.Tensor | None]
    bits: list[torch.Tensor]

    def same(self, other: Written) -> bool:
        return (
            self.versions == other.versions
            and self.modes == other.modes
            and all(a is b for a, b in zip(self.grads, other.grads, strict=True))
            and all(map(torch.equal, self.bits, other.bits))
        )


def _bytes(buffer: torch.Tensor) -> torch.Tensor:
    """A buffer's memory as bytes: a view, so that it shows what is written later."""
    if buffer.is_contiguous():
        return buffer.detach().view(-1).view(torch.uint8)
    # such as one that was expanded: no view of it is flat, but its storage is
    return torch.empty(0, dtype=torch.uint8, device=buffer.device).set_(buffer.untyped_storage())


def measure(
    due: Iterable[tuple[str, Probe]],
    snap: Snapshot,
    guard: Guard,
    carries: dict[str, Any],
    logs: Logs,
    ledger: Ledger,
) -> dict[str, Any]:
    """Take the readings that are due into the logs; returns what the probes remember from now on.

    Raises DynamicsError, with its name, for a probe that fails or wrote to the run.
    """
    with ledger.elsewhere():
        watched = guard.watched(snap)
        before = guard.state(watched)
    for name, probe in due:
        begun = perf_counter()
        try:
            if probe.remembers:
                reading, carry = probe.measure(snap, carries.get(name))
                carries = {k: v for k, v in carries.items() if k != name}
                if carry is not None:
                    carries[name] = _copied(name, carry)
            else:
                reading = probe.measure(snap)
        except DynamicsError:
            raise
        except Exception as error:  # whatever somebody's probe raises
            reason = (str(error) or "no message").splitlines()[0]
            raise DynamicsError(
                f"the probe {name!r} failed at step {snap.step} ({type(error).__name__}: {reason}): mend it, or leave "
                "it out"
            ) from error
        if not before.same(guard.state(watched)):
            raise DynamicsError(
                f"the probe {name!r} changed weights, buffers, gradients or the net's mode while measuring: let it "
                "work on clones (torch.func.functional_call with cloned buffers)"
            )
        logs.add(name, snap.step, reading)
        ledger.charge(name, perf_counter() - begun)
    return carries


def _copied(name: str, carry: Any) -> Any:
    if any(not isinstance(t, torch.Tensor) for t in flatten({"carry": carry}).values()):
        raise DynamicsError(f"what the probe {name!r} remembers must be (dicts of) tensors, or None")
    return tree_map(lambda t: t.detach().clone(), carry)
