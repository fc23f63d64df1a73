"""The file of a recorded sweep: its recipes, the figures kept of every run, and what made it.

NAME.json: {"format": 1, "name", "about": {...}, "recipes": {name: recipe}, "rows": [{"recipe", "seed", "status",
"figures"}]} in strict JSON, a row a line. A figure is a number or a list of numbers; null where it is not finite.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DynamicsError, unknown
from ..training import Recipe

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1

FOLDER = Path(__file__).parents[2] / "notebooks" / "packs"
"""Where a checkout keeps its packs."""

Figure = float | tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One run of a pack. figures: by name, nan where a value was not finite; none for a run that failed."""

    recipe: str
    seed: int
    status: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Pack:
    """A recorded sweep: rows of recipes by seeds. about: what made it (command, versions, machine, threads, data)."""

    name: str
    about: Mapping[str, Any]
    recipes: Mapping[str, Recipe]
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(row.seed for row in self.rows))

    def __getitem__(self, key: tuple[str, int]) -> Row:
        if not (isinstance(key, tuple) and len(key) == 2):
            raise DynamicsError(f"a row of a pack has a name and a seed: pack[{self.rows[0].recipe!r}, 0]")
        name, seed = key
        if name not in self.recipes:
            raise unknown("recipe of this pack", name, self.recipes)
        found = [row for row in self.rows if (row.recipe, row.seed) == (name, seed)]
        if not found:
            raise DynamicsError(f"this pack has no seed {seed!r}: its seeds are {', '.join(map(str, self.seeds))}")
        return found[0]

    def table(self) -> xr.Dataset:
        """All figures by recipe and seed, nan where a run has none; `status` [recipe, seed] in words.

        A figure that is a list has a third dimension of its own name with `_index` behind it.
        """
        import xarray as xr

        names, seeds = list(self.recipes), list(self.seeds)
        sizes: dict[str, tuple[int, ...]] = {}
        for row in self.rows:
            for key, value in row.figures.items():
                sizes[key] = np.shape(value)
        numbers = {key: np.full((len(names), len(seeds), *size), np.nan) for key, size in sizes.items()}
        status = np.full((len(names), len(seeds)), "missing", dtype=object)
        for row in self.rows:
            at = names.index(row.recipe), seeds.index(row.seed)
            status[at] = row.status
            for key, value in row.figures.items():
                numbers[key][at] = value
        dims = {key: ("recipe", "seed", *([f"{key}_index"] if size else [])) for key, size in sizes.items()}
        return xr.Dataset(
            {**{key: (dims[key], value) for key, value in numbers.items()}, "status": (("recipe", "seed"), status)},
            {"recipe": names, "seed": seeds},
        )

    def __repr__(self) -> str:
        made = f"{self.about.get('data', {}).get('n', '?')} images of {self.about.get('data', {}).get('name', '?')}"
        return f"<Pack {self.name}: {len(self.recipes)} recipes, {len(self.seeds)} seeds, {made}>"


def load_pack(name: str | Path) -> Pack:
    """The pack of this name among the committed ones, or in a file; raises DynamicsError with the nearest names."""
    path = Path(name)
    if path.suffix != ".json":
        path = FOLDER / f"{name}.json"
        if not path.exists():
            raise unknown("pack", str(name), [p.stem for p in sorted(FOLDER.glob("*.json"))])
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise DynamicsError(
                f"{path} has format {found['format']!r}, this version reads {FORMAT}: record it again with "
                f"dynamics packs {path.stem}"
            )
        recipes = {key: Recipe.from_json(value) for key, value in found["recipes"].items()}
        rows = tuple(
            Row(row["recipe"], row["seed"], row["status"], {k: _figure(v) for k, v in row["figures"].items()})
            for row in found["rows"]
        )
        return Pack(found["name"], found["about"], recipes, rows)
    except DynamicsError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DynamicsError(f"{path} cannot be read as a pack ({error}): restore it from git, or record it again with "
                            f"dynamics packs {path.stem}") from None  # fmt: skip


def save_pack(pack: Pack, path: str | Path) -> Path:
    """Write a pack as a whole, so that a process that is killed leaves the old one; returns the path."""
    path = Path(path)
    rows = []
    for row in pack.rows:
        figures = {key: _json(value) for key, value in row.figures.items()}
        one = {"recipe": row.recipe, "seed": row.seed, "status": row.status, "figures": figures}
        rows.append(json.dumps(one, allow_nan=False))
    head = {
        "format": FORMAT,
        "name": pack.name,
        "about": dict(pack.about),
        "recipes": {name: recipe.to_json() for name, recipe in pack.recipes.items()},
    }
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False)
    text = text.removesuffix("\n}") + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DynamicsError(f"cannot write {path} ({error.strerror}): choose another place with --out") from None
    return path


def _figure(value: Any) -> Figure:
    if isinstance(value, list):
        return tuple(_figure(v) for v in value)
    return math.nan if value is None else float(value)


def _json(value: Any) -> Any:
    if np.ndim(value):
        return [_json(v) for v in value]
    value = float(value)
    return value if math.isfinite(value) else None
