"""Probes of curvature: the leading eigenpairs of the loss's Hessian along a run, and its sharpness.

The Hessian is of the mean loss over a probe's own fixed batches, not augmented and without autocast, at the snapshot's
weights; with bn="batch" each batch has its own statistics, as in training (see `Hessian`).
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..curvature import Eigenpairs, Hessian, top_eigenpairs
from ..curvature.operators import MODES
from ..data import Batch, Split
from ..errors import DynamicsError, unknown
from ..training import Snapshot
from .activations import LARGEST_BATCH
from .base import Reading, reads

ENDS = ("largest", "smallest", "magnitude")

Loss = Callable[[Any, Tensor], Tensor]
Chosen = str | Iterable[str] | Callable[[str, Tensor], bool] | None
Measurement = Callable[[Snapshot, Any], tuple[Reading, Any]]


def spectrum(
    k: int,
    batches: Sequence[Batch | tuple[Tensor, Tensor]] | Split,
    *,
    loss: Loss | None = None,
    bn: str = "batch",
    which: str = "largest",
    tol: float | None = None,
    max_products: int | None = None,
    params: Chosen = None,
    dtype: torch.dtype | None = None,
) -> Measurement:
    """A measurement of the k leading eigenpairs of the Hessian on fixed batches, and of which of them stay the same.

    It reads `eigenvalue` [pair], in descending order of what `which` wants; `residual` ‖Hv−λv‖ and `converged` [pair];
    `products`, the Hessian-vector products spent; and `overlap` [pair, previous], the squared cosines with the
    eigenvectors of this probe's reading before (nan at the first). A row's sum is the share of an eigenvector that
    lies in the leading subspace of before; where eigenvalues cross or nearly agree, single entries mix and sums do not.

    batches: a list of (x, y), list(dynamics.batches(split, 256)); a Split is one batch of all its images. loss: of
    (outputs, targets), a mean over its batch; by default cross-entropy with the recipe's label smoothing (without any
    in a watched loop, which does not tell). bn, params: as in `Hessian`; which, tol, max_products: as in
    `top_eigenpairs`. dtype: torch.float64 measures float32 weights in float64. Each reading starts from the vectors of
    the one before, which are kept in checkpoints too: k times the size of the weights. every(100, spectrum(10, ...))
    is a probe; it takes tens of products, each of about three gradients on these batches.
    Raises DynamicsError for arguments that do not fit, and as `Hessian` and `top_eigenpairs`.
    """
    if not isinstance(k, int) or k < 1:
        raise DynamicsError(f"k must be a whole number of eigenpairs of at least 1, got {k!r}")
    if which not in ENDS:
        raise unknown("which", which, ENDS)
    fixed = _Fixed.of(batches, loss, bn, params, dtype)
    pairs = list(range(1, k + 1))

    @reads("params", "buffers")
    def measure(snap: Snapshot, carry: Any) -> tuple[Reading, Any]:
        op = fixed.hessian(snap)
        before = _kept(carry, op)
        found = _eigenpairs(op, k, which=which, tol=tol, max_products=max_products, start=before)
        vectors, missing = found.vectors, k - len(found.values)
        overlap = vectors.new_full((k, k), torch.nan)
        if before is not None:
            same = (vectors.T @ before[:, :k]).square()
            overlap[: same.shape[0], : same.shape[1]] = same
        about = {"units": "1", **fixed.about(snap), "which": which}
        reading = {
            "pair": pairs,
            "previous": pairs,
            "eigenvalue": (("pair",), _padded(found.values, missing), {**about, "long_name": "eigenvalue"}),
            "residual": (("pair",), _padded(found.residuals, missing), {"units": "1", "long_name": "‖Hv − λv‖"}),
            "converged": (("pair",), F.pad(found.converged, (0, missing)), {"long_name": "residual within tol"}),
            "products": ((), found.products, {"units": "1", "long_name": "Hessian-vector products"}),
            "overlap": (
                ("pair", "previous"),
                overlap,
                {"units": "1", "long_name": "squared cosine with the eigenvectors of the reading before"},
            ),
        }
        # contiguous, as a checkpoint gives it back: strides decide rounding
        return reading, {"vectors": vectors.contiguous()}

    return measure


def sharpness(
    batches: Sequence[Batch | tuple[Tensor, Tensor]] | Split,
    *,
    loss: Loss | None = None,
    bn: str = "batch",
    tol: float | None = None,
    max_products: int | None = None,
    params: Chosen = None,
    dtype: torch.dtype | None = None,
) -> Measurement:
    """A measurement of the Hessian's largest eigenvalue on fixed batches, with its error over batches.

    It reads `sharpness` λ1, `residual` ‖Hv−λ1v‖, `products`, `batch_curvature` vᵀH_b v [batch] of each batch's own
    Hessian along the one eigenvector v, and `standard_error`, that of their mean weighted by sizes, which is λ1 (nan
    for one batch). The mean over batches of λ1(H_b) is no estimate: each picks its own vector, and λ1 is convex,
    so it lies above (claim B18). `edge_of_stability` compares λ1 with the stability bound of the run's optimizer.
    Arguments, warm starts and errors are those of `spectrum`; one vector is kept.
    """
    fixed = _Fixed.of(batches, loss, bn, params, dtype)
    weights = torch.tensor([float(len(x)) for x, _ in fixed.batches], dtype=torch.float64)
    weights /= weights.sum()

    @reads("params", "buffers")
    def measure(snap: Snapshot, carry: Any) -> tuple[Reading, Any]:
        net = fixed.net(snap)
        op = fixed.hessian(snap, net)
        found = _eigenpairs(op, 1, tol=tol, max_products=max_products, start=_kept(carry, op))
        v = found.vectors[:, 0].contiguous()
        each = [fixed.hessian(snap, net, [b]).matvec(v) for b in fixed.batches]
        curvatures = torch.stack([torch.dot(v.double(), product.double()) for product in each]).cpu()
        about = {"units": "1", **fixed.about(snap)}
        reading = {
            "batch": list(range(len(fixed.batches))),
            "sharpness": ((), found.values[0], {**about, "long_name": "largest eigenvalue of the Hessian"}),
            "standard_error": ((), _standard_error(curvatures, weights), {"units": "1", "long_name": "over batches"}),
            "batch_curvature": (("batch",), curvatures, {"units": "1", "long_name": "vᵀH_b v of each batch"}),
            "residual": ((), found.residuals[0], {"units": "1", "long_name": "‖Hv − λv‖"}),
            "products": ((), found.products + 1, {"units": "1", "long_name": "Hessian-vector products"}),
        }
        return reading, {"vectors": v[:, None]}

    return measure


class _Fixed(NamedTuple):
    """What a probe of curvature measures on, and how."""

    batches: list[tuple[Tensor, Tensor]]
    loss: Loss | None
    bn: str
    params: Chosen
    dtype: torch.dtype | None

    @classmethod
    def of(cls, batches: Any, loss: Any, bn: str, params: Any, dtype: Any) -> _Fixed:
        if bn not in MODES:
            raise unknown("bn mode", bn, MODES)
        if loss is not None and not callable(loss):
            raise DynamicsError(f"loss is a function of (outputs, targets), got {loss!r}")
        if dtype is not None and dtype not in (torch.float32, torch.float64):
            raise DynamicsError(f"dtype is torch.float32 or torch.float64, got {dtype!r}")
        listed = None if params is None else params if callable(params) or isinstance(params, str) else tuple(params)
        return cls(_listed(batches), loss, bn, listed, dtype)

    def net(self, snap: Snapshot) -> nn.Module:
        """A private copy of the net at the snapshot's weights, which in a watched loop are not the net's own."""
        net = copy.deepcopy(snap.net)
        with torch.no_grad():
            for mine, given in ((net.named_parameters(), snap.params), (net.named_buffers(), snap.buffers)):
                for name, tensor in mine:
                    tensor.copy_(given[name])
        return net if self.dtype is None else net.to(self.dtype)

    def hessian(self, snap: Snapshot, net: nn.Module | None = None, batches: Any = None) -> Hessian:
        net = self.net(snap) if net is None else net
        like = next(net.parameters())
        for x, _ in batches or self.batches:
            if x.device != like.device:
                raise DynamicsError(
                    f"the probe's batches are on {x.device} and the weights on {like.device}: make them of "
                    f"split.to({str(like.device)!r})"
                )
        cast = [(x.to(like.dtype) if x.is_floating_point() else x, y) for x, y in batches or self.batches]
        return Hessian(net, self.loss or _recipes(snap), cast, bn=self.bn, params=self.params)

    def about(self, snap: Snapshot) -> dict[str, Any]:
        """Which matrix it is, to stand beside the numbers."""
        smoothing = _smoothing(snap)
        plain = f"cross-entropy, label smoothing {smoothing:g}" if smoothing else "cross-entropy"
        return {
            "bn": self.bn,
            "loss": plain if self.loss is None else getattr(self.loss, "__name__", type(self.loss).__name__),
            "batches": len(self.batches),
            "images": sum(len(x) for x, _ in self.batches),
        }


def _eigenpairs(op: Hessian, k: int, **given: Any) -> Eigenpairs:
    """`top_eigenpairs`, which says what has not converged to the caller of the run, once and not at every reading."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = top_eigenpairs(op, k, **given, progress=False)
    if told:
        frame, level = sys._getframe(), 1
        while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("dynamics", "torch"):
            frame, level = frame.f_back, level + 1
        message = "a probe of curvature did not converge at some steps, see its residuals: raise max_products or tol"
        warnings.warn(message, stacklevel=level)
    return found


