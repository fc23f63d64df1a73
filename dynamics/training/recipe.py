"""What decides a trajectory, given the data; and its JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..data import Augment, Split, batches_per_epoch
from ..errors import DynamicsError, unknown
from ..nets import Net, Stage
from ..optim import KINDS, SGD, Optimizer, PiecewiseLinear
from .averages import EMA, SWA, Averager

PRECISIONS = ("auto", "float32", "bf16", "fp16", "float64")


@dataclass(frozen=True)
class Recipe:
    """All that decides a trajectory, given the data; equal recipes are equal, and JSON round-trips.

    precision: float32; bf16 or fp16 (autocast; master weights stay float32; fp16 needs a GPU and scales the loss);
    float64; or auto, which is bf16 where the machine computes it fast and float32 elsewhere. epochs may be a fraction.
    seed decides initial weights, order and augmentation. The loss is the batch mean of cross-entropy with
    `label_smoothing`. average: EMA(...) or SWA(...), kept beside the weights; it changes nothing about them. compile:
    forward and backward pass by torch.compile, equal to rounding; measurements and evaluation stay as they are.
    """

    net: Net = field(default_factory=lambda: Net("resnet9"))
    optimizer: Optimizer = field(
        default_factory=lambda: SGD(PiecewiseLinear((0, 5, 24), (0, 0.4, 0)), momentum=0.9, nesterov=True)
    )
    batch_size: int = 512
    epochs: float = 24
    augment: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    precision: str = "auto"
    channels_last: bool = True
    average: Averager | None = None
    seed: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.net, Net):
            raise DynamicsError(f"net must be a Net, got {self.net!r}: write Net({str(self.net)!r})")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if not (isinstance(self.epochs, int | float) and 0 <= self.epochs < math.inf):
            raise DynamicsError(f"epochs must be a number of at least 0, got {self.epochs!r}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise DynamicsError(f"batch_size must be a whole number of at least 1, got {self.batch_size!r}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise DynamicsError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing!r}")
        if not isinstance(self.seed, int):
            raise DynamicsError(f"seed must be a whole number, got {self.seed!r}")
        if not isinstance(self.compile, bool):
            raise DynamicsError(f"compile must be True or False, got {self.compile!r}")

    def stretch(self, epochs: float) -> Recipe:
        """The same recipe over another number of epochs, its schedule stretched in proportion."""
        lr = getattr(self.optimizer, "lr", None)
        if not 0 < epochs < math.inf or not self.epochs:
            raise DynamicsError(f"epochs must be above 0, got {epochs:g}: give a finite number")
        if not hasattr(lr, "stretch"):
            return replace(self, epochs=epochs)
        return replace(self, epochs=epochs, optimizer=replace(self.optimizer, lr=lr.stretch(epochs / self.epochs)))

    def steps_in(self, split: Split) -> int:
        """The number of updates that this recipe makes on a split."""
        return round(self.epochs * batches_per_epoch(split, self.batch_size))

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `Recipe.from_json` turns into an equal recipe."""
        return _encode(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Recipe:
        recipe = _decode(value)
        if not isinstance(recipe, Recipe):
            raise DynamicsError("this JSON is not a recipe: write one with Recipe.to_json")
        return recipe


# What a recipe may be made of; other frozen dataclasses are named by module and must be imported before loading.
_KINDS: dict[str, type] = {c.__name__: c for c in (Recipe, Augment, Stage, EMA, SWA, *KINDS)}

# Fields younger than the first recipes on disk are written only where they are not at their defaults: recipes keep
# their JSON, and what is keyed by it stays found.
_YOUNGER = {
    "Recipe": ("compile",),
    "Augment": ("cutout", "grouped", "max_options", "mixup"),
    "Stage": ("down",),
}


def _encode(value: Any) -> Any:
    if isinstance(value, Net):
        return {"kind": "Net", "name": value.name, "arguments": {k: _encode(v) for k, v in value.arguments}}
    if dataclasses.is_dataclass(value):
        name = type(value).__name__
        kind = name if _KINDS.get(name) is type(value) else f"{type(value).__module__}:{name}"
        younger = _YOUNGER.get(kind, ())
        fields = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if f.name not in younger or getattr(value, f.name) != f.default
        }
        return {"kind": kind, **{k: _encode(v) for k, v in fields.items()}}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise DynamicsError(f"a recipe cannot hold {value!r}: use numbers, strings, tuples and frozen dataclasses")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "kind" not in value:
        raise DynamicsError("this JSON is not a recipe: write one with Recipe.to_json")
    if value["kind"] == "Net":
        return Net(value["name"], **{k: _decode(v) for k, v in value["arguments"].items()})
    fields = {k: _decode(v) for k, v in value.items() if k != "kind"}
    kind = _KINDS.get(value["kind"]) or _already_imported(value["kind"])
    known = {f.name for f in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise unknown(f"field of {value['kind']}", name, known)
    try:
        return kind(**fields)
    except TypeError as error:
        raise DynamicsError(f"this recipe's {value['kind']} is not whole ({error})") from None


def _already_imported(path: str) -> type:
    # never imports: reading a run folder must not run code that the folder names
    import sys

    module, _, name = path.partition(":")
    kind = getattr(sys.modules.get(module), name, None) if name else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise DynamicsError(f"this recipe uses {path!r}, which is not loaded: import its module first, then load again")
    return kind
