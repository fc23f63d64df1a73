"""A workbench for the dynamics of training: a fast trainer, probes that do not disturb it, theory and claims."""

from .claims import Claim, Verdict, check, table
from .data import Augment, Data, Split, batches, load_data
from .errors import DynamicsError
from .nets import Net, Stage
from .optim import SGD, Constant, Group, PiecewiseLinear
from .plots import plot_angles, plot_batchnorm, plot_norms
from .probes import Probe, angles, at, batchnorm, effective_lr, every, gradients, reads, standard, weight_norms
from .runs import Run, load_run, predict, resume, train
from .training import Evaluation, Recipe, Snapshot, State, evaluate, steps

__all__ = [
    "SGD",
    "Augment",
    "Claim",
    "Constant",
    "Data",
    "DynamicsError",
    "Evaluation",
    "Group",
    "Net",
    "PiecewiseLinear",
    "Probe",
    "Recipe",
    "Run",
    "Snapshot",
    "Split",
    "Stage",
    "State",
    "Verdict",
    "angles",
    "at",
    "batches",
    "batchnorm",
    "check",
    "effective_lr",
    "evaluate",
    "every",
    "gradients",
    "load_data",
    "load_run",
    "plot_angles",
    "plot_batchnorm",
    "plot_norms",
    "predict",
    "reads",
    "resume",
    "standard",
    "steps",
    "table",
    "train",
    "weight_norms",
]
