"""Runs: train and record, keep, load, resume, and lay predictions over what was measured."""

from .predict import predict
from .record import resume, train
from .run import Run, load_run

__all__ = ["Run", "load_run", "predict", "resume", "train"]
