"""Networks as data, the nets that come with the package, their norms and their sizes."""

from .blocks import ACTIVATIONS, INITS, ORDERS, GlobalMaxPool, Residual, Scale, ShiftedReLU, conv_block, initialise
from .convnets import Stage, plain8, resnet9, staged
from .counts import count_macs, count_weights
from .mlp import mlp
from .net import NETS, Net
from .norms import NORMS, BatchNorm, FrozenNorm, GhostNorm, NormOf, capture_statistics, norm_of

__all__ = [
    "ACTIVATIONS",
    "INITS",
    "NETS",
    "NORMS",
    "ORDERS",
    "BatchNorm",
    "FrozenNorm",
    "GhostNorm",
    "GlobalMaxPool",
    "Net",
    "NormOf",
    "Residual",
    "Scale",
    "ShiftedReLU",
    "Stage",
    "capture_statistics",
    "conv_block",
    "count_macs",
    "count_weights",
    "initialise",
    "mlp",
    "norm_of",
    "plain8",
    "resnet9",
    "staged",
]
