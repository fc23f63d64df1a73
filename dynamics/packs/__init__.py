"""Run packs: recorded sweeps as small files, which a chapter draws, and of which it trains one row again."""

from .pack import FOLDER, Pack, Row, load_pack, save_pack
from .record import Recording, again, agreement, record
from .recordings import RECORDINGS

__all__ = [
    "FOLDER",
    "RECORDINGS",
    "Pack",
    "Recording",
    "Row",
    "again",
    "agreement",
    "load_pack",
    "record",
    "save_pack",
]
