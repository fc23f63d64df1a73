"""Learning-rate schedules, of a recipe or of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DynamicsError
from ..runs import Run
from ..training import Recipe
from .given import is_run, read
from .style import depth_colors, finish, new_axes, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 401
MOST_KNOTS = 40
"""More of them are not marked: the dots would hide the curve."""
STROKES = (
    "-", (0, (4, 1.3)), (0, (1.6, 1.2)), (0, (4.5, 1.5, 1, 1.5)), (0, (1, 2.2)), (0, (2.2, 0.9, 0.9, 0.9)), (0, (3, 4)),
    (0, (3, 0.9, 0.9, 0.9, 0.9, 0.9)),
)  # fmt: skip
"""Each shows its pattern within the length of a legend's line."""
Given = Callable[[float], float] | Recipe | Run


def plot_schedule(given: Given | Mapping[str, Given], ax: Axes | None = None, *, epochs: float | None = None) -> Axes:
    """The learning rate over epochs of a schedule or a recipe, by parameter group where groups differ, with the
    schedule's knots marked; of a run, what was in force at each step.

    given: one of these, or a dict label -> one of them. epochs: how far to draw, by default the recipe's epochs or the
    last knot; a schedule that goes on for ever (a step, a wave, restarts) needs it. Where the lr turns or jumps is
    marked too, unless that is so often that the marks would hide it. Raises DynamicsError for anything else, and for
    runs beside schedules, whose axes differ.
    """
    several = isinstance(given, Mapping) and not is_run(given)
    if several and not given:
        raise DynamicsError("plot_schedule was given nothing: pass a schedule, a recipe or a run, or a dict of them")
    items = dict(given) if several else {"": given}
    kinds = {_is_recorded(v) for v in items.values()}
    if len(kinds) > 1:
        raise DynamicsError("runs are drawn by step and schedules by epoch: plot them on two axes")
    recorded = kinds.pop()
    if epochs is not None and (recorded or not isinstance(epochs, int | float) or not 0 < epochs < math.inf):
        mend = "leave it out for runs" if recorded else "give a number above 0"
        raise DynamicsError(f"epochs={epochs!r} does not say how far to draw: {mend}")
    curves = []
    for label, v in items.items():
        found = _recorded(v) if recorded else _planned(v, _until(v, items, epochs))
        curves += [(str(label), *curve) for curve in found]
    ax = new_axes(ax)
    for i, ((label, group, x, y, knots), color) in enumerate(zip(curves, depth_colors(len(curves)), strict=True)):
        name = " ".join(part for part in (label, group) if part)
        # curves that run on one another would hide each other if all were solid
        ax.plot(x, y, color=color, lw=1.8, ls=STROKES[i % len(STROKES)], label=name or "_", **points(x))
        if len(knots[0]):
            ax.plot(*knots, "o", color=color, ms=5, label="_")
    ax.set_ylim(bottom=0)
    return finish(ax, "learning rate", "Learning rate", xlabel="step" if recorded else "epoch")


def _is_recorded(given: Any) -> bool:
    if isinstance(given, Recipe) or (callable(given) and not is_run(given)):
        return False
    if is_run(given):
        return True
    raise DynamicsError(
        f"plot_schedule takes a schedule (a callable epoch -> lr), a recipe or a run, not {type(given).__name__}"
    )


class Curve(NamedTuple):
    groups: str
    x: np.ndarray
    y: np.ndarray
    knots: tuple[Any, Any] = ((), ())


def _recorded(run: Any) -> list[Curve]:
    lr = read(run, "hyperparameters", "lr")["lr"].transpose("step", "group")
    return _distinct(lr.group.values, lr.step.values, lr.values.astype(float).T)


def _planned(given: Any, until: float) -> list[Curve]:
    recipe = isinstance(given, Recipe)
    schedule = getattr(given.optimizer, "lr", None) if recipe else given
    knots = [float(k) for k in getattr(schedule, "knots", ()) if 0 <= k <= until]
    turns = schedule.turns(until) if hasattr(schedule, "turns") else ()
    # and just before them, so that what jumps is drawn upright
    at = np.unique([*np.linspace(0, until, SAMPLES), *knots, *turns, *(t * (1 - 1e-9) for t in turns)])
    knots = sorted({*knots, *turns}) if len(turns) <= MOST_KNOTS else knots
    if not recipe:
        values = [_lr(given, t) for t in at.tolist()]
        return [Curve("", at, np.array(values), (knots, [_lr(given, k) for k in knots]))]
    optimizer = given.optimizer
    values = np.array([optimizer.hyperparameters(t)["lr"] for t in at.tolist()], float).T
    if np.isnan(values).all():
        kind = type(optimizer).__name__
        raise DynamicsError(f"{kind} sets its lr while it trains: read snap.state.opt['lr'] of a run by a probe")
    groups = [g.match for g in getattr(optimizer, "groups", ())] + ["default"]
    curves = _distinct(groups if len(groups) == len(values) else range(len(values)), at, values)
    marked = np.isin(at, knots)
    return [c._replace(knots=(at[marked], c.y[marked])) for c in curves]


def _until(given: Any, items: Mapping[str, Any], epochs: float | None) -> float:
    """How far to draw: its own end, else that of the longest beside it."""
    until = epochs or _end(given) or max(map(_end, items.values()))
    if not until:
        raise DynamicsError("this schedule does not say where it ends: pass epochs=, the number of epochs to draw")
    return float(until)


def _end(given: Any) -> float:
    return float(given.epochs if isinstance(given, Recipe) else max(getattr(given, "knots", ()), default=0.0))


def _lr(schedule: Any, epoch: float) -> float:
    try:
        return float(schedule(epoch))
    except Exception as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DynamicsError(f"the schedule fails at epoch {epoch:g} ({told}): it maps an epoch to an lr") from error


def _distinct(groups: Iterable[Any], x: np.ndarray, values: np.ndarray) -> list[Curve]:
    """One curve for all groups of the same learning rate, named where there are several."""
    found: list[tuple[list[str], np.ndarray]] = []
    for group, y in zip(map(str, groups), values, strict=True):
        same = next((names for names, other in found if np.array_equal(other, y, equal_nan=True)), None)
        if same is None:
            found.append(([group], y))
        else:
            same.append(group)
    return [Curve(", ".join(names) if len(found) > 1 else "", x, y) for names, y in found]
