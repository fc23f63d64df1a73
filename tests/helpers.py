"""Toy splits, recipes and nets for the tests; what a test reaches by an import path lives here too."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import dynamics as dyn
from dynamics import cli


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def dynamics(*words: object) -> Ended:
    """The command line in this process, through `main`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["dynamics", *map(str, words)])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
    return Ended(code, out.getvalue(), err.getvalue())


def arrays(n: int = 60, side: int = 16, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images with a class-dependent brightness, so that there is something to learn."""
    draw = np.random.RandomState(seed)
    labels = np.arange(n) % classes
    images = draw.randint(0, 160, (n, side, side, 3)) + (30 * labels)[:, None, None, None]
    return images.clip(0, 255).astype(np.uint8), labels


def toy_split(n: int = 60, side: int = 16, classes: int = 4, seed: int = 0, like: dyn.Split | None = None) -> dyn.Split:
    images, labels = arrays(n, side, classes, seed)
    return dyn.Split.from_arrays(images, labels, like=like, classes=None if like else tuple("abcdefghij"[:classes]))


def toy_recipe(**changes: Any) -> dyn.Recipe:
    """Three steps an epoch on `toy_split()`."""
    given = {
        "net": dyn.Net("resnet9", width=2),
        "optimizer": dyn.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=5e-3),
        "batch_size": 20,
        "epochs": 2,
        "augment": dyn.Augment(pad=2),
        "precision": "float32",
    }
    return dyn.Recipe(**{**given, **changes})


def assert_same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    """Bitwise equality of two sets of tensors (nan equals nan)."""
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(bits(a[k]), bits(b[k]))] == []


def bits(tensor: torch.Tensor) -> torch.Tensor:
    same_size = {torch.float32: torch.int32, torch.float64: torch.int64}
    return tensor.contiguous().view(same_size.get(tensor.dtype, tensor.dtype))


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def last(snaps: Iterable[dyn.Snapshot]) -> dyn.Snapshot:
    *_, snap = snaps
    return snap


def first(snaps: Iterable[dyn.Snapshot]) -> dyn.Snapshot:
    return next(iter(snaps))


@torch.no_grad()
def load(net: nn.Module, state: dyn.State) -> None:
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        tensor.copy_({**state.params, **state.buffers}[name])


# nets for Net("helpers:...")


def dropout_net(classes: int, rate: float = 0.5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(rate), nn.Linear(16, classes),
    )  # fmt: skip


def told_net(classes: int, seed: int, widths: tuple[int, ...] = (3,)) -> nn.Module:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
    net.told = (classes, seed, tuple(widths))
    return net


def plain_net() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


class Noisy(nn.Linear):
    """Keeps what it drew from the global generator in its last forward pass."""

    def __init__(self, classes: int) -> None:
        super().__init__(3, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.drawn = torch.rand(()).item()
        return super().forward(x.mean((2, 3)))


class TwoMatrices(nn.Module):
    """One module that owns two matrices, and one with its own."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.pair = nn.Bilinear(3, 3, classes)
        self.a, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        return self.pair(x @ self.a, x @ self.b)


# probes for resuming


@dyn.reads("params")
def k_step_angle(snap: dyn.Snapshot, carry: Any) -> tuple[Any, Any]:
    """The angle of the classifier's weights to those at the reading before."""
    w = snap.params["linear.weight"].flatten()
    w = w / w.norm()
    before = w if carry is None else carry["w"]
    return {"angle": ((), 2 * torch.atan2((w - before).norm(), (w + before).norm()), {"units": "rad"})}, {"w": w}


def killed_recipe() -> dyn.Recipe:
    return toy_recipe(epochs=80, optimizer=dyn.SGD(0.02, momentum=0.9, nesterov=True, weight_decay=5e-3))


def killed_probes() -> dict[str, dyn.Probe]:
    return {**dyn.standard(3), "turn": dyn.every(5, k_step_angle)}


def train_or_resume(folder: str) -> None:
    """What the process of the SIGKILL test does."""
    torch.set_num_threads(1)
    train, valid = toy_split(), toy_split(20, seed=1, like=toy_split())
    if Path(folder).exists():
        dyn.resume(folder, train, valid, probes={"turn": killed_probes()["turn"]}, progress=False)
    else:
        dyn.train(
            killed_recipe(), train, valid, probes=killed_probes(), out=folder, chunk_steps=4, progress=False
        )  # fmt: skip
