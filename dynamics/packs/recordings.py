"""Every pack that the chapters draw, by name; `dynamics packs` records them."""

from __future__ import annotations

from . import chapter05
from .chapter07 import BATCH_SCALING, SIMILARITY
from .record import Recording

RECORDINGS: dict[str, Recording] = {
    "chapter05": chapter05.RECORDING,
    "lars_similarity": SIMILARITY,
    "batch_scaling": BATCH_SCALING,
}
