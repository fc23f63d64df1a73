"""Sweeps beyond one machine."""

from __future__ import annotations

import asyncio
import atexit
import re
import socket
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib import import_module
from typing import Any

from ..errors import DynamicsError


def dask_executor(address: str, *, timeout: float = 5.0) -> Executor:
    """An executor of the workers of a dask scheduler, for sweep(..., executor=dask_executor("tcp://host:8786")).

    timeout: seconds to wait for an answer. The workers must see the sweep's folder by the same path, and have this
    package and the same versions; one thread a worker is best, since a process trains one run at a time. The
    connection is closed when this process ends; with a client of your own, pass its client.get_executor() instead.
    Raises DynamicsError where no scheduler answers, or dask is not installed.
    """
    where = re.fullmatch(r"(?:(?:tcp|tls)://)?\[?([^/\]]+)\]?:(\d+)", address)
    if not where:
        raise DynamicsError(f"{address!r} is no address of a dask scheduler: write one such as tcp://host:8786")
    nobody = f"no dask scheduler answers at {address}: start one with dask scheduler, or check host and port"
    try:  # a client would go on trying an address that refuses
        socket.create_connection((where[1], int(where[2])), timeout).close()
    except (OSError, OverflowError, UnicodeError):
        raise DynamicsError(nobody) from None
    try:
        distributed = import_module("distributed")  # an extra, and nothing else here needs it
    except ImportError:
        raise DynamicsError("dask is not installed: pip install 'training-dynamics[dask]'") from None
    try:  # and wait for ever for one that accepts and says nothing
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop of its own in this one
            kind = thread.submit(asyncio.run, _kind(distributed, address, timeout)).result()
    except Exception as error:  # whatever a server of another protocol makes of it
        why = " ".join(str(error).split())
        raise DynamicsError(f"{nobody} ({why})" if why else nobody) from None
    if kind != "Scheduler":
        raise DynamicsError(f"at {address} is a dask {kind.lower()}, not the scheduler: use the scheduler's address")
    client = distributed.Client(address, timeout=timeout, set_as_default=False)
    atexit.register(client.close)  # a client that is collected as garbage may block another one that is just starting
    return client.get_executor()


async def _kind(distributed: Any, address: str, timeout: float) -> str:
    """What a dask server at an address says it is: Scheduler, Worker or Nanny."""

    async def ask() -> str:
        given = distributed.Security().get_connection_args("client")
        async with distributed.rpc(address, connection_args=given) as there:
            return (await there.identity())["type"]

    return await asyncio.wait_for(ask(), timeout)
