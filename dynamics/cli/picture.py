"""Writing a figure to a file that the user named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DynamicsError


def save(figure: Any, target: Path) -> None:
    """Write a figure in the format of its name's ending; raises DynamicsError where that cannot be done."""
    mend = "choose another place, ending in .png, .pdf or .svg"
    if not target.suffix:
        raise DynamicsError(f"{target} does not say which kind of picture: {mend}")
    try:
        figure.savefig(target, dpi=150)
    except (OSError, ValueError) as error:
        raise DynamicsError(f"cannot write {target} ({error}): {mend}") from None
