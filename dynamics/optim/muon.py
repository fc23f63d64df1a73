"""Muon: momentum whose matrices are orthogonalised by a Newton-Schulz iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..errors import DynamicsError, unknown
from .base import Group, Schedule, Tensors, below_one, check_shared, lr_and_decay, partition
from .checks import whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic that is iterated on singular values."""
EPS = 1e-7
"""The least norm that a matrix is divided by: gradients of zero stay zero."""
SCALES: dict[str, Callable[[int, int], float]] = {
    "none": lambda rows, columns: 1.0,
    "aspect": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "rms": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
"""Factors on the lr of a matrix [rows, columns]."""


@dataclass(frozen=True)
class Muon:
    """Muon: w moves by -lr times the orthogonalised momentum, so that it turns at the same rate in all its directions.

    For a tensor w of two or more dimensions with gradient g, v ← momentum v + g, d = g + momentum v (v without
    `nesterov`), and w moves by -lr `orthogonalised`(d), d being taken as a matrix [out, the rest]: about lr in spectral
    norm, whatever the size of the gradient. All other tensors (biases, norms), and those whose names match a pattern of
    `sgd` (the classifier is usually left to it: sgd=("linear.*",)), move by SGD at the same lr, with `sgd_momentum`
    (None: the same) and `nesterov`; give them a Group of their own. weight_decay is decoupled, as in torch.optim.Muon:
    everything shrinks by 1 - lr weight_decay.

    scale: a factor on a matrix's lr by its shape: "none", as in the CIFAR-10 records; "aspect", sqrt(max(1, out /
    rest)), which torch calls "original"; "rms", 0.2 sqrt(max(out, rest)), which torch calls "match_rms_adamw".
    normalise: before each step rescale these tensors to the norm sqrt(out), as the CIFAR-10 records do (there with lr
    0.24, three ns_steps and SGD momentum 0.85); with batch norm this changes no function, but fixes the effective lr.
    bf16: iterate in bfloat16, as published, and not in float32 (float64 for float64 weights).

    State: `velocity`. Raises DynamicsError for hyperparameters out of range, and for a group or a pattern that matches
    nothing. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
    (kellerjordan.github.io/posts/muon), and airbench94_muon.py of KellerJordan/cifar10-airbench.
    """

    lr: float | Schedule = 0.02
    momentum: float = 0.6
    nesterov: bool = True
    weight_decay: float = 0.0
    ns_steps: int = 5
    scale: str = "none"
    normalise: bool = False
    bf16: bool = False
    sgd: tuple[str, ...] = ()
    sgd_momentum: float | None = None
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        check_shared(self)
        below_one("momentum", self.momentum)
        if self.sgd_momentum is not None:
            below_one("sgd_momentum", self.sgd_momentum)
        if self.nesterov and self.momentum == 0:
            raise DynamicsError("Nesterov needs momentum: set momentum (0.6, say) or nesterov=False")
        whole("ns_steps", self.ns_steps)
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)
        if not isinstance(self.sgd, tuple | list) or not all(isinstance(p, str) for p in self.sgd):
            raise DynamicsError(f'sgd must be a tuple of patterns of names, got {self.sgd!r}: write sgd=("linear.*",)')
        object.__setattr__(self, "sgd", tuple(self.sgd))

    def partition(self, names: tuple[str, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return partition(self.groups, names)

    def hyperparameters(self, epoch: float) -> dict[str, tuple[float, ...]]:
        """What is in force at this epoch; `momentum` is of the orthogonalised tensors, `sgd_momentum` of the others."""
        n = len(self.groups) + 1
        return {
            **lr_and_decay(self.lr, self.weight_decay, self.groups, epoch),
            "momentum": (float(self.momentum),) * n,
            "sgd_momentum": (self._momentum(False),) * n,
            "nesterov": (float(self.nesterov),) * n,
            "ns_steps": (float(self.ns_steps),) * n,
            "normalise": (float(self.normalise),) * n,
            "decoupled": (1.0,) * n,
        }

    def init(self, params: Tensors) -> dict[str, Any]:
        self.partition(tuple(params))
        for pattern in self.sgd:
            if not any(fnmatchcase(name, pattern) for name in params):
                raise DynamicsError(
                    f"no parameter matches {pattern!r} of sgd: patterns are of names such as {next(iter(params))!r}"
                )
        return {"velocity": {k: torch.zeros_like(p) for k, p in params.items()}}

    def update(
        self, grads: Tensors, opt: Mapping[str, Any], params: Tensors, epoch: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        in_force = self.hyperparameters(epoch)
        updates: dict[str, torch.Tensor] = {}
        velocity: dict[str, torch.Tensor] = {}
        groups = self.partition(tuple(params))
        for (_, names), lr, decay in zip(groups, in_force["lr"], in_force["weight_decay"], strict=True):
            for matrices in (True, False):
                members = [k for k in names if self._is_matrix(k, params[k]) == matrices]
                if not members:
                    continue
                weights, step = [params[k] for k in members], [grads[k] for k in members]
                momentum = self._momentum(matrices)
                moving = torch._foreach_add(step, [opt["velocity"][k] for k in members], alpha=momentum)
                velocity.update(zip(members, moving, strict=True))
                step = torch._foreach_add(step, moving, alpha=momentum) if self.nesterov else moving
                if matrices:
                    moves = [self._move(w, d, lr, decay) for w, d in zip(weights, step, strict=True)]
                else:
                    moves = torch._foreach_mul(step, -lr)
                    if decay:
                        torch._foreach_add_(moves, weights, alpha=-lr * decay)
                updates.update(zip(members, moves, strict=True))
        return {k: updates[k] for k in params}, {"velocity": {k: velocity[k] for k in params}}

    def _is_matrix(self, name: str, param: torch.Tensor) -> bool:
        return param.ndim >= 2 and not any(fnmatchcase(name, pattern) for pattern in self.sgd)

    def _momentum(self, matrices: bool) -> float:
        return float(self.momentum if matrices or self.sgd_momentum is None else self.sgd_momentum)

    def _move(self, w: torch.Tensor, direction: torch.Tensor, lr: float, decay: float) -> torch.Tensor:
        """The change of a tensor: an orthogonal step from where it is after rescaling and decay."""
        matrix = orthogonalised(direction.flatten(1), steps=self.ns_steps, bf16=self.bf16)
        move = torch.empty_like(w).copy_(matrix.reshape(w.shape)).mul_(-lr * SCALES[self.scale](*matrix.shape))
        if self.normalise:
            norm = torch.linalg.vector_norm(w)
            factor = torch.where(norm > 0, math.sqrt(len(w)) / norm, 1.0)
            return move.add_(w * (factor * (1 - lr * decay) - 1))
        return move.add_(w, alpha=-lr * decay) if decay else move


def orthogonalised(matrix: torch.Tensor, *, steps: int = 5, bf16: bool = False) -> torch.Tensor:
    """U p(S) Vᵀ of a matrix U S Vᵀ [rows, columns]: nearly its orthogonal polar factor U Vᵀ, by products alone.

    S is divided by its Euclidean norm and then mapped `steps` times by 3.4445 s - 4.7750 s³ + 2.0315 s⁵. This does not
    converge to 1: the slope at 0 was made steep, so that five steps bring singular values to between 0.68 and 1.20, all
    but those that began below about 0.0015 of that norm. Computed in float32 (in float64 for float64), or in bfloat16
    with bf16.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    # autocast, if the caller is inside it, would decide the precision of the products
    with torch.autocast(matrix.device.type, enabled=False):
        x = matrix.to(torch.bfloat16 if bf16 else torch.promote_types(matrix.dtype, torch.float32))
        x = x.T if tall else x
        x = x / x.norm().clamp(min=EPS)
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
