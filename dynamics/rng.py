"""Stateless randomness: every draw is named by (seed, purpose, index), so resuming needs no generator state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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
    generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
    states = [g.get_state() for g in generators]
    for g in generators:
        g.manual_seed(_digest(seed, purpose, index))
    try:
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)


def _digest(seed: int, purpose: str, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
