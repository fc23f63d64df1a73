"""An executor of local processes, of which one that dies costs its own job and no other."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import DynamicsError

GRACE = 10.0
"""Seconds that a process may take to end by itself."""


class WorkerDied(BrokenExecutor):
    """The process that ran a call is gone: killed, out of memory, or crashed; a new one takes its place."""


class LocalProcesses(Executor):
    """A concurrent.futures.Executor of `workers` spawned processes, each of which ends with the process that made it.

    Unlike a ProcessPoolExecutor it survives its workers: a call whose process dies raises `WorkerDied`, and the others
    go on. Calls and their results are pickled.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sweep")
        self._own = threading.local()
        self._workers: list[tuple[Any, Connection]] = []
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes when they have done their calls; with cancel_futures=True at once."""
        if cancel_futures:
            self._closed = True
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process, _ in self._workers:
                process.terminate()
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            for _, pipe in self._workers:
                pipe.close()  # which tells the process to end
            for process, _ in self._workers:
                process.join(GRACE)
                process.terminate()
                process.join()

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(self._own, "pipe", None) is None:
            self._own.pipe = self._start()
        try:
            self._own.pipe.send((fn, args, kwargs))
            done, result = self._own.pipe.recv()
        except (EOFError, OSError):
            self._own.pipe = None
            raise WorkerDied("killed, out of memory, or crashed") from None
        if not done:
            raise result
        return result

    def _start(self) -> Connection:
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
        process.start()
        there.close()  # or the pipe would stay open when the process dies
        self._workers.append((process, here))
        try:
            here.recv()
        except (EOFError, OSError):
            raise DynamicsError(
                "a process of the sweep could not start (its message is above): in a script, call sweep under "
                "if __name__ == '__main__':"
            ) from None
        if self._closed:  # while it was starting
            process.terminate()
            raise WorkerDied("the executor was shut down")
        return here


def serve(pipe: Connection) -> None:
    """What a worker does: calls, one after another, until the other end of the pipe is closed."""
    from tqdm import tqdm

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # its own would be a semaphore of the system, which is left behind when this process is ended
    tqdm.set_lock(threading.RLock())
    try:
        pipe.send("ready")
        while True:
            try:
                fn, args, kwargs = pipe.recv()
                result = True, fn(*args, **kwargs)
            except (EOFError, KeyboardInterrupt):
                return
            except BaseException as error:
                result = False, error
            try:
                pipe.send(result)
            except Exception:  # it cannot be pickled
                pipe.send((False, RuntimeError(f"{type(result[1]).__name__}: {result[1]}")))
    except OSError:  # nobody is there any more
        return


def _end_with_parent() -> None:
    # a worker that outlives a killed sweep would write to runs that the next one goes on with
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
