"""Stateless randomness: every draw is named by (seed, purpose, index), so resuming needs no generator state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for one purpose ("init", "order", "crop", ...) and one epoch or step.

    Draws are made on the CPU and moved, so that they are the same on every device.
    """
    return torch.Generator().manual_seed(_digest(seed, purpose, index))


@contextmanager
def seeded(seed: int, purpose: str, index: int = 0) -> Iterator[None]:
    """Seed the global generators, which dropout and other people's modules draw from, and put them back after."""
    # torch.random.fork_rng and torch.manual_seed do the same through every backend, at forty times the cost
    restore = _keep_torch()
    for g in _generators():
        g.manual_seed(_digest(seed, purpose, index))
    try:
        yield
    finally:
        restore()


def keep() -> Callable[[], None]:
    """Remember the global random states of torch, numpy and Python; calling what is returned puts them back."""
    restore_torch, python, numpy = _keep_torch(), random.getstate(), np.random.get_state()

    def restore() -> None:
        restore_torch()
        random.setstate(python)
        np.random.set_state(numpy)

    return restore


def _keep_torch() -> Callable[[], None]:
    states = [(g, g.get_state()) for g in _generators()]

    def restore() -> None:
        for g, state in states:
            g.set_state(state)

    return restore


def _generators() -> list[torch.Generator]:
    return [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]


def _digest(seed: int, purpose: str, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
