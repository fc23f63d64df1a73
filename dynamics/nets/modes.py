"""Training and evaluation modes, put back after use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Each module's mode, training or evaluation, is put back after."""
    modes = [(m, m.training) for m in net.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
