"""Sweeps on a real Dask cluster of two worker processes on this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dropout_net, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.sweeps import dask_executor, sweep

distributed = pytest.importorskip("distributed")

TRAIN = toy_split(200)
VALID = toy_split(20, seed=1, like=TRAIN)
STEPS = 270
"""Of them 250 are in the first chunk."""
PROBES = {"norms": dyn.every(10, dyn.weight_norms)}


class Fatal(nn.Module):
    """A net that kills its process in one training step, the first time that any process of a test comes to it."""

    def __init__(self, classes: int, marker: str, step: int) -> None:
        super().__init__()
        self.net, self.marker, self.left = dropout_net(classes), Path(marker), step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        if self.left == 0 and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)


def recipes(marker: Path) -> dict[str, dyn.Recipe]:
    plain = toy_recipe(net=dyn.Net("helpers:dropout_net"), epochs=STEPS / 10, average=dyn.EMA(0.9))
    fatal = replace(plain, net=dyn.Net("test_sweeps_dask:Fatal", marker=str(marker), step=STEPS - 10))
    return {"plain": plain, "fatal": fatal}


def run_sweep(out: Path, marker: Path, **given: Any) -> Any:
    given = {"train": TRAIN, "valid": VALID, "probes": PROBES, "threads": 1, "progress": False, **given}
    return sweep(recipes(marker), (0, 3), out=out, **given)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a store by its path, but for the command that each run's process was started with."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in found:
        if name.endswith("run.json"):
            about = json.loads(found[name])
            del about["environment"]["command"]
            found[name] = json.dumps(about).encode()
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    made = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, scheduler_port=0, dashboard_address=None, silence_logs=logging.CRITICAL,
        env={"PYTHONPATH": path},
    )  # fmt: skip
    yield made
    # where the machine is busy a worker is not gone in the ten seconds that dask gives it; it ends with this process
    with suppress(TimeoutError):
        made.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_dask_cluster_of_which_a_worker_is_killed_gives_the_local_results_bit_for_bit(cluster, tmp_path):
    marker = tmp_path / "marker"
    with distributed.Client(cluster, set_as_default=False) as client:
        before = {worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()}
        there = run_sweep(tmp_path / "there", marker, executor=client.get_executor())
        assert int(marker.read_text()) in before, "no worker was killed"
    assert set(there.statuses.values()) == {"finished"}
    here = run_sweep(tmp_path / "here", marker, workers=1)
    ours, theirs = files(tmp_path / "here"), files(tmp_path / "there")
    assert len(list((tmp_path / "there" / "fatal" / "seed-0").glob("chunk-*"))) == 3
    assert ours.keys() == theirs.keys() and [k for k in ours if ours[k] != theirs[k]] == []
    assert repr(here).partition(" in ")[0] == repr(there).partition(" in ")[0]


def test_an_address_gives_an_executor_that_goes_on_with_what_is_there(cluster, tmp_path):
    given = {"out": tmp_path / "out", "train": TRAIN, "valid": VALID, "threads": 1, "progress": False}
    executor = dask_executor(cluster.scheduler_address)
    try:
        for seeds in ([0], [0, 1]):
            done = sweep(toy_recipe(epochs=1), seeds, executor=executor, **given)
            assert set(done.statuses.values()) == {"finished"} and len(done) == len(seeds)
    finally:
        executor._client.close()


def greet(other: socket.socket) -> None:
    with suppress(OSError):  # until it is closed
        while True:
            there, _ = other.accept()
            with there:
                there.sendall(b"SSH-2.0-of another kind\r\n")


@pytest.mark.parametrize("says", ["refuses", "nothing", "something else"])
def test_an_address_where_no_scheduler_answers_is_told_at_once(says):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # as long as it is bound, nobody else gets the port
        if says != "refuses":
            other.listen()
        other.settimeout(20)  # after which nobody greets any more
        if says == "something else":
            threading.Thread(target=greet, args=(other,), daemon=True).start()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(DynamicsError, match=f"no dask scheduler answers at {address}: start one") as told:
            dask_executor(address, timeout={"refuses": 60.0, "nothing": 0.5, "something else": 5.0}[says])
        assert time.monotonic() - begun < 30 and "\n" not in str(told.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "http://127.0.0.1:1", "", "tcp://:1"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(DynamicsError, match="is no address of a dask scheduler: write one such as"):
        dask_executor(address)


def test_a_port_that_cannot_be_is_told():
    with pytest.raises(DynamicsError, match="no dask scheduler answers"):
        dask_executor("tcp://127.0.0.1:99999")


def test_a_worker_is_no_scheduler(cluster):
    worker = next(iter(cluster.scheduler_info["workers"]))
    with pytest.raises(DynamicsError, match="is a dask worker, not the scheduler"):
        dask_executor(worker)


def test_without_dask_its_extra_is_named(monkeypatch, cluster):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DynamicsError, match=r"pip install 'training-dynamics\[dask\]'"):
        dask_executor(cluster.scheduler_address)
