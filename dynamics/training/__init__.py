"""A training run as a trajectory: recipes, states, and the generator that is the training loop."""

from .averages import EMA, SWA
from .boosting import Boosted, Round, boost
from .distributed import World, barrier, first_process_first, joined, world
from .evaluation import Evaluation, averaged, evaluate
from .loop import batch_loss, initial_state, steps
from .precision import resolve_precision
from .recipe import PRECISIONS, Recipe
from .state import (
    LIVE_ABOVE_EPS,
    Hyperparameters,
    Snapshot,
    State,
    as_rows,
    flatten,
    tree_map,
    unflatten,
)

__all__ = [
    "EMA",
    "LIVE_ABOVE_EPS",
    "PRECISIONS",
    "SWA",
    "Boosted",
    "Evaluation",
    "Hyperparameters",
    "Recipe",
    "Round",
    "Snapshot",
    "State",
    "World",
    "as_rows",
    "averaged",
    "barrier",
    "batch_loss",
    "boost",
    "evaluate",
    "first_process_first",
    "flatten",
    "initial_state",
    "joined",
    "resolve_precision",
    "steps",
    "tree_map",
    "unflatten",
    "world",
]
