"""Which recipes a sweep runs: grids over dotted paths, names, and what makes a list of them senseless."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DynamicsError, unknown
from ..nets import Net
from ..training import Recipe


def grid(recipe: Recipe, axes: Mapping[str, Iterable[Any]]) -> dict[str, Recipe]:
    """Every combination of the values of some fields, as recipes by name: grid(r, {"optimizer.lr": [0.1, 0.2]}).

    axes: dotted paths through the recipe's fields and its net's arguments, such as "batch_size", "optimizer.momentum"
    or "net.width"; the last one varies fastest. Names are such as "lr=0.1,batch_size=64". Raises DynamicsError for an
    empty grid, for a path that the recipe has not, and for values that its fields refuse.
    """
    if not isinstance(recipe, Recipe):
        raise DynamicsError(f"grid() varies a Recipe, got {type(recipe).__name__}: pass it as the first argument")
    values = {path: _listed(path, found) for path, found in axes.items()}
    if not values:
        raise DynamicsError("this grid is empty: name at least one field, such as {'optimizer.lr': [0.1, 0.2]}")
    if "seed" in values:
        raise DynamicsError("a grid does not vary the seed: pass the seeds to sweep(recipes, seeds, ...)")
    labels = _labels(list(values))
    made: dict[str, Recipe] = {}
    for point in itertools.product(*(list(enumerate(v)) for v in values.values())):
        changed, name = recipe, []
        for path, label, (i, value) in zip(values, labels, point, strict=True):
            changed = changed_at(changed, path, value)
            name.append(f"{label}={_text(value, i)}")
        whole = ",".join(name)
        if whole in made:
            raise DynamicsError(f"this grid has {whole} twice: list each value once")
        made[whole] = changed
    return made


def changed_at(value: Any, path: str, new: Any) -> Any:
    """A recipe, or a part of one, with one field replaced that a dotted path names."""
    head, _, rest = path.partition(".")
    if isinstance(value, Net):
        if rest:
            raise DynamicsError(f"the net's argument {head!r} has no field {rest!r}: give the whole argument")
        return value.replace(**{head: new})
    if not dataclasses.is_dataclass(value):
        raise DynamicsError(f"{value!r} has no field {head!r}: replace it as a whole")
    fields = [f.name for f in dataclasses.fields(value) if f.init]
    if head not in fields:
        raise unknown(f"field of {type(value).__name__}", head, fields)
    return replace(value, **{head: changed_at(getattr(value, head), rest, new) if rest else new})


def named_recipes(recipes: Recipe | Mapping[str, Recipe] | Sequence[Recipe]) -> dict[str, Recipe]:
    """Recipes by the name of their folder, checked; their seeds are set aside. A list is numbered."""
    if isinstance(recipes, Recipe):
        recipes = [recipes]
    if isinstance(recipes, Mapping):
        given = dict(recipes)
    else:
        listed = list(recipes)
        digits = len(str(max(len(listed) - 1, 0)))
        given = {f"recipe-{i:0{digits}d}": r for i, r in enumerate(listed)}
    if not given:
        raise DynamicsError("there is no recipe in this sweep: pass at least one")
    for name, recipe in given.items():
        if not isinstance(recipe, Recipe):
            raise DynamicsError(f"the sweep's {name!r} is a {type(recipe).__name__}: pass a Recipe")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.,=+-]{0,199}", name):
            raise DynamicsError(
                f"a recipe cannot be called {name!r}, since its folder is: use letters, digits and . , = + - _"
            )
    if len({name.lower() for name in given}) < len(given):
        raise DynamicsError("two recipes have names that differ in capitals only, and some disks see one: rename one")
    made = {name: replace(recipe, seed=0) for name, recipe in given.items()}
    first: dict[Recipe, str] = {}
    for name, recipe in made.items():
        if recipe in first:
            raise DynamicsError(
                f"the recipes {first[recipe]!r} and {name!r} differ in nothing (but perhaps the seed, which the sweep "
                "sets): leave one out"
            )
        first[recipe] = name
    return made


def checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Seeds as a tuple; raises DynamicsError for none, for repeated ones, and for what is not a whole number."""
    if isinstance(seeds, int):
        raise DynamicsError(f"seeds are a list, got {seeds}: pass range({seeds}) for that many, [{seeds}] for one")
    found = tuple(int(s) if isinstance(s, np.integer) else s for s in seeds)
    if not found:
        raise DynamicsError("there are no seeds in this sweep: pass at least one, such as range(5)")
    for seed in found:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise DynamicsError(f"a seed must be a whole number, got {seed!r}")
    repeated = [s for s in found if found.count(s) > 1]
    if repeated:
        raise DynamicsError(f"the seed {repeated[0]} is repeated, which would be the same run twice: list it once")
    return found


def _listed(path: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise DynamicsError(f"the grid's {path!r} takes a list of values, got {values!r}: write [{values!r}]")
    found = [v.item() if isinstance(v, np.generic) else v for v in values]  # a recipe is of plain numbers
    if not found:
        raise DynamicsError(f"the grid's {path!r} has no values, so the grid is empty: give at least one")
    return found


def _labels(paths: list[str]) -> list[str]:
    """The last part of each path, or all of it where two paths share the last part."""
    last = [p.rpartition(".")[2] for p in paths]
    return [path if last.count(name) > 1 else name for path, name in zip(paths, last, strict=True)]


def _text(value: Any, i: int) -> str:
    """A value as a part of a folder's name: numbers and words as they are, others by kind and number."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value):
        return value
    return f"{type(value).__name__}-{i}"
