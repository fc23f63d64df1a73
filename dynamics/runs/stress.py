"""The learning-rate stress test: a rate that only rises, and where on it a run loses what it has learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..data import Split, batches_per_epoch
from ..errors import DynamicsError
from ..nets import Net
from ..optim import PiecewiseLinear
from .record import train
from .run import Run


class Endured(NamedTuple):
    """Learning rates of a run whose rate rises: at its lowest smoothed loss, and where it lost what it had learned.

    `lost`: the last rate before that; `survived`: the ramp ended first, so that `lost` is a lower bound. `lowest` is
    the lowest smoothed loss.
    """

    best: float
    lost: float
    survived: bool
    lowest: float


def raise_rate(
    run: Run, split: Split, rates: Sequence[float], *, hold: int, net: Net | None = None, batch_size: int | None = None
) -> Run:
    """Train on from the end of a run while its learning rate rises through `rates`, `hold` steps from each to the next.

    Between them it rises in a straight line. Momentum begins at zero, labels are not smoothed, and everything else is
    the run's, the batch size too where none is given. net: another that takes the run's parameters and buffers, such as
    the same net with frozen norms.
    Raises DynamicsError for fewer than two rates, and for a hold that is not a whole number of at least 1.
    """
    if len(rates) < 2 or not isinstance(hold, int) or hold < 1:
        raise DynamicsError(f"a ramp needs two rates and a hold of at least 1 step, got {len(rates)} and {hold!r}")
    batch_size = batch_size or run.recipe.batch_size
    epochs = hold / batches_per_epoch(split, batch_size)
    schedule = PiecewiseLinear(tuple(i * epochs for i in range(len(rates))), tuple(rates))
    recipe = replace(
        run.recipe,
        net=net or run.recipe.net,
        batch_size=batch_size,
        optimizer=replace(run.recipe.optimizer, lr=schedule),
        label_smoothing=0.0,
        epochs=(len(rates) - 1) * epochs,
    )
    return train(recipe, split, start=replace(run.state, step=0, opt=None), progress=False)


def smoothed_loss(run: Run, *, window: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The learning rate in force and the mean training loss of the `window` steps up to each, both [step].

    The first window - 1 steps are left out. A loss that is not finite makes every mean with it so. Raises
    DynamicsError for fewer steps than a window.
    """
    loss = run["train"].loss.values.astype(float)
    lr = run["hyperparameters"].lr.values[:, 0].astype(float)
    if not 1 <= window <= len(loss):
        raise DynamicsError(f"a window of {window} steps does not fit {len(loss)} losses: choose 1 to {len(loss)}")
    windows = np.lib.stride_tricks.sliding_window_view(loss, window)
    with np.errstate(invalid="ignore"):
        return lr[window - 1 :], windows.mean(1)


def endured(run: Run, *, window: int = 20, guessing: float = math.log(10)) -> Endured:
    """The largest learning rate that a run bears while it rises, as in the stress test of Page's post 7.

    What was learned is lost, for good, after the last step at which the smoothed loss is finite and has given back no
    more than half of the way from `guessing` (that of equal probabilities, ln of the number of classes) down to its
    lowest; a run that comes back by itself has not lost it. Raises DynamicsError for a run that never got below
    guessing.
    """
    lr, loss = smoothed_loss(run, window=window)
    known = np.where(np.isfinite(loss), loss, np.inf)
    at = int(np.argmin(known))
    if not known[at] < guessing:
        raise DynamicsError(f"the smoothed loss never fell below {guessing:.3g}, that of guessing: begin at a lower lr")
    last = int(np.flatnonzero(known <= (known[at] + guessing) / 2)[-1])
    survived = last == len(lr) - 1 and run.status != "diverged"
    return Endured(float(lr[at]), float(lr[last]), survived, float(known[at]))
