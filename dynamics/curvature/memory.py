"""What is remembered between evaluations of a net: blocks of memory, and on which side of each corner it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SMALL = 1 << 14
"""Tensors of fewer elements are left to torch."""


class Memory:
    """Large CPU tensors, handed out again as soon as nothing else refers to their storage.

    linear: the second functions are to be differentiated only in the gradient that they propagate, as Gauss-Newton
    products need it, and not in the weights and activations.
    """

    def __init__(self, *, linear: bool = False) -> None:
        self.linear = linear
        self._blocks: list[Tensor] = []
        # private, so that its absence, or another way of counting, must do no harm: then nothing is reused
        self._count = getattr(torch._C, "_storage_Use_Count", None)
        probe = torch.empty(1)
        self._alone = self._references(probe)
        alias = probe.view(1)
        if self._references(probe) != self._alone + 1:
            self._count = None
        del alias

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised tensor of x's shape, dtype and, where x is dense, layout."""
        n = x.numel()
        if self._count is None or x.device.type != "cpu" or n < SMALL:
            return torch.empty_like(x)
        room = [b for b in self._blocks if b.dtype == x.dtype and n <= len(b) <= 2 * n]
        block = next((b for b in sorted(room, key=len) if self._references(b) == self._alone), None)
        if block is None:
            block = torch.empty(n, dtype=x.dtype)
            self._blocks.append(block)
        return block.as_strided(x.shape, torch.empty_like(x, device="meta").stride())

    def forget(self) -> None:
        """Let go of the tensors that nothing refers to."""
        self._blocks = [b for b in self._blocks if self._references(b) != self._alone]

    def _references(self, t: Tensor) -> int:
        return self._count(t.untyped_storage()._cdata) if self._count else 0


class Decisions:
    """Which inputs each ReLU lets through and each max-pool takes, in the order of the calls.

    Rounding in float32 decides near ties otherwise than float64 does, and a single one that falls in a late layer
    changes a product by a part in a thousand. Recorded from a float64 pass, they are then read as often as needed.
    """

    def __init__(self) -> None:
        self.made: list[Tensor] = []
        self.recording = True
        self._next = 0

    def replay(self) -> Decisions:
        """The same decisions, from the first on."""
        again = Decisions()
        again.made, again.recording = self.made, False
        return again

    def take(self, make: Callable[[], Tensor]) -> Tensor:
        """The next decision: made now while recording, and read afterwards."""
        if self.recording:
            self.made.append(make())
            return self.made[-1]
        self._next += 1
        return self.made[self._next - 1]

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.made)
