"""What a deploy depends on: prefect.yaml, settings, and modules less the bodies of functions."""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from deployments.project import ROOT

DECLARED = ("prefect.yaml", "prefect.toml", ".env")
NOT_WATCHED = ("deployments", "tests")

# Of each file when it was modified, and what a deploy depends on.
Files = dict[str, tuple[int, str]]


def look(before: Files) -> Files:
    """Return the files as they are; those that were not modified since then are not read."""
    files = {}
    for name in (*DECLARED, *_find_modules()):
        path = ROOT / name
        with contextlib.suppress(OSError):  # it is not there, or not any more
            modified = path.stat().st_mtime_ns
            known = before.get(name, (None, ""))
            files[name] = (modified, known[1] if known[0] == modified else _read(path, modified))
    return files


def compare(before: Files, after: Files) -> list[str]:
    """Name the files of which a deploy depends on something else now."""
    old, new = (
        {(name, depends) for name, (_, depends) in files.items()} for files in (before, after)
    )
    return sorted({name for name, _ in old ^ new})


def _find_modules() -> Iterator[str]:
    for directory, below, names in os.walk(ROOT):
        here = Path(directory).relative_to(ROOT)
        below[:] = [
            name
            for name in below
            if not name.startswith(".")
            and str(here / name) not in NOT_WATCHED
            and not Path(directory, name, "pyvenv.cfg").exists()
        ]
        yield from (str(here / name) for name in names if name.endswith(".py"))


def _read(path: Path, modified: int) -> str:
    if path.suffix != ".py":
        return str(modified)
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError):
        return text  # the deploy says what is wrong
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # The docstring describes a deployment and its parameters.
            node.body = [ast.Expr(ast.Constant(ast.get_docstring(node)))]
    return ast.dump(module)
