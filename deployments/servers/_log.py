"""What a server's log says about it: a background service that fails tells nobody else."""

from __future__ import annotations

import re
from pathlib import Path

# Where an entry of Prefect's log begins; the lines up to the next one belong to it.
ENTRY = re.compile(r"^(?=\d\d:\d\d:\d\d\.\d{3} \| )", re.MULTILINE)
ERROR = re.compile(r"\A[\d:.]+ \| (ERROR|CRITICAL) |Traceback \(most recent call last\):")
# Logged by a sound server. An automation may be deployed anew while a service looks at it: the next
# look, seconds later, is at the new one (`evaluate_proactive_triggers`).
# What it cancels, when it stops, may be returning a connection: the pool closes that instead
# (SQLAlchemy's `_finalize_fairy`).
SOUND = re.compile(
    r"^AssertionError: Trigger\._automation has been garbage collected$"
    r"|\.AsyncAdaptedQueuePool - Exception during reset or similar\n(.*\n)+"
    r"asyncio\.exceptions\.CancelledError$",
    re.MULTILINE,
)
SHOWN, FIRST_LINES, LAST_LINES = 3, 3, 15


class ServerFailed(Exception):
    """Tell which errors a server has logged."""


def check_server_log(log: Path) -> None:
    """Refuse errors in a server's log.

    Raises:
        ServerFailed: There are some; with the first of them, less the middle of long ones.
    """
    errors = find_errors(log.read_text(errors="replace"))
    if not errors:
        return
    shown = []
    for error in errors[:SHOWN]:
        lines = error.splitlines()
        if len(lines) > FIRST_LINES + LAST_LINES:
            lines[FIRST_LINES:-LAST_LINES] = ["  ..."]
        shown += lines
    raise ServerFailed("\n".join([f"the server logged {len(errors)} errors, see {log}:", *shown]))


def find_errors(log: str) -> list[str]:
    """Return what a log has of errors and tracebacks, entry by entry, less `SOUND`."""
    return [
        entry.rstrip()
        for entry in ENTRY.split(log)
        if ERROR.search(entry) and not SOUND.search(entry)
    ]
