"""The directory of `dev`, and who is up there: locks tell, which end with their processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import IO

from prefect.context import refresh_global_settings_context

from deployments.project import ROOT

HOME = ROOT / ".dev"
# Held by `dev` alone.
DEV = HOME / "dev.lock"
# Held by each of its processes, too. It has the server's URL, and a line for each process's id.
PROCESSES = HOME / "processes.lock"


@contextlib.contextmanager
def claim(url: str) -> Iterator[IO[str]]:
    """Be the only `dev` of this checkout, and yield what its processes are to hold open.

    Raises:
        RuntimeError: Another one is up, or its processes are.
    """
    HOME.mkdir(exist_ok=True)
    with DEV.open("a") as mine, PROCESSES.open("a+") as processes:
        if not _lock(mine):
            raise RuntimeError(
                f"`make dev` is up already, at {_read()[0]}: Ctrl-C in its terminal ends it"
            )
        if not _lock(processes):
            raise RuntimeError(
                f"`make dev` was killed, and what it started is up still, at {_read()[0]}: "
                f"end it by `kill {' '.join(filter(_leads, _read()[1:]))}`"
            )
        processes.truncate(0)
        processes.write(f"{url}\n")
        processes.flush()
        yield processes


def use_server() -> str | None:
    """Use the server of `dev`, where one is up in this checkout and no other is named.

    One of a profile is not named: it is meant for all directories.

    Returns:
        Its URL, if it is used.
    """
    if os.environ.get("PREFECT_API_URL") or not PROCESSES.exists():
        return None
    with PROCESSES.open() as processes:
        if _lock(processes, fcntl.LOCK_SH):
            return None
    url = _read()[0]
    for name in ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):  # of other servers
        os.environ.pop(name, None)
    os.environ.update(PREFECT_API_URL=f"{url}/api", PREFECT_HOME=str(HOME))
    refresh_global_settings_context()
    return url


def _lock(file: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read() -> list[str]:
    return PROCESSES.read_text().splitlines() or ["a port that it is about to tell"]


def _leads(process_id: str) -> bool:
    """Tell whether a process is one of those that are started as leaders of their group."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(int(process_id)) == int(process_id)
    return False
