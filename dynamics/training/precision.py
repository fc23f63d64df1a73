"""How a recipe's arithmetic is carried out: precision, the loss scale that float16 needs, and compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import torch

from ..data import Batch
from ..errors import DynamicsError

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, LARGEST_SCALE = 2.0**15, 2.0**24
GROW_AFTER = 2000

Tensors = Mapping[str, torch.Tensor]


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: bf16 where the hardware multiplies it natively, float32 elsewhere.

    Raises DynamicsError for fp16 without a GPU.
    """
    if precision == "fp16" and not has_fp16(device):
        raise DynamicsError("fp16 needs a GPU: use bf16 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # without avx512_bf16 or AMX the CPU emulates bf16 and is slower than in float32
    native = any(getattr(torch.cpu, f"_is_{k}_supported", bool)() for k in ("avx512_bf16", "amx_tile"))
    return "bf16" if native else "float32"


def has_fp16(device: torch.device) -> bool:
    """Whether float16 is of use on a device: CPUs only emulate it."""
    return device.type != "cpu"


def autocast(precision: str, device: torch.device) -> Any:
    return torch.autocast(device.type, dtype=LOW.get(precision, torch.bfloat16), enabled=precision in LOW)


# Small gradients are zero in float16, so the loss is scaled up before its gradients are taken, and a step whose
# gradients overflow is left out: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2. The rule that finds the scale
# by itself is that of NVIDIA's guide to mixed precision and of torch.amp.GradScaler.


def begin_scale(given: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """A copy of a State's loss scale, or the first one: {"scale", "good_steps"}, two numbers on the CPU."""
    given = given or {"scale": torch.tensor(FIRST_SCALE), "good_steps": torch.tensor(0)}
    return {"scale": given["scale"].float().cpu().clone(), "good_steps": given["good_steps"].long().cpu().clone()}


def next_scale(loss_scale: Tensors, finite: bool) -> dict[str, torch.Tensor]:
    """Half the scale, from 1 up, after gradients that were not finite; twice, up to 2**24, after 2,000 that were."""
    scale, good = loss_scale["scale"], loss_scale["good_steps"] + 1
    if not finite:
        return {"scale": (scale / 2).clamp_min(1.0), "good_steps": torch.zeros_like(good)}
    if good < GROW_AFTER:
        return {"scale": scale, "good_steps": good}
    # a start may have a larger scale than we would grow to
    return {"scale": torch.maximum(scale, (2 * scale).clamp_max(LARGEST_SCALE)), "good_steps": torch.zeros_like(good)}


def unscale(grads: Tensors, loss_scale: Tensors) -> tuple[dict[str, torch.Tensor], bool]:
    """The gradients of the loss itself, and whether all are finite.

    This is where float16 waits for the device at every step; the other precisions never do.
    """
    plain = torch._foreach_mul(list(grads.values()), 1 / float(loss_scale["scale"]))
    largest = torch.stack(torch._foreach_norm(plain, torch.inf))
    return dict(zip(grads, plain, strict=True)), bool(largest.isfinite().all())


def compiled(loss_of: Callable[[Batch], torch.Tensor], device: torch.device) -> Callable[[Batch], torch.Tensor]:
    """The same function under torch.compile, which changes rounding and time alone; the first call compiles it.

    Random numbers are drawn as without it. Raises DynamicsError where there is no compiler, and in a call where torch
    cannot compile the net.
    """
    _check_compiler(device)
    from torch._dynamo.exc import TorchDynamoException

    # torch keeps eight versions of a code object and runs the ninth uncompiled, so that each training has its own
    own = FunctionType(
        loss_of.__code__.replace(), loss_of.__globals__, loss_of.__name__, loss_of.__defaults__, loss_of.__closure__
    )
    fast = torch.compile(own, dynamic=False, options={"fallback_random": True})

    def run(batch: Batch) -> torch.Tensor:
        try:
            return fast(batch)
        except TorchDynamoException as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DynamicsError(f"torch cannot compile this net ({reason}): train it with compile=False") from error

    return run


def _check_compiler(device: torch.device) -> None:
    """Raise DynamicsError where torch.compile has nothing to compile with, which it would tell in the first step."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError:
            raise DynamicsError(
                "compile=True needs a C++ compiler, and none was found: install g++ or clang++ or name one in the "
                "environment variable CXX, or train with compile=False"
            ) from None
    elif find_spec("triton") is None:
        raise DynamicsError("compile=True needs triton on this device: pip install triton, or train with compile=False")
