"""What the processes of tests/test_distributed.py do: `python ranks.py check RANK FOLDER`, and under torchrun
`ranks.py dies ...`, which is the command line with a rank that dies in the middle."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics import recipes
from dynamics.nets import BatchNorm
from dynamics.nets.syncnorm import SyncNorm
from dynamics.training import tree_map

SIZE = 2
LR = dyn.SGD(0.1, momentum=0.9, weight_decay=5e-3)


def sync_net(classes: int, seed: int, width: int = 2, across: bool = True) -> nn.Module:
    """resnet9 with `SyncNorm` in the place of batch norm."""
    net = dyn.Net("resnet9", width=width).build(classes=classes, seed=seed)
    for block in list(net.modules()):
        for name, child in block.named_children():
            if type(child) is BatchNorm:
                setattr(block, name, SyncNorm(child.num_features, child.eps))
    return net


RECIPES = {
    "no norm": toy_recipe(net=dyn.Net("resnet9", width=2, norm="none"), optimizer=LR),
    "batch": toy_recipe(optimizer=LR, precision="float64", epochs=4),
    "sync": toy_recipe(net=dyn.Net("ranks:sync_net"), optimizer=LR, precision="float64", epochs=4),
    "mixed": toy_recipe(
        net=dyn.Net("helpers:dropout_net"), precision="bf16", augment=dyn.Augment(pad=2, mixup=1.0),
        average=dyn.EMA(0.9, every=1),
    ),
}  # fmt: skip
"""Trained by two processes here, and by one in the tests."""


def trajectory(recipe: dyn.Recipe, **given: Any) -> list[dict[str, Any]]:
    """All numbers of every snapshot."""
    seen = []
    for snap in dyn.steps(recipe, toy_split(), **given):
        kept = {
            "params": snap.params, "buffers": snap.buffers, "opt": snap.state.opt["velocity"], "grads": snap.grads,
            "updates": snap.updates, "loss": snap.loss, "batch": snap.batch and list(snap.batch),
            "average": snap.state.average and snap.state.average["params"],
        }  # fmt: skip
        seen.append(tree_map(lambda t: t.detach().clone(), {k: v for k, v in kept.items() if v is not None}))
    return seen


def command_line_recipe() -> dyn.Recipe:
    """The recipe of `dynamics train` with the options of tests/test_distributed.py."""
    return replace(
        recipes.BASELINE.stretch(4), net=dyn.Net("resnet9", width=2), batch_size=20, precision="float32"
    )  # fmt: skip


def check(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=SIZE)
    found: dict[str, Any] = {name: trajectory(recipe) for name, recipe in RECIPES.items()}
    train, valid = dyn.load_data(folder / "data.npz")
    run = dyn.train(
        command_line_recipe(), train, valid, probes=dyn.standard(1), out=folder / "whole", chunk_steps=3, progress=True
    )
    found["run"] = {
        "params": dict(run.state.params), "loss": run["train"].loss.values.tolist(), "readings": list(run.readings)
    }  # fmt: skip
    refused = {}
    for name, recipe, given in (
        ("batch", toy_recipe(batch_size=15), {}),
        ("ghost", toy_recipe(net=dyn.Net("resnet9", width=2, norm="ghost", ghost_splits=4)), {}),
        ("parts", toy_recipe(), {"parts": 3}),
    ):
        try:
            dyn.steps(recipe, toy_split(), **given)
        except dyn.DynamicsError as error:
            refused[name] = str(error)
    found["refused"] = refused
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def dies() -> None:
    """`dynamics train`, in which rank 1 dies at its eighth step; a chunk is an epoch."""
    from dynamics import cli
    from dynamics.runs import record
    from dynamics.training import loop

    record.MIN_CHUNK_STEPS = 1
    calls, real = [], loop.batch_loss

    def batch_loss(*given: Any) -> torch.Tensor:
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) == 8:
            raise RuntimeError("a cosmic ray hit rank 1")
        return real(*given)

    loop.batch_loss = batch_loss
    cli.main()


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.argv = ["dynamics", *sys.argv[2:]]
        dies()
