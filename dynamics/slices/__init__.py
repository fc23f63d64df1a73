"""Two-dimensional slices through hyperparameters, the ridge in them, and coordinate descent (Page, post 5).

What a flat direction holds fixed is lr * weight_decay / ((1 - momentum) * batch_size), to which angular diffusion per
image and the rate at which norms are forgotten are both proportional.
"""

from .descent import ALIGNED, RAW, Descent, coordinate_descent, moved
from .grid import EXPONENTS, flat_slope, hyperparameters, slice2d, slice_of, slice_recipes, with_values
from .ridge import Ridge, flatness, ridge

__all__ = [
    "ALIGNED",
    "EXPONENTS",
    "RAW",
    "Descent",
    "Ridge",
    "coordinate_descent",
    "flat_slope",
    "flatness",
    "hyperparameters",
    "moved",
    "ridge",
    "slice2d",
    "slice_of",
    "slice_recipes",
    "with_values",
]
