"""A network as data: a name and its arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import DynamicsError, unknown
from ..rng import seeded
from .convnets import plain8, resnet9, staged
from .mlp import mlp
from .resnet18 import resnet18
from .resnet20 import resnet20

NETS: dict[str, Callable[..., nn.Module]] = {
    "resnet9": resnet9,
    "plain8": plain8,
    "staged": staged,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "mlp": mlp,
}


@dataclass(frozen=True, init=False)
class Net:
    """A network as data: a name of `NETS` (or an import path "package.module:function") and its arguments."""

    name: str
    arguments: tuple[tuple[str, Any], ...]

    def __init__(self, name: str, **arguments: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", tuple(sorted((k, _hashable(v)) for k, v in arguments.items())))
        if ":" not in name and name not in NETS:
            raise unknown("net", name, NETS)
        if ":" not in name:
            known = inspect.signature(NETS[name]).parameters
            for argument in arguments:
                if argument not in known:
                    raise unknown(f"argument of {name}", argument, known)

    def __repr__(self) -> str:
        return f"Net({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.arguments)])})"

    def replace(self, **arguments: Any) -> Net:
        """The same net with other arguments."""
        return Net(self.name, **{**dict(self.arguments), **arguments})

    def build(self, *, classes: int = 10, seed: int = 0) -> nn.Module:
        """Make the module; the same seed gives the same initial weights, layer by layer, and no global state is used.

        A function reached by an import path gets `classes` and `seed` if it takes them, and a seeded
        global generator for the time of the call.
        """
        make = NETS[self.name] if ":" not in self.name else _imported(self.name)
        known = inspect.signature(make).parameters
        arguments = {k: v for k, v in {"classes": classes, "seed": seed}.items() if k in known}
        with seeded(seed, "net"):
            return make(**{**arguments, **dict(self.arguments)})


def _hashable(value: Any) -> Any:
    """JSON knows lists only, so that lists and tuples must be one."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _imported(path: str) -> Callable[..., nn.Module]:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DynamicsError(f"cannot import the net {path!r} ({error}): write package.module:function") from None
