"""The Hessian and the Gauss-Newton matrix of a net's loss, known by their products with vectors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import DynamicsError, unknown
from .evaluate import (
    Graph,
    check_batches,
    choose,
    fingerprint,
    gradients,
    is_finite,
    undisturbed,
    watched,
    with_statistics,
)  # fmt: skip
from .layers import Layers
from .memory import Decisions, Memory

MODES = ("batch", "frozen")
DRAWS = 8
"""How many draws of random numbers the loss of a net that takes any is compared between."""


class Hessian:
    """The symmetric matrix [n, n] of second derivatives of the mean loss over `batches`, by its products.

    The loss is sum_b (n_b / N) loss(net(x_b), y_b), where loss is a mean over its batch, n_b = len(x_b) and N is their
    sum. Rows and columns are the chosen parameters in `net.parameters()` order, each flattened in its logical
    (contiguous) order whatever its memory format; other parameters are constants, so that a subset's matrix is that
    diagonal block of the whole. It is the Hessian at the weights and buffers of the moment of this call, of which it
    keeps a copy.

    bn: what norms with running statistics do. "batch" is training mode: each norm uses the mean and biased variance of
    its inputs in the batch (ghost norm: of each of its parts), which depend on the parameters and are differentiated
    through; a batch is never split. "frozen" is eval mode: running statistics, or those of `statistics` ({buffer name:
    tensor}), are constants. Other modules are in the mode in which they are found. params: names of parameters or
    modules, patterns such as "layer1*", or a predicate of (name, tensor). memory: bytes that may be spent on what is
    kept of batches between products; a batch whose graph does not fit is evaluated anew for each call of matvec or
    matmat (about half as much again). None keeps everything.

    Where activations have corners (ReLU, max-pool) it is the Hessian of the piece in which the weights are; for float32
    nets the piece is decided in float64 (`exact_pieces`), since a near tie that falls the other way is a change of one
    part in a thousand. Products are in the parameters' dtype, by differentiating the gradient's graph: no finite
    differences. Of the net nothing changes: parameters, buffers, gradients, modes, global random states.

    Raises DynamicsError for an empty or unknown choice of parameters; batches of another device or dtype; a loss that
    is not one number, not finite, or differs between two evaluations; an operation without second derivative.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        batches: Sequence[tuple[Tensor, Any]],
        *,
        bn: str = "batch",
        params: str | Iterable[str] | Callable[[str, Tensor], bool] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
        memory: int | None = 4 << 30,
        exact_pieces: bool = True,
    ) -> None:
        if bn not in MODES:
            raise unknown("bn mode", bn, MODES)
        named = dict(net.named_parameters())
        if any(nn.parameter.is_lazy(p) for p in named.values()):
            raise DynamicsError("the net has parameters without a shape: run a batch through it first")
        self.names = choose(named, params)
        self.net, self.bn = net, bn
        self._loss, self._limit = loss, sys.maxsize if memory is None else memory
        kinds = {(named[name].dtype, named[name].device) for name in self.names}
        if len(kinds) > 1:
            raise DynamicsError("the parameters are of several dtypes or devices: net.to(...) one, or choose some")
        ((self.dtype, self.device),) = kinds
        if self.dtype not in (torch.float32, torch.float64):
            raise DynamicsError(f"the parameters are {self.dtype}: curvature needs net.float() or net.double()")
        self.batches = check_batches(batches, self.device, {p.dtype for p in named.values()})
        self._images = sum(len(x) for x, _ in self.batches)
        self._weights = {name: p.detach().clone() for name, p in named.items()}
        self._leaves = {name: self._weights[name].requires_grad_() for name in self.names}
        self._buffers = with_statistics(net, bn, statistics)
        self._exact = exact_pieces and self.dtype == torch.float32
        self._memory = self._new_memory()
        self._pieces: dict[int, Decisions] = {}
        self._graphs: dict[int, Graph] = {}
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept_bytes, self._piece_bytes = 0, 0.0
        n = sum(p.numel() for p in self._leaves.values())
        self.shape = (n, n)

    def _new_memory(self) -> Memory:
        return Memory()

    def matvec(self, v: Tensor) -> Tensor:
        """The product [n] with v [n]."""
        if v.shape != self.shape[:1]:
            raise DynamicsError(f"vectors of this operator are [{self.shape[0]}], got {list(v.shape)}")
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, v: Tensor) -> Tensor:
        """The products [n, k] with the columns of v [n, k]; where batches are evaluated anew, once for all columns."""
        if v.ndim != 2 or len(v) != self.shape[0]:
            raise DynamicsError(f"matrices of vectors of this operator are [{self.shape[0]}, k], got {list(v.shape)}")
        v = v.detach().to(self.device, self.dtype)
        if not torch.isfinite(v).all():
            raise DynamicsError("the vector has entries that are not finite: a product with it means nothing")
        out = torch.zeros(v.shape[1], self.shape[0], dtype=self.dtype, device=self.device)
        for i, (x, _) in enumerate(self.batches):
            with self._graph(i) as graph:
                for row, column in zip(out, v.T, strict=True):
                    row.add_(graph.product(column), alpha=len(x) / self._images)
                del graph  # or it would outlive the building of the next
            if not torch.isfinite(out).all():
                with undisturbed(self.net, self.bn, draw=0):
                    raise self._not_finite("the product", i, out.sum(0))
        return out.T

    def loss(self) -> float:
        """The mean loss over the batches."""
        return sum(float(self._evaluated(i)[0]) * len(x) for i, (x, _) in enumerate(self.batches)) / self._images

    def gradient(self) -> Tensor:
        """The gradient [n] of the mean loss over the batches."""
        return sum(self._evaluated(i)[1] * (len(x) / self._images) for i, (x, _) in enumerate(self.batches))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector [n] as views of the parameters' shapes, by name."""
        if flat.shape != self.shape[:1]:
            raise DynamicsError(f"vectors of this operator are [{self.shape[0]}], got {list(flat.shape)}")
        parts = flat.split([p.numel() for p in self._leaves.values()])
        return {name: part.view(p.shape) for part, (name, p) in zip(parts, self._leaves.items(), strict=True)}

    def flatten(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The vector [n] of a tensor for each parameter: what `split` undoes."""
        for name, p in self._leaves.items():
            if name not in parts or parts[name].shape != p.shape:
                raise DynamicsError(f"flatten needs a tensor of shape {list(p.shape)} for {name!r}")
        return torch.cat([parts[name].reshape(-1) for name in self._leaves])

    def to_scipy(self) -> Any:
        """A scipy.sparse.linalg.LinearOperator of the same matrix, whose vectors are numpy arrays."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def times(v: Any) -> Any:
            v = torch.from_numpy(np.ascontiguousarray(v)).to(self.device, self.dtype)
            return (self.matvec(v.flatten()) if v.ndim == 1 or v.shape[1] == 1 else self.matmat(v)).cpu().numpy()

        def one(v: Any) -> Any:
            return times(v.reshape(-1))

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        return LinearOperator(self.shape, matvec=one, rmatvec=one, matmat=times, rmatmat=times, dtype=dtype)

    def __repr__(self) -> str:
        size = f"{self.shape[0]} × {self.shape[0]}, {str(self.dtype).removeprefix('torch.')}"
        return f"{type(self).__name__}({size}, bn={self.bn!r}, {len(self.batches)} batches, {self._images} images)"

    # what is evaluated of a batch

    @contextmanager
    def _graph(self, i: int) -> Iterator[Graph]:
        """The graph of batch i: kept, or built, and then kept if there is memory beside the pieces of all batches."""
        graph = self._graphs.get(i) or self._build(i)
        if i not in self._graphs:
            size, pieces = graph.nbytes(), self._pieces.get(i)
            reserve = self._piece_bytes * sum(len(x) for j, (x, _) in enumerate(self.batches) if j not in self._pieces)
            if self._kept_bytes + size + reserve <= self._limit:
                self._graphs[i] = graph
                self._kept_bytes += size - (self._pieces.pop(i).nbytes() if pieces else 0)
        yield graph

    def _build(self, i: int) -> Graph:
        x, y = self.batches[i]
        with undisturbed(self.net, self.bn, draw=0):
            decisions = self._decisions(i)
        with undisturbed(self.net, self.bn, draw=0):  # anew: a net that draws is to draw the same
            graph = self._differentiate(x, y, decisions)
        value, gradient = graph.value.detach(), graph.gradient
        if not torch.isfinite(value) or not torch.isfinite(gradient).all():
            what = "the gradient" if torch.isfinite(value) else "the loss"
            with undisturbed(self.net, self.bn, draw=0), torch.no_grad():
                raise self._not_finite(what, i, gradient)
        if not self._seen:
            self._check_repeats(x, y, value)
        self._seen[i] = value, gradient
        return graph

    def _differentiate(self, x: Tensor, y: Any, decisions: Decisions | None) -> Graph:
        value = self._value(self._outputs(x, decisions), y)
        if not value.requires_grad:
            self._check_depends(x, y)
            return Graph(value, torch.zeros_like(self._flat()), lambda v: torch.zeros_like(v), ())
        grads = gradients([value], self._leaves.values(), create_graph=True)

        def product(v: Tensor) -> Tensor:
            return self._flat(gradients(grads, self._leaves.values(), self._tensors(v)))

        return Graph(value, self._flat(grads).detach(), product, tuple(grads))

    def _outputs(self, x: Tensor, decisions: Decisions | None = None) -> Any:
        state = {**self._weights, **{name: b.clone() for name, b in self._buffers.items()}}
        # the fused kernels of attention have no second derivative
        with Layers(self._memory, decisions), sdpa_kernel(SDPBackend.MATH):
            return functional_call(self.net, state, (x,))

    def _value(self, outputs: Any, y: Any) -> Tensor:
        value = self._loss(outputs, y)
        if not isinstance(value, Tensor) or value.ndim:
            what = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise DynamicsError(f"the loss is {what}: return a tensor of no dimensions, the mean over its batch")
        return value

    def _decisions(self, i: int) -> Decisions | None:
        """Those of a float64 pass, kept where memory allows."""
        if not self._exact or i in self._pieces:
            return self._pieces[i].replay() if self._exact else None
        decisions, (x, _) = Decisions(), self.batches[i]
        with torch.no_grad(), Layers(Memory(), decisions), sdpa_kernel(SDPBackend.MATH):
            state = {k: _double(t.detach()) for k, t in {**self._weights, **self._buffers}.items()}
            functional_call(self.net, state, (_double(x),))
        size = decisions.nbytes()
        self._piece_bytes = size / len(x)
        if self._kept_bytes + size <= self._limit:
            self._pieces[i] = decisions
            self._kept_bytes += size
        return decisions.replay()

    def _evaluated(self, i: int) -> tuple[Tensor, Tensor]:
        if i not in self._seen:
            with self._graph(i):
                pass
        return self._seen[i]

    def _flat(self, tensors: Iterable[Tensor] | None = None) -> Tensor:
        return torch.cat([t.reshape(-1) for t in (self._leaves.values() if tensors is None else tensors)])

    def _tensors(self, flat: Tensor) -> list[Tensor]:
        """A vector in the parameters' memory formats, which spares convolutions the reordering."""
        pairs = zip(self._leaves.values(), self.split(flat).values(), strict=True)
        return [torch.empty_like(p, requires_grad=False).copy_(part) for p, part in pairs]

    # what may be wrong with it

    def _check_depends(self, x: Tensor, y: Any) -> None:
        """Parameters may be unused by the loss, but not all those of the net."""
        every = [w for w in self._weights.values() if w.is_floating_point() and not w.requires_grad]
        try:
            for w in every:
                w.requires_grad_()
            if not self._value(self._outputs(x), y).requires_grad:
                raise DynamicsError("the loss depends on no parameter: do not detach the outputs, nor use no_grad")
        finally:
            for w in every:
                w.requires_grad_(False)

    def _check_repeats(self, x: Tensor, y: Any, value: Tensor) -> None:
        draw = self._differing_draw(x, y, value)
        if draw is None:
            return
        runs = []
        for each in (0, draw):
            with undisturbed(self.net, self.bn, draw=each), torch.no_grad(), watched(self.net, fingerprint) as seen:
                self._outputs(x)
            runs.append(seen)
        for (path, kind, a), (other, _, b) in zip(*runs, strict=False):
            if path == other and a == b:
                continue
            named = path
            if path != other:  # a module that was called in one of the two only: it is its parent that draws
                named = max(path, other, key=lambda p: p.count(".")).rpartition(".")[0]
                kind = type(self.net.get_submodule(named)).__name__
            where = f"net.get_submodule({named!r}).eval()" if named else "net.eval()"
            mend = f"put it in eval mode, {where}, or take it out of the net"
            raise DynamicsError(f"the loss differs between two evaluations, first after {named!r} ({kind}): {mend}")
        raise DynamicsError("the loss differs between two evaluations of equal outputs: give a loss that draws nothing")

    def _differing_draw(self, x: Tensor, y: Any, value: Tensor) -> int | None:
        """A draw of random numbers with which the loss is another, if there is one."""
        for draw in range(1, DRAWS + 1):
            with undisturbed(self.net, self.bn, draw=draw), torch.no_grad():
                begin = _drawn(x.device)
                again = self._value(self._outputs(x), y)
                drew = not torch.equal(begin, _drawn(x.device))
            if abs(again - value) > 1e3 * torch.finfo(self.dtype).eps * abs(value):
                return draw
            if not drew:  # by torch: others are told apart by the first two
                return None
        return None

    def _not_finite(self, what: str, i: int, flat: Tensor) -> DynamicsError:
        x, _ = self.batches[i]
        head = f"{what} of batch {i} is not finite"
        if x.is_floating_point() and not torch.isfinite(x).all():
            return DynamicsError(f"{head}: its images have entries that are not; take them out")
        for name, w in self._weights.items():
            if not torch.isfinite(w).all():
                return DynamicsError(f"{head}: {name!r} has entries that are not; take earlier weights")
        with torch.no_grad(), watched(self.net, is_finite) as seen:
            self._outputs(x)
        for path, kind, finite in seen:
            if not finite:
                return DynamicsError(
                    f"{head}: {path!r} ({kind}) is the first layer whose output is not; see its weights"
                )
        if what == "the loss":
            return DynamicsError(f"{head}, though all outputs are: look for a logarithm of 0 in it")
        rows = next((name for name, part in self.split(flat).items() if not torch.isfinite(part).all()), None)
        return DynamicsError(f"{head} in the rows of {rows!r}, though the loss is: look for roots of 0")


class GaussNewton(Hessian):
    """The generalised Gauss-Newton matrix [n, n]: sum_b (n_b / N) J_b' H_b J_b, by its products.

    J_b is the Jacobian of net(x_b), one tensor, over the chosen parameters, through the batch's statistics if bn is
    "batch"; H_b the Hessian of loss(outputs, y_b) over the outputs. It is the Hessian of the loss of the net
    linearised at the weights, positive semidefinite where the loss is convex in the outputs. Arguments, order, manners
    and errors are as of `Hessian`. Source: Schraudolph 2002, section 3.
    """

    def _new_memory(self) -> Memory:
        return Memory(linear=True)

    def _differentiate(self, x: Tensor, y: Any, decisions: Decisions | None) -> Graph:
        outputs = self._outputs(x, decisions)
        if not isinstance(outputs, Tensor):
            raise DynamicsError(f"GaussNewton needs a net of one output tensor, got a {type(outputs).__name__}")
        at = outputs.detach().requires_grad_()
        value = self._value(at, y)
        if not value.requires_grad or not outputs.requires_grad:
            self._check_depends(x, y)
            return Graph(value, torch.zeros_like(self._flat()), lambda v: torch.zeros_like(v), ())
        leaves = self._leaves.values()
        slope = gradients([value], [at], create_graph=True)
        # J'w is linear in w, so its derivative in w along v is J v
        w = torch.zeros_like(at, requires_grad=True)
        back = gradients([outputs], leaves, [w], create_graph=True)
        gradient = self._flat(gradients([outputs], leaves, [slope[0].detach()]))

        def product(v: Tensor) -> Tensor:
            forward = gradients(back, [w], self._tensors(v))
            bent = gradients(slope, [at], forward)
            return self._flat(gradients([outputs], leaves, bent))

        return Graph(value, gradient, product, (outputs, *back, *slope))


def _drawn(device: torch.device) -> Tensor:
    """Where torch's random generators are, for a net on this device."""
    states = [torch.get_rng_state()]
    return torch.cat([*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states)


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t.clone()
