"""What a claim asks to be measured, as a value: a function of a seed, and the bounds of its mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..claims import Claim, Verdict, check
from ..training import Recipe


@dataclass(frozen=True)
class Measurement:
    """One quantity of one claim.

    `sample` measures it at a seed; `claim` has the ledger's id, the quantity in words and its bounds, which come from
    theory or from what was published and were fixed before anything was measured. Seeds are 0 to seeds - 1. With
    `exact` every sample must lie within the bounds, else the interval of the mean. `data` is the data set's name;
    `recipes` are what was trained, at its seed 0. A control has the source "ablation".
    """

    claim: Claim
    sample: Callable[[int], float]
    seeds: int = 3
    data: str = "random numbers"
    exact: bool = False
    recipes: tuple[Recipe, ...] = ()


shapes = partial(Measurement, data="shapes")
"""A measurement on the embedded data."""


def measure(measurement: Measurement) -> Verdict:
    """Measure at every seed and judge. Raises DynamicsError where a sample is nan or infinite."""
    samples = [float(measurement.sample(seed)) for seed in range(measurement.seeds)]
    return check(measurement.claim, samples, exact=measurement.exact)
