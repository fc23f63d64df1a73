"""Networks as data, the nets that come with the package, their norms and their sizes."""

from .blocks import (
    ACTIVATIONS,
    HEADS,
    INITS,
    NORM_INITS,
    ORDERS,
    GlobalAvgPool,
    GlobalMaxAvgPool,
    GlobalMaxPool,
    Residual,
    Scale,
    ShiftedReLU,
    Sum,
    conv_block,
    initialise,
)
from .convnets import BRANCHES, DOWNS, Stage, plain8, resnet9, staged
from .counts import count_macs, count_weights
from .ladder import BACKBONES, SEARCH
from .meprop import TopKConv1x1, TopKLinear
from .mlp import mlp
from .modes import modes_kept
from .net import NETS, Net
from .norms import NORMS, BatchNorm, FrozenNorm, GhostNorm, NormOf, capture_statistics, norm_of
from .prepare import images_to_prepare, prepare
from .resnet18 import resnet18
from .resnet20 import StochasticDepth, resnet20, survivals
from .syncnorm import SyncNorm
from .whitening import Whiten, Whitening, whitening_filters

__all__ = [
    "ACTIVATIONS",
    "BACKBONES",
    "BRANCHES",
    "DOWNS",
    "HEADS",
    "INITS",
    "NETS",
    "NORMS",
    "NORM_INITS",
    "ORDERS",
    "SEARCH",
    "BatchNorm",
    "FrozenNorm",
    "GhostNorm",
    "GlobalAvgPool",
    "GlobalMaxAvgPool",
    "GlobalMaxPool",
    "Net",
    "NormOf",
    "Residual",
    "Scale",
    "ShiftedReLU",
    "Stage",
    "StochasticDepth",
    "Sum",
    "SyncNorm",
    "TopKConv1x1",
    "TopKLinear",
    "Whiten",
    "Whitening",
    "capture_statistics",
    "conv_block",
    "count_macs",
    "count_weights",
    "images_to_prepare",
    "initialise",
    "mlp",
    "modes_kept",
    "norm_of",
    "plain8",
    "prepare",
    "resnet9",
    "resnet18",
    "resnet20",
    "staged",
    "survivals",
    "whitening_filters",
]
