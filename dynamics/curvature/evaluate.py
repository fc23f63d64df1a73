"""How the operators evaluate somebody else's net: without a trace of it, and with one line for what goes wrong."""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DynamicsError, unknown
from ..rng import keep, seeded

NO_SECOND = re.compile(r"derivative for '?([\w:]+)'? is not implemented|([\w:]+) does not support automatic diff")


class Graph(NamedTuple):
    """What is known of a batch: its loss, its gradient [n], and products [n] -> [n] by differentiating `roots`."""

    value: Tensor
    gradient: Tensor
    product: Callable[[Tensor], Tensor]
    roots: tuple[Tensor, ...]

    def nbytes(self) -> int:
        """Bytes of the tensors that the graph holds, each storage once."""
        sizes: dict[int, int] = {}
        for node in nodes(self.roots):
            names = [name for name in dir(node) if name.startswith("_saved_")]
            saved = [*(getattr(node, name) for name in names), *getattr(node, "saved_tensors", ())]
            for t in saved:
                if isinstance(t, Tensor):
                    sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return sum(sizes.values())


def nodes(roots: Iterable[Tensor]) -> Iterator[Any]:
    seen: set[Any] = set()
    stack = [t.grad_fn for t in roots if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [following for following, _ in node.next_functions if following is not None]


def gradients(
    of: Sequence[Tensor], over: Iterable[Tensor], along: Sequence[Tensor] | None = None, *, create_graph: bool = False
) -> list[Tensor]:
    """The sum over i of the derivatives of ⟨of_i, along_i⟩; zeros where there is none, and the graph is kept.

    Raises DynamicsError, which names it, for an operation without (second) derivative.
    """
    over = list(over)
    live = [i for i, t in enumerate(of) if t.requires_grad]
    if not live:
        return [torch.zeros_like(t, requires_grad=False) for t in over]
    some = [of[i] for i in live]
    try:
        found = torch.autograd.grad(
            some, over, None if along is None else [along[i] for i in live], retain_graph=True,
            create_graph=create_graph, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
    except RuntimeError as error:
        match = NO_SECOND.search(str(error))
        if match is None:
            raise
        raise _no_second(match[1] or match[2]) from error
    # differentiating once more would pass over this node in silence, and be wrong
    if create_graph and any(node.name() == "torch::autograd::Error" for node in nodes(found)):
        custom = {type(n) for n in nodes(some) if isinstance(n, torch.autograd.function.BackwardCFunction)}
        theirs = sorted(kind.__name__.removesuffix("Backward") for kind in custom if not kind.__name__.startswith("_"))
        raise _no_second(" or ".join(theirs) or "a custom function")
    return list(found)


def _no_second(name: str) -> DynamicsError:
    return DynamicsError(f"{name} has no second derivative: compose it of operations that have one")


@contextmanager
def undisturbed(net: nn.Module, bn: str, *, draw: int) -> Iterator[None]:
    """Evaluate with the norms in mode `bn` and the draw-th random numbers; modes and generators are left as found."""
    norms = [(m, m.training) for m in net.modules() if getattr(m, "running_var", None) is not None]
    restore = keep()
    device = next(net.parameters()).device.type
    try:
        for module, _ in norms:
            module.training = bn == "batch"
        random.seed(draw)
        np.random.seed(draw)
        with seeded(0, "curvature", draw), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        restore()
        for module, mode in norms:
            module.training = mode


@contextmanager
def watched(net: nn.Module, see: Callable[[Any], Any]) -> Iterator[list[tuple[str, str, Any]]]:
    """What `see` makes of each module's output, in the order in which they finish: (path, type, seen)."""
    seen: list[tuple[str, str, Any]] = []

    def hook(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.append((path, type(module).__name__, see(output)))

    handles = [module.register_forward_hook(hook(path)) for path, module in net.named_modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def fingerprint(output: Any) -> tuple[float, ...]:
    return tuple(float(t.detach().double().sum()) for t in _tensors_of(output))


def is_finite(output: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in _tensors_of(output))


def _tensors_of(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    return [t for part in output for t in _tensors_of(part)] if isinstance(output, Iterable | tuple | list) else []


def choose(
    named: Mapping[str, Tensor], chosen: str | Iterable[str] | Callable[[str, Tensor], bool] | None
) -> tuple[str, ...]:
    """The names of the chosen parameters, in the order of `named`."""
    if chosen is None:
        names = list(named)
    elif callable(chosen):
        names = [name for name, p in named.items() if chosen(name, p)]
    else:
        names = []
        for pattern in [chosen] if isinstance(chosen, str) else chosen:
            found = [n for n in named if n == pattern or n.startswith(f"{pattern}.") or fnmatch.fnmatchcase(n, pattern)]
            if not found:
                raise unknown("parameter", pattern, named)
            names += found
    if not names:
        raise DynamicsError("no parameters are chosen: give names, patterns such as 'layer1*', or None for all")
    return tuple(name for name in named if name in set(names))


def check_batches(
    batches: Sequence[tuple[Tensor, Any]], device: torch.device, dtypes: set[torch.dtype]
) -> list[tuple[Tensor, Any]]:
    """The batches as a list."""
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[0], Tensor):
        raise DynamicsError("batches must be a list of (x, y): write [(x, y)]")
    batches = list(batches)
    if not batches:
        raise DynamicsError("there are no batches: give a list of (x, y)")
    for i, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            raise DynamicsError(f"batch {i} is not a pair (x, y) with a tensor x: give a list of (x, y)")
        x, y = batch
        if not x.ndim or not len(x):
            raise DynamicsError(f"batch {i} has no images: leave it out")
        for t in (x, y):
            if isinstance(t, Tensor) and t.device != device:
                raise DynamicsError(f"batch {i} is on {t.device} and the parameters on {device}: move one to the other")
        if isinstance(y, Tensor) and y.ndim and len(y) != len(x):
            raise DynamicsError(f"batch {i} has {len(x)} images and {len(y)} targets: they must be as many")
        if x.is_floating_point() and x.dtype not in dtypes:
            (dtype, *_) = dtypes
            raise DynamicsError(f"batch {i} is {x.dtype} and the parameters {dtype}: convert one with .to(dtype)")
    return [(x.detach(), y) for x, y in batches]


def with_statistics(net: nn.Module, bn: str, statistics: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Copies of the net's buffers, with `statistics` in the place of those of the same names."""
    buffers = {name: b.detach().clone() for name, b in net.named_buffers()}
    if bn == "batch":
        if statistics is not None:
            raise DynamicsError("with bn='batch' batches have their own statistics: leave them out, or bn='frozen'")
        return buffers
    for name, value in (statistics or {}).items():
        if name not in buffers:
            raise unknown("buffer", name, buffers)
        if value.shape != buffers[name].shape:
            shapes = f"{list(buffers[name].shape)}, got {list(value.shape)}"
            raise DynamicsError(f"the statistics of {name!r} must be of shape {shapes}")
        buffers[name] = value.detach().to(buffers[name], copy=True)
    for path, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
            raise DynamicsError(f"{path!r} has no running statistics to freeze: use bn='batch'")
    return buffers
