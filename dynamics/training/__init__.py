"""A training run as a trajectory: recipes, states, and the generator that is the training loop."""

from .averages import EMA, SWA
from .evaluation import Evaluation, averaged, evaluate
from .loop import batch_loss, initial_state, resolve_precision, steps
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
    "Evaluation",
    "Hyperparameters",
    "Recipe",
    "Snapshot",
    "State",
    "as_rows",
    "averaged",
    "batch_loss",
    "evaluate",
    "flatten",
    "initial_state",
    "resolve_precision",
    "steps",
    "tree_map",
    "unflatten",
]
