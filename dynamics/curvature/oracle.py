"""PyHessian as an independent oracle: running-statistics batch norm and one batch, which is all that it can see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DynamicsError
from ..rng import seeded
from .trace import Trace

Loss = Callable[[Any, Tensor], Tensor]


def pyhessian_eigenvalues(
    net: nn.Module,
    loss: Loss,
    batch: tuple[Tensor, Tensor],
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_products: int = 100,
    seed: int = 0,
) -> Tensor:
    """PyHessian's k eigenvalues of largest magnitude, float64 [k], in the order in which it found them.

    Power iteration with deflation, at most `max_products` for each, stopped when two consecutive estimates differ by
    less than `tol` of themselves: no residual bounds their error. Of the net in eval mode, so with running statistics.
    The net's modes, gradients, buffers and the global random state are left as found.
    Raises DynamicsError where PyHessian is missing, or cannot do it.
    """
    if not isinstance(k, int) or k < 1:
        raise DynamicsError(f"k must be a whole number from 1 on, got {k!r}")
    with _oracle(net, loss, batch, seed) as oracle:
        values, vectors = oracle.eigenvalues(maxIter=max_products, tol=tol, top_n=k)
        del vectors
    return torch.tensor(values, dtype=torch.float64)


def pyhessian_trace(
    net: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], *, products: int = 100, seed: int = 0
) -> Trace:
    """PyHessian's Hutchinson trace with the standard error of its probes; otherwise as `pyhessian_eigenvalues`."""
    if not isinstance(products, int) or products < 2:
        raise DynamicsError(f"the trace needs at least 2 products, got {products!r}")
    with _oracle(net, loss, batch, seed) as oracle:
        # its stopping rule divides by the signed mean, so a negative trace would end it at the second probe
        samples = torch.tensor(oracle.trace(maxIter=products, tol=-float("inf")), dtype=torch.float64)
    return Trace(float(samples.mean()), float(samples.std() / len(samples) ** 0.5), samples, len(samples))


@contextmanager
def _oracle(net: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], seed: int) -> Iterator[Any]:
    """A pyhessian.hessian of the net, which it leaves in eval mode, with graphs in .grad and in the default dtype."""
    try:
        from pyhessian import hessian
    except ImportError:
        raise DynamicsError("PyHessian is not installed: pip install pyhessian") from None
    params = [p for p in net.parameters() if p.requires_grad]
    if not params:
        raise DynamicsError("the net has no parameter that requires a gradient")
    if len({(p.dtype, p.device) for p in params}) > 1:
        raise DynamicsError("PyHessian needs all parameters in one dtype on one device: net.to(...) first")
    modes = {module: module.training for module in net.modules()}
    grads = [p.grad for p in net.parameters()]
    buffers = [(b, b.clone()) for b in net.buffers()]
    dtype = torch.get_default_dtype()
    oracle = None
    try:
        for p in net.parameters():
            p.grad = None  # it reads .grad, so what is there would be added to the gradient
        torch.set_default_dtype(params[0].dtype)  # it draws its vectors in the default one
        with seeded(seed, "pyhessian"), torch.enable_grad():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using backward")  # of the cycle, which is broken below
                oracle = hessian(net, loss, data=tuple(batch), cuda=params[0].device.type == "cuda")
            unused = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
            if unused:
                raise DynamicsError(f"PyHessian cannot leave out {unused[0]}, which the loss does not use: freeze it")
            yield oracle
    finally:
        torch.set_default_dtype(dtype)
        if oracle is not None:
            oracle.gradsH = oracle.params = None
        for p, grad in zip(net.parameters(), grads, strict=True):
            p.grad = grad  # and with it goes the cycle of a parameter and its gradient's graph
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
