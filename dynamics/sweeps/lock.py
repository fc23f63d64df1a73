"""Locks on folders that several processes may write to: a file that says who holds it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DynamicsError

BEAT = 5.0
"""Seconds between two signs of life of a holder."""

PATIENCE = 60.0
"""Seconds without a sign of life, by our own clock, after which a holder on another host is taken for dead."""

EMPTY = 2.0
"""Seconds after which a lock that says nothing was left by a process that died while it wrote it."""


@contextmanager
def held(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs; a lock of a process that has died on this host is taken over.

    wait: until whoever holds it lets go, or gives no sign of life (from another host, whose processes nobody here can
    see); otherwise raises DynamicsError that says who holds it.
    """
    mine = _take(path, what, wait)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _take(path: Path, what: str, wait: bool) -> str:
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()),
                       "since": time.strftime("%Y-%m-%d %H:%M:%S")})  # fmt: skip
    last, seen = None, time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path.parent, error) from None
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            pass
        except OSError as error:
            raise _cannot_write(path, error) from None
        else:
            with os.fdopen(handle, "w") as file:
                file.write(mine)
            return mine
        text = _read(path)
        now = (text, _modified(path))
        if now != last:
            last, seen = now, time.monotonic()
        silent = time.monotonic() - seen
        holder = _holder(text)
        if text is None:  # let go in the meantime
            continue
        if (holder is None and silent > EMPTY) or (holder and _dead(holder)) or (wait and silent > PATIENCE):
            _remove(path, text)
        elif holder and not wait:
            raise DynamicsError(
                f"{what} is in use by process {holder['pid']} on {holder['host']} since {holder['since']}: wait for "
                f"it, choose another folder, or delete {path} if that process is gone"
            )
        else:
            time.sleep(0.2)


def _remove(path: Path, text: str) -> None:
    """Remove a lock of which we know what it said; of two processes that do so at once, neither removes the other's."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        os.rename(path, aside)
        if aside.read_text() != text:  # another process was quicker, and this is its lock
            os.link(aside, path)
    except OSError:
        pass
    finally:
        aside.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> DynamicsError:
    return DynamicsError(f"cannot write {path} ({error.strerror}): choose a folder that you may write to")


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _holder(text: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text or "")
        return found if {"pid", "host", "since"} <= set(found) else None
    except (ValueError, TypeError):
        return None


def _dead(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this host that is no more; a number may have come to another process since."""
    if holder["host"] != socket.gethostname():
        return False
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    now = _started(pid)
    return now == "zombie" or (None not in (now, holder.get("started")) and now != holder["started"])


def _started(pid: int) -> str | None:
    """When a process began, in the system's own clock; None where the system does not say."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "zombie" if state in "ZX" else fields[18]
