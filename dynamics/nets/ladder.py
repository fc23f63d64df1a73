"""The nets of Page's post 4 as values: the backbone in its six states, and the fifteen nets of the search."""

from __future__ import annotations

from itertools import combinations

from .convnets import Stage
from .net import Net

_LAYERS = ("L1", "L2", "L3")


def _stages(*channels: int, down: str = "pool") -> tuple[Stage, ...]:
    return tuple(Stage(c, down=down) for c in channels)


def _backbones() -> dict[str, Net]:
    """Each state as the one before with what changed."""
    net = Net(
        "staged", width=64, stages_at=64, stages=_stages(128, 256, 256, down="stride1x1"), repeats=(3, 2, 2, 1),
        head="max+avg", linear_bias=True, norm_init="uniform", logit_scale=1.0,
    )  # fmt: skip
    states = {"repeated": net}
    for name, changes in (
        ("stride1x1", {"repeats": ()}),
        ("stride3x3", {"stages": _stages(128, 256, 256, down="stride")}),
        ("maxpool", {"stages": _stages(128, 256, 256)}),
        ("global-maxpool", {"stages": _stages(128, 256, 512), "head": "max"}),
        ("scales-1", {"norm_init": "one", "logit_scale": 0.125, "linear_bias": False}),
    ):
        net = states[name] = net.replace(**changes)
    return states


BACKBONES: dict[str, Net] = _backbones()
"""The shortest path through `resnet18`, mended step by step (post 4, claim P4-1): 55.9 to 91.1 % in 20 epochs.

repeated: 1x1 convolutions of stride 2, norms and activations repeated as the path meets them; stride1x1: without
repeats; stride3x3: 3x3 of stride 2; maxpool: 3x3 and 2x2 max-pooling; global-maxpool: no means for the classifier, and
twice the last channels; scales-1: scales of norms start at 1, logits times 1/8, no bias of the classifier.
"""


def _branched(kind: str, chosen: tuple[str, ...]) -> Net:
    backbone = BACKBONES["scales-1"]
    given = zip(_LAYERS, dict(backbone.arguments)["stages"], strict=True)
    stages = (Stage(s.channels, branch=kind if layer in chosen else None) for layer, s in given)
    return backbone.replace(stages=tuple(stages))


SEARCH: dict[str, Net] = {
    "backbone": BACKBONES["scales-1"],
    **{
        f"{kind}:{'+'.join(chosen)}": _branched(kind, chosen)
        for kind in ("extra", "residual")
        for n in (1, 2, 3)
        for chosen in combinations(_LAYERS, n)
    },
}
"""Post 4's search (claim P4-5): the backbone with an extra block, or with a residual branch, at each choice of layers.

Published: residual:L1+L3, which is `resnet9`, 93.8 % in 20 epochs; extra:L1+L2+L3 95.0 % in 60, with 12x12 cutout.
"""
