"""Prefect's own command, for a server on SQLite that refuses no request and does not stand still.

On Python 3.11 the garbage collector, when it drops a cursor whose statement failed, waits until its
connection is free (`sqlite3_reset`, under a mutex). It waits in the event loop, for a connection
that waits for the lock, up to Prefect's `PRAGMA busy_timeout` of 60 s, while the lock's owner
waits for the event loop. In a thread of its own it holds nobody up. From Python 3.12 on, nothing
is left to drop.
"""

import gc
import itertools
import runpy
import sys
import threading
import time
from typing import Any

from prefect.server.database.configurations import SQLITE_BEGIN_MODE
from sqlalchemy import Engine, event

COLLECT_SECONDS = 5.0
# So rarely also what has lived for long: that takes half a second, and the server stands still.
RARELY = 12


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def take_turns(
    _connection: object, _cursor: object, statement: str, parameters: Any, *_: object
) -> tuple[str, Any]:
    """Let a transaction that may write wait for its turn before it reads.

    Deferred, it is refused where another one has written meanwhile (SQLITE_BUSY_SNAPSHOT): the
    request gets 503, as a worker's labels do (`update_flow_run_labels`). Prefect has mended some
    in this way (`mark_deployments_ready`).
    """
    if statement == "BEGIN DEFERRED":
        SQLITE_BEGIN_MODE.set(None)  # sessions within this one only read: they need no turn
        return "BEGIN IMMEDIATE", parameters
    return statement, parameters


def collect_garbage() -> None:
    """Collect what the interpreter would, for ever."""
    for turn in itertools.count(1):
        time.sleep(COLLECT_SECONDS)
        gc.collect(1 if turn % RARELY else 2)


if __name__ == "__main__":
    if sys.version_info < (3, 12):
        gc.disable()
        threading.Thread(target=collect_garbage, daemon=True).start()
    del sys.path[0]  # this folder
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