def _smoothing(snap: Snapshot) -> float:
    return snap.recipe.label_smoothing if snap.recipe else 0.0


def _recipes(snap: Snapshot) -> Loss:
    return partial(F.cross_entropy, label_smoothing=_smoothing(snap))


def _listed(batches: Any) -> list[tuple[Tensor, Tensor]]:
    """The batches as copies, which stay as they are whatever the caller does with theirs."""
    if isinstance(batches, Split):
        if len(batches) > LARGEST_BATCH:
            raise DynamicsError(
                f"{len(batches)} images are too many for one batch: pass split[:512], or list(batches(split, 512))"
            )
        batches = [(batches.padded().permute(0, 3, 1, 2), batches.labels)]
    elif isinstance(batches, Batch):
        batches = [batches]
    found = []
    for batch in batches if isinstance(batches, Iterable) and not isinstance(batches, str | Tensor) else ():
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise DynamicsError("a batch of a probe of curvature is (x, y), two tensors: list(batches(split, 256))")
        found.append(tuple(t.detach().clone() for t in batch))
    if not found:
        raise DynamicsError("no batches to measure curvature on: pass a Split, or list(batches(split, 256))")
    return found


def _kept(carry: Any, op: Hessian) -> Tensor | None:
    """The vectors of the reading before, unless they are of another operator, as in a fork."""
    if carry is None or len(carry["vectors"]) != op.shape[0]:
        return None
    return carry["vectors"].to(op.device, op.dtype).contiguous()


def _padded(values: Tensor, missing: int) -> Tensor:
    return torch.cat([values.double(), values.new_full((missing,), torch.nan, dtype=torch.float64)])


def _standard_error(values: Tensor, weights: Tensor) -> float:
    """Of the weighted mean of values [B] that are independent of their weights; sd/√B where these are equal."""
    n = len(values)
    if n < 2:
        return float("nan")
    return float(((weights * (values - weights @ values)).square().sum() * n / (n - 1)).sqrt())
