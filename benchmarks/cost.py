"""What processes take, as Linux tells it: those of a worker, and those of a server's stack."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Of proc(5)'s stat, counted from the process's parent: its own time, and that of ended children.
OWN, ENDED = slice(10, 12), slice(12, 14)
# A server rests that takes less than a quarter of a core for so long.
REST_SECONDS = 2.0
# The command line of a run; forks have that of the warm process.
RUN = r"prefect\.engine|_warm_process\.py"
# Of what a server with Postgres and Redis is made of, and of who uses it here: their command lines.
STACK = {
    "servers": r"prefect\x00server\x00start\x00",
    "services": r"prefect\x00server\x00services\x00",
    "postgres": r"^(\S*/)?postgres[:\x00]",
    "redis": r"^(\S*/)?redis-server\b",
    "nginx": r"^nginx: ",
    "simulated_worker": r"benchmarks\.simulated_worker\x00",
}


def cpu_seconds(worker: int, server: int) -> dict[str, float]:
    """Return the CPU time so far of a worker, of its runs that have ended, and of the server.

    And of Postgres and Redis, as far as they are on this machine.
    """
    warm, stack = _warm(worker), stack_seconds()
    return {
        "children": _cpu(worker, ENDED) + sum(_cpu(pid, OWN) + _cpu(pid, ENDED) for pid in warm),
        "worker": _cpu(worker, OWN),
        "server": _cpu(server, OWN),
        "postgres": stack["postgres"],
        "redis": stack["redis"],
    }


def stack_seconds() -> dict[str, float]:
    """Return the CPU time so far of the parts of a stack, all that are on this machine."""
    return {
        part: sum(_cpu(pid, OWN) + _cpu(pid, ENDED) for pid in _find(command))
        for part, command in STACK.items()
    }


def wait_for_rest(server: int) -> None:
    """Wait until a server has done what it still does for earlier runs."""
    used = REST_SECONDS
    while used > REST_SECONDS / 4:
        before = _cpu(server, OWN)
        time.sleep(REST_SECONDS)
        used = _cpu(server, OWN) - before


def wait_for_ends(worker: int) -> None:
    """Wait until the processes of runs, and what keeps them, have ended."""
    while set(map(_parent, _find(RUN))) & {worker, *_warm(worker)}:
        time.sleep(0.1)


def megabytes(worker: int) -> dict[str, float]:
    """Return the memory of the run that a worker has, and of the warm process, if that has it.

    `alone` is what no other process shares.
    """
    warm = _warm(worker)
    keepers = [pid for pid in _find(RUN) if _parent(pid) in warm]
    (run,) = [pid for pid in _find(RUN) if _parent(pid) in (keepers or [worker])]
    found = {"run": _memory(run, "Rss"), "run_alone": _memory(run, "Private_")}
    return found | ({"warm": _memory(warm[0], "Rss")} if warm else {})


def _warm(worker: int) -> list[int]:
    found = _find(rf"_warm_process\.py\x00.*\x00{worker}\x00$")
    return [pid for pid in found if _parent(pid) not in found]  # a fork's is the same


def _find(command: str) -> list[int]:
    """Return the ids of the processes whose command line has a pattern."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if re.search(command, (process / "cmdline").read_text()):
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return stat[0] if stat else 0


def _cpu(pid: int, whose: slice) -> float:
    return sum(_stat(pid)[whose]) / TICKS


def _stat(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return [int(each) for each in text.rpartition(")")[2].split()[1:]]


def _memory(pid: int, what: str) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(rf"(?m)^{what}\w*:\s+(\d+) kB", text))) / 1024
