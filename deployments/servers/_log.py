"""What a server's log says about it: a background service that fails tells nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# An entry of Prefect's log; the lines up to the next one belong to it.
ENTRY = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} \| (\w+) +\| ")
TRACEBACK = "Traceback (most recent call last):"
# Errors that a sound server logs, each with the reason.
KNOWN = (
    # The embedded SQLite bears one writer at a time; who finds it busy tries again.
    re.compile(r"^sqlalchemy\.exc\.OperationalError: .*database is locked$", re.MULTILINE),
)
SHOWN, FIRST_LINES, LAST_LINES = 3, 3, 15


class ServerFailed(Exception):
    """Tell which errors a server has logged."""


def check_server_log(log: Path) -> None:
    """Refuse errors in a server's log.

    Raises:
        ServerFailed: There are some that are not known; with the first of them.
    """
    errors = find_errors(log.read_text(errors="replace"))
    if not errors:
        return
    shown = "\n".join(_shorten(error) for error in errors[:SHOWN])
    raise ServerFailed(f"the server logged {len(errors)} errors, see {log}:\n{shown}")


def find_errors(log: str) -> list[str]:
    """Return the entries of a server's log that are errors or have a traceback.

    Those that are known to appear on a sound server are left out.
    """
    return [
        entry
        for entry in _entries(log)
        if _is_error(entry) and not any(known.search(entry) for known in KNOWN)
    ]


def _entries(log: str) -> Iterator[str]:
    lines: list[str] = []
    for line in log.splitlines():
        if ENTRY.match(line) and lines:
            yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def _is_error(entry: str) -> bool:
    level = ENTRY.match(entry)
    return TRACEBACK in entry or (level is not None and level[1] in ("ERROR", "CRITICAL"))


def _shorten(entry: str) -> str:
    lines = entry.rstrip().splitlines()
    if len(lines) > FIRST_LINES + LAST_LINES:
        lines[FIRST_LINES:-LAST_LINES] = ["  ..."]
    return "\n".join(lines)
