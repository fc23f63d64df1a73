"""Layers as curvature wants them: accurate in float32 in any layout, cheap to differentiate twice, without effects.

While the mode `Layers` is active, convolutions, batch norms, max-pools, ReLUs and softpluses are computed by the
functions of this file, whichever modules call them; running statistics are read and never written.

A product with the Hessian is the derivative of the gradient's graph along a vector, so each layer is two functions:
the layer, whose backward is the second, and that one's backward by hand. Torch's own formulas are right, but they
make the gradient of a convolution's weight gradient a convolution with a kernel of the image's size, take some
twenty passes over memory for a batch norm, and in channels_last float32 sum its statistics naively. On a CPU a
pass that writes to fresh memory may cost ten that write to used memory, which is why `Memory` hands out its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from ..errors import DynamicsError
from .memory import Decisions, Memory

Tensor = torch.Tensor


class Layers(TorchFunctionMode):
    """The mode in which a net's layers are those of this file; give each forward pass its own."""

    def __init__(self, memory: Memory, decisions: Decisions | None = None) -> None:
        super().__init__()
        self.memory, self.decisions = memory, decisions
        self._ours: dict[Any, Callable[..., Any]] = {
            F.batch_norm: self._batch_norm,
            F.conv1d: self._conv,
            F.conv2d: self._conv,
            F.conv3d: self._conv,
            F.max_pool2d: self._max_pool2d,
            F.relu: self._relu,
            torch.relu: self._relu,
            F.softplus: self._softplus,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._ours.get(func, func)(*args, **(kwargs or {}))

    def _conv(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        n = weight.ndim - 2
        if isinstance(padding, str) or input.ndim != n + 2:
            native = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
            return native(input, weight, bias, stride, padding, dilation, groups)
        stride, padding, dilation = ([v] * n if isinstance(v, int) else list(v) for v in (stride, padding, dilation))
        how = (stride, padding, dilation, False, [0] * n, groups)
        return _Conv.apply(input, weight, bias, how, self.memory)

    def _batch_norm(
        self, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        if training:
            if _count(input) == 1:
                raise DynamicsError("batch norm needs more than one value of each channel: take a larger batch")
            y, _ = _Normalise.apply(input, eps, self.memory)
            if weight is None and bias is None:
                return y
            weight = torch.ones_like(bias) if weight is None else weight
            return _Affine.apply(y, weight, bias, self.memory)
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale
        return _Affine.apply(input, scale, shift if bias is None else shift + bias, self.memory)

    def _relu(self, input, inplace=False):
        passed = None
        if self.decisions is not None:
            passed = self.decisions.take(lambda: input.detach() > 0)
        return _ReLU.apply(input, passed, self.memory)

    def _softplus(self, input, beta=1, threshold=20):
        return _Softplus.apply(input, beta, threshold, self.memory)

    def _max_pool2d(
        self, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ):
        how = (kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
        if return_indices or input.ndim != 4:
            return F.max_pool2d(input, *how, return_indices)

        def best() -> Tensor:
            taken = torch.ops.aten.max_pool2d_with_indices(input.detach(), *map(_pair, how[:4]), ceil_mode)[1]
            small = torch.int16 if input.shape[2] * input.shape[3] <= torch.iinfo(torch.int16).max else torch.int32
            return taken.to(small)

        taken = best() if self.decisions is None else self.decisions.take(best)
        return _MaxPool.apply(input, taken.long(), how, self.memory)


def _pair(v: Any) -> list[int]:
    return [v, v] if isinstance(v, int) else list(v)


def _others(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


def _wide(t: Tensor, x: Tensor) -> Tensor:
    """[C] as it goes with x [B, C, ...]."""
    return t.view(-1, *(1,) * (x.ndim - 2))


def _dot(a: Tensor, b: Tensor, memory: Memory) -> Tensor:
    """[C]: the sums of a * b over all but the channels."""
    return torch.mul(a, b, out=memory.like(a)).sum(_others(a))


# Each pair below: the layer, then its gradient as a function of the gradient g that arrives and of what the layer
# saved. In the second's backward, u (and v) are the directions that meet its results.


class _Conv(Function):
    @staticmethod
    def forward(ctx, x, w, b, how, memory):
        ctx.save_for_backward(x, w)
        ctx.how, ctx.memory = how, memory
        return torch.ops.aten.convolution(x, w, b, *how)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        *need, need_b = ctx.needs_input_grad[:3]
        gx, gw = _ConvGrad.apply(g, x, w, ctx.how, need, ctx.memory) if any(need) else (None, None)
        return gx, gw, g.sum(_others(g)) if need_b else None, None, None


class _ConvGrad(Function):
    @staticmethod
    def forward(ctx, g, x, w, how, need, memory):
        ctx.save_for_backward(g, x, w)
        ctx.how, ctx.memory = how, memory
        ctx.set_materialize_grads(False)
        return torch.ops.aten.convolution_backward(g, x, w, None, *how, [*need, False])[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx, u, v):
        g, x, w = ctx.saved_tensors
        need_g, need_x, need_w = ctx.needs_input_grad[:3]
        pairs = [(a, b) for a, b in ((u, w), (x, v)) if a is not None and b is not None]
        cg = None
        if need_g:
            for a, b in pairs:
                term = torch.ops.aten.convolution(a, b, None, *ctx.how)
                cg = term if cg is None else cg.add_(term)
        cx = cw = None
        need = [need_x and v is not None, need_w and u is not None, False]
        if any(need) and not ctx.memory.linear:
            u, v = x if u is None else u, w if v is None else v
            cx, cw, _ = torch.ops.aten.convolution_backward(g, u, v, None, *ctx.how, need)
        return cg, cx, cw, None, None, None


class _Normalise(Function):
    """y = (x - mean) s and s = 1 / sqrt(variance + eps). That s too is a result lets its derivative go back by one
    way with that of y."""

    @staticmethod
    def forward(ctx, x, eps, memory):
        y = torch.sub(x, _wide(x.mean(_others(x)), x), out=memory.like(x))
        s = (_dot(y, y, memory) / _count(x) + eps).rsqrt()
        y.mul_(_wide(s, x))
        ctx.memory = memory
        ctx.save_for_backward(y, s)
        ctx.set_materialize_grads(False)
        return y, s

    @staticmethod
    def backward(ctx, g, gs):
        y, s = ctx.saved_tensors
        return _NormaliseGrad.apply(g, gs, y, s, ctx.memory), None, None


class _NormaliseGrad(Function):
    """s (g - ⟨g⟩ - y ⟨g y⟩), and of gs, -s² y gs / n; ⟨ ⟩ is the mean over the n values of a channel."""

    @staticmethod
    def forward(ctx, g, gs, y, s, memory):
        n, out = _count(y), memory.like(y)
        if g is None:
            return torch.mul(y, _wide(-s * s * gs / n, y), out=out)
        mean, along = g.mean(_others(y)), _dot(g, y, memory) / n
        ctx.memory = memory
        ctx.save_for_backward(g, y, s, mean, along)
        torch.sub(g, _wide(mean, y), out=out)
        out.addcmul_(y, _wide(-along if gs is None else -along - s * gs / n, y))
        return out.mul_(_wide(s, y))

    @staticmethod
    @once_differentiable
    def backward(ctx, u):
        g, y, s, mean, along = ctx.saved_tensors
        memory, n = ctx.memory, _count(y)
        mean_u, along_u = u.mean(_others(y)), _dot(u, y, memory) / n
        cg = torch.sub(u, _wide(mean_u, y), out=memory.like(y))
        cg.addcmul_(y, _wide(-along_u, y)).mul_(_wide(s, y))
        if memory.linear:
            return cg, None, None, None, None
        cs = _dot(u, g, memory) - n * (mean * mean_u + along * along_u)
        cy = torch.mul(u, _wide(-s * along, y), out=memory.like(y)).addcmul_(g, _wide(-s * along_u, y))
        return cg, None, cy, cs, None


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]


class _Affine(Function):
    """x w + b, of each channel."""

    @staticmethod
    def forward(ctx, x, w, b, memory):
        ctx.memory = memory
        ctx.save_for_backward(x, w)
        y = torch.mul(x, _wide(w, x), out=memory.like(x))
        return y if b is None else y.add_(_wide(b, x))

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return *_AffineGrad.apply(g, x, w, ctx.needs_input_grad[1:3], ctx.memory), None


class _AffineGrad(Function):
    @staticmethod
    def forward(ctx, g, x, w, need, memory):
        ctx.memory = memory
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        gw = _dot(g, x, memory) if need[0] else None
        return torch.mul(g, _wide(w, x), out=memory.like(x)), gw, g.sum(_others(x)) if need[1] else None

    @staticmethod
    @once_differentiable
    def backward(ctx, u, vw, vb):
        g, x, w = ctx.saved_tensors
        memory = ctx.memory
        cg = memory.like(x)
        cg = cg.zero_() if u is None else torch.mul(u, _wide(w, x), out=cg)
        if vw is not None:
            cg.addcmul_(x, _wide(vw, x))
        if vb is not None:
            cg.add_(_wide(vb, x))
        if memory.linear:
            return cg, None, None, None, None
        cx = None if vw is None else torch.mul(g, _wide(vw, x), out=memory.like(x))
        return cg, cx, None if u is None else _dot(u, g, memory), None, None


class _Softplus(Function):
    @staticmethod
    def forward(ctx, x, beta, threshold, memory):
        slope, one = memory.like(x), x.new_ones(()).expand_as(x)
        torch.ops.aten.softplus_backward.grad_input(one, x, beta, threshold, grad_input=slope)
        ctx.beta, ctx.memory = beta, memory
        ctx.save_for_backward(x, slope)
        return torch.ops.aten.softplus.out(x, beta, threshold, out=memory.like(x))

    @staticmethod
    def backward(ctx, g):
        x, slope = ctx.saved_tensors
        # in the pass that is not differentiated again, the second derivative is not needed
        return _SoftplusGrad.apply(g, x, slope, ctx.beta, torch.is_grad_enabled(), ctx.memory), None, None, None


class _SoftplusGrad(Function):
    @staticmethod
    def forward(ctx, g, x, slope, beta, again, memory):
        ctx.memory = memory
        if again and not memory.linear:
            bend = torch.mul(slope, slope, out=memory.like(g)).neg_().add_(slope).mul_(g).mul_(beta)
            ctx.save_for_backward(slope, bend)
        else:
            ctx.save_for_backward(slope)
        return torch.mul(g, slope, out=memory.like(g))

    @staticmethod
    @once_differentiable
    def backward(ctx, u):
        slope, *bend = ctx.saved_tensors
        cg = torch.mul(u, slope, out=ctx.memory.like(u))
        cx = torch.mul(u, bend[0], out=ctx.memory.like(u)) if bend else None
        return cg, cx, None, None, None, None


class _ReLU(Function):
    @staticmethod
    def forward(ctx, x, passed, memory):
        ctx.memory, ctx.given = memory, passed is not None
        y = memory.like(x)
        y = torch.clamp_min(x, 0, out=y) if passed is None else torch.mul(x, passed, out=y)
        ctx.save_for_backward(y if passed is None else passed)
        return y

    @staticmethod
    def backward(ctx, g):
        (kept,) = ctx.saved_tensors
        return _ReLUGrad.apply(g, kept.detach(), ctx.given, ctx.memory), None, None


class _ReLUGrad(Function):
    @staticmethod
    def forward(ctx, g, kept, given, memory):
        ctx.given, ctx.memory = given, memory
        ctx.save_for_backward(kept)
        return _ReLUGrad.through(g, kept, given, memory)

    @staticmethod
    @once_differentiable
    def backward(ctx, u):
        return _ReLUGrad.through(u, *ctx.saved_tensors, ctx.given, ctx.memory), None, None, None

    @staticmethod
    def through(g, kept, given, memory):
        if given:
            return torch.mul(g, kept, out=memory.like(g))
        return torch.ops.aten.threshold_backward.grad_input(g, kept, 0, grad_input=memory.like(g))


class _MaxPool(Function):
    @staticmethod
    def forward(ctx, x, taken, how, memory):
        ctx.how, ctx.memory = how, memory
        ctx.save_for_backward(x, taken)
        return _gathered(x, taken)

    @staticmethod
    def backward(ctx, g):
        x, taken = ctx.saved_tensors
        return _MaxPoolGrad.apply(g, x.detach(), taken, ctx.how), None, None, None


class _MaxPoolGrad(Function):
    @staticmethod
    def forward(ctx, g, x, taken, how):
        ctx.save_for_backward(taken)
        *sizes, ceil_mode = how
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *map(_pair, sizes), ceil_mode, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx, u):
        return _gathered(u, *ctx.saved_tensors), None, None, None


def _gathered(x: Tensor, taken: Tensor) -> Tensor:
    """The entries of each plane of x [B, C, H, W] that `taken` [B, C, h, w] points at."""
    if x.is_contiguous():
        return x.flatten(2).gather(2, taken.flatten(2)).view_as(taken)
    b, c, h, w = taken.shape
    pixels, index = (t.permute(0, 2, 3, 1).reshape(b, -1, c) for t in (x, taken))
    return pixels.gather(1, index).view(b, h, w, c).permute(0, 3, 1, 2)
