"""What was found of scale invariance, as a table that prints, and that a run's manifest keeps."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DynamicsError, unknown

WITH_BIAS = ", with its bias"


@dataclass(frozen=True, eq=False)
class TensorInvariance:
    """What was found of one tensor, which is one row of the table `Invariance`.

    per: "filter", "block of 16" (so many filters in a row, as a head's), "tensor", each perhaps with ", with its bias",
    or "none"; `block` is the number of filters in a block, 0 for none. mask [rows], bool: the live filters in
    invariant blocks; no_gradient: how many filters are not live. covered: their share of the live filters.
    cosine: the largest |⟨w,g⟩|/(‖w‖‖g‖) of those blocks; whole: that of the tensor, with its sign. What the rescaling
    did, or that of the whole tensor where no block is invariant: loss_change, relative, and gradient_change, the
    largest ‖a g' − g‖/‖g‖ of a block scaled by a, g' its gradient there. None where undefined.
    note: "unused", "no gradient", "at this bias" (only) or nothing; tied: other names of the same parameter.
    """

    name: str
    layer: str
    rows: int
    per: str
    block: int
    mask: torch.Tensor
    no_gradient: int
    covered: float
    cosine: float | None
    whole: float | None
    loss_change: float | None
    gradient_change: float | None
    note: str = ""
    tied: tuple[str, ...] = ()

    @property
    def with_bias(self) -> bool:
        return self.per.endswith(WITH_BIAS)

    @property
    def invariant(self) -> bool:
        """Whether every live filter is in an invariant block."""
        return self.covered == 1.0

    def to_json(self) -> dict[str, Any]:
        """A plain record; of the mask, the ranges [first, one past the last] of covered filters."""
        edges = torch.diff(self.mask.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
        ranges = [list(pair) for pair in zip(edges[::2], edges[1::2], strict=True)]
        return {**vars(self), "mask": ranges, "tied": list(self.tied)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TensorInvariance:
        mask = torch.zeros(value["rows"], dtype=torch.bool)
        for start, stop in value["mask"]:
            mask[start:stop] = True
        return TensorInvariance(**{**value, "mask": mask, "tied": tuple(value["tied"])})


@dataclass(frozen=True, eq=False, repr=False)
class Invariance:
    """A row for every tensor of two or more dimensions; iterates over them, and `table[name]` takes a parameter's or a
    layer's name. `loss` and `training` are those at which it was measured."""

    tensors: tuple[TensorInvariance, ...]
    loss: float
    training: bool
    tolerance: float
    seed: int

    def __iter__(self) -> Iterator[TensorInvariance]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> TensorInvariance:
        for row in self.tensors:
            if name in (row.name, row.layer, *row.tied):
                return row
        raise unknown("tensor", name, [row.name for row in self.tensors])

    @property
    def invariant(self) -> tuple[str, ...]:
        """Names of the parameters that are invariant in every live filter, at whatever block size."""
        return tuple(row.name for row in self.tensors if row.invariant)

    def __repr__(self) -> str:
        rows = [_HEAD, *map(_cells, self.tensors)]
        rows = [(_short(name), *cells) for name, *cells in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(part for line in self._footer() for part in textwrap.wrap(line, 120))])

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align: left'>{html.escape(cell)}</th>" for cell in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align: left'>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self.tensors
        )
        footer = "<br>".join(map(html.escape, self._footer()))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><small>{footer}</small>"

    def _footer(self) -> list[str]:
        mode = "training" if self.training else "evaluation"
        lines = [
            f"{len(self.invariant)} of {len(self)} tensors invariant in every live filter, to a tolerance of "
            f"{self.tolerance:g}; net in {mode} mode"
        ]
        if not self.training:
            lines.append(
                "in evaluation mode running statistics do not normalise: net.train() gives the loss of training"[:]
            )
        return lines + [f"{row.name} is also {', '.join(row.tied)}" for row in self.tensors if row.tied]

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `Invariance.from_json` turns into the same table."""
        return {**vars(self), "tensors": [row.to_json() for row in self.tensors]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Invariance:
        try:
            return Invariance(**{**value, "tensors": tuple(map(TensorInvariance.from_json, value["tensors"]))})
        except (KeyError, TypeError):
            raise DynamicsError("this JSON is not a table of invariance: write one with Invariance.to_json") from None


_HEAD = ("tensor", "invariant per", "filters", "no grad", "max |cos|", "cos", "Δloss", "Δgrad")


def _cells(row: TensorInvariance) -> tuple[str, ...]:
    per = f"{row.per} ({row.note})" if row.note else row.per
    filters = f"{int(row.mask.sum())}/{row.rows}"
    numbers = (row.cosine, row.whole, row.loss_change, row.gradient_change)
    return (row.name, per, filters, str(row.no_gradient or ""), *map(_digits, numbers))


def _digits(value: float | None) -> str:
    """One or two digits: rounding, which differs between machines, shows as a bound."""
    if value is None:
        return "-"
    return "<1e-12" if abs(value) < 1e-12 else f"{value:.1g}" if abs(value) < 0.1 else f"{value:.2f}"


def _short(name: str, width: int = 30) -> str:
    return name if len(name) <= width else "..." + name[3 - width :]
