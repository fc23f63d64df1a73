"""Sweeps beyond one machine."""

from __future__ import annotations

import re
import socket
from concurrent.futures import Executor

from ..errors import DynamicsError


def dask_executor(address: str, *, timeout: float = 10.0) -> Executor:
    """An executor of the workers of a dask scheduler, for sweep(..., executor=dask_executor("tcp://host:8786")).

    timeout: seconds to wait for an answer. The workers must see the sweep's folder by the same path, and have this
    package and the same versions; one thread a worker is best, since a process trains one run at a time. Raises
    DynamicsError where no scheduler answers, or dask is not installed.
    """
    nobody = f"no dask scheduler answers at {address}: start one with dask scheduler, or check host and port"
    # the client itself would go on trying an address that refuses, until its time is up
    where = re.fullmatch(r"(?:(?:tcp|tls)://)?\[?([^/\]]+)\]?:(\d+)", address)
    if where:
        try:
            socket.create_connection((where[1], int(where[2])), timeout).close()
        except (OSError, OverflowError):
            raise DynamicsError(nobody) from None
    try:
        from distributed import Client
    except ImportError:
        raise DynamicsError("dask is not installed: pip install 'training-dynamics[dask]'") from None
    try:
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise DynamicsError(f"{nobody} ({error})".replace("\n", " ")) from None
    return client.get_executor()
