"""The sources that recorded verdicts rest on, by names under which they can be found again, and their hashes.

A name is "module:qualified.name" of a function or class, "module" of all of a module, "tests/FILE.py::NAME" of a test,
or "notebooks/FILE.ipynb" of a chapter, whose code cells count and whose text and outputs do not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DynamicsError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout. An installed package has none, and then tests and chapters cannot be found."""

Source = Callable[..., Any] | type | ModuleType | str
"""A function, class or module, or the name of one, of a test or of a chapter."""


def can_be_found(name: str) -> bool:
    """Whether the place of a source is here at all: false for tests and chapters outside a checkout."""
    return "/" not in name or (ROOT / name.split("/")[0]).is_dir()


def name_of(function: Source) -> str:
    """The "module:qualified.name" under which a function or class can be found again, "module" of a module."""
    if isinstance(function, str):
        return function
    if isinstance(function, ModuleType):
        return function.__name__
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module in (None, "__main__") or path is None or "<" in path:
        raise DynamicsError(f"{function!r} cannot be found again by its name: name a function of an imported module")
    return f"{module}:{path}"


def source_hash(function: Source) -> str:
    """The hash, 64 hexadecimal digits, of a source without its comments and docstrings."""
    if isinstance(function, str) and "/" in function:
        return hash_of(_of_file(function))
    found = _find(function) if isinstance(function, str) else function
    try:
        source = inspect.getsource(inspect.unwrap(found) if callable(found) else found)
    except (OSError, TypeError):
        raise DynamicsError(f"{name_of(function)} has no Python source: name the function that uses it") from None
    return hash_of(_bare(textwrap.dedent(source)))


def hash_of(text: str) -> str:
    """The hash, 64 hexadecimal digits, of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _of_file(name: str) -> str:
    path, _, test = name.partition("::")
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
        if not test:
            cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            return "\n\n".join(_bare("".join(cell["source"])) for cell in cells)
        first, last = _places(text)[test]
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        raise DynamicsError(
            f"there is no {name!r}: a test is named tests/FILE.py::NAME, a chapter notebooks/FILE.ipynb"
        ) from None
    return _bare("\n".join(text.split("\n")[first - 1 : last]) + "\n")


@lru_cache(maxsize=64)
def _places(text: str) -> dict[str, tuple[int, int]]:
    """First and last line of each function, with the decorators that parametrise a test."""
    functions = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
    return {f.name: (min(n.lineno for n in (f, *f.decorator_list)), f.end_lineno or f.lineno) for f in functions}


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split(".") if path else ():
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        raise DynamicsError(f"there is no {name!r}: a function is named module:name") from None
    return found


def _bare(source: str) -> str:
    # The text, and not its tree, is hashed: ast.dump and ast.unparse differ between versions of Python.
    try:
        tree = ast.parse(source)
        lines = source.encode().splitlines()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:  # it ends its line, so what stands before keeps its place
                row = token.start[0] - 1
                lines[row] = lines[row].decode()[: token.start[1]].encode()
    except (SyntaxError, tokenize.TokenError):  # a lambda within a larger expression, say
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                _blank(lines, first)
    return "\n".join(line.decode().rstrip() for line in lines if line.strip())


def _blank(lines: list[bytes], node: ast.Expr) -> None:
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    after = lines[last][node.end_col_offset :]
    lines[first] = lines[first][: node.col_offset] + after
    lines[first + 1 : last + 1] = [b""] * (last - first)
