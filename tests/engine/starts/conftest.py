"""Starts of runs that there are not, by this process in place of a worker."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from deployments.project import ROOT

STUB = [sys.executable, "-I", "-S", str(ROOT / "deployments" / "warm_start.py")]


def worker_env() -> dict[str, str]:
    """This process's environment as it was when it started, without what is Prefect's."""
    items = Path("/proc/self/environ").read_bytes().split(b"\0")[:-1]
    env = dict(os.fsdecode(each).split("=", 1) for each in items)
    return {name: value for name, value in env.items() if not name.startswith("PREFECT_")}


def start(*command: str, env: dict[str, str] | None = None, **options: Any) -> str:
    """Start a run that there is not, and return what that says."""
    debug = {"PREFECT_LOGGING_LEVEL": "DEBUG"}
    started = subprocess.Popen(
        command or STUB,
        env=worker_env() | debug | (env or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **{"cwd": ROOT} | options,
    )
    error = started.communicate()[1]
    assert started.returncode == 1, error
    return error


def warm_processes(worker: int | None = None) -> list[int]:
    """Return the ids of a worker's warm processes, by default of this process."""
    found = forks_of_warm_processes(worker)
    return [pid for pid in found if parent_of(pid) not in {0, *found}]


def forks_of_warm_processes(worker: int | None = None) -> list[int]:
    """Return the ids of a worker's warm processes and of their forks."""
    end = f"\0{worker or os.getpid()}\0"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            command = (process / "cmdline").read_text()
            if "_warm_process.py" in command and command.endswith(end):
                found.append(int(process.name))
    return found


def parent_of(pid: int) -> int:
    """Return the id of a process's parent, and 0 if that process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
