"""Plots of a run: measurement as lines, prediction dashed over it. They take an Axes, return it, and compute nothing.

A run is anything with `run[name]` -> xarray Dataset and `name in run`: a Run, a live recorder, or a dict of Datasets.
Colours run along depth (viridis, readable in print and by colour-blind readers); text and dashes take the theme's
colour, so that a dark theme works.
"""

from .activations import plot_drift, plot_histograms, plot_moments
from .curvature import plot_density, plot_outputs, plot_sharpness, plot_spectrum
from .page import plot_run
from .schedule import plot_schedule
from .slices import plot_slice
from .weights import LAWS, plot_angles, plot_batchnorm, plot_norms

__all__ = [
    "LAWS",
    "plot_angles",
    "plot_batchnorm",
    "plot_density",
    "plot_drift",
    "plot_histograms",
    "plot_moments",
    "plot_norms",
    "plot_outputs",
    "plot_run",
    "plot_schedule",
    "plot_sharpness",
    "plot_slice",
    "plot_spectrum",
]
