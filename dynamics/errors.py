"""The one exception that users are meant to see: a single line that names the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DynamicsError(ValueError):
    """Bad input or a refused operation; the message is one line and says what to do instead."""


def unknown(kind: str, name: object, known: Iterable[str]) -> DynamicsError:
    """The error for a name that does not exist, with the nearest names that do."""
    options = sorted(known)
    close = difflib.get_close_matches(str(name), options, n=3, cutoff=0.5)
    if close:
        return DynamicsError(f"unknown {kind} {name!r}: did you mean {' or '.join(map(repr, close))}?")
    return DynamicsError(f"unknown {kind} {name!r}: choose one of {', '.join(options) or '(none)'}")
