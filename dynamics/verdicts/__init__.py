"""Runs what a claim asks for, and records the verdict: the only writer of the ledger's verdicts."""

from .measurement import Measurement, measure
from .runner import SOURCES, Task, judge, tasks

__all__ = ["SOURCES", "Measurement", "Task", "judge", "measure", "tasks"]
