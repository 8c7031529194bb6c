"""One parent, in a process of its own and measured from inside: `fan_out.py` runs it.

python -m benchmarks.parent {plain,in process,ours} {create,idle,wait,real} DEPLOYMENT CHILDREN

It prints one JSON object.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.runtime import flow_run

from benchmarks.flows import one
from deployments import child, parent_flow

Call = Callable[[int], Awaitable[Any]]

IDLE_SECONDS = 30.0
PAGE = 200
# What a child's time is made of, from its call until the parent goes on.
PARTS = ("creation", "limit of 8", "worker's poll", "start", "engine", "news of its end")
PLACES = 8  # of the queues that have a limit, in prefect.yaml


class Requests(logging.Handler):
    """Count the requests of this process to the API, which httpx logs."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += record.getMessage().startswith("HTTP Request:")


def plain(deployment: str, *, wait: bool) -> Call:
    """Return the pattern that circulates."""

    async def call(number: int) -> None:
        run = await arun_deployment(
            f"one/{deployment}", parameters={"number": number}, timeout=None if wait else 0
        )
        if wait:
            await run.state.aresult()  # type: ignore[union-attr]

    return call


def in_process(_deployment: str, *, wait: bool) -> Call:
    """Return the pattern of those who give up on deployments: a subflow in this process."""
    assert wait
    return one


def ours(deployment: str, *, wait: bool) -> Call:
    """Return a call of this template."""

    async def call(number: int) -> None:
        if wait:
            await child(one, deployment=deployment)(number)
        else:
            await child(one, deployment=deployment, leave_running=True).submit(number)

    return call


PATTERNS = {"plain": plain, "in process": in_process, "ours": ours}


async def main(side: str, way: str, deployment: str, count: int, at_once: int) -> dict[str, Any]:
    """Run a parent of so many children, so many of them at once, and return what it took."""
    requests = Requests()
    logging.getLogger("httpx").addHandler(requests)
    logging.getLogger("httpx").setLevel(logging.INFO)
    call = PATTERNS[side](deployment, wait=way != "create")
    make: Any = parent_flow if side == "ours" else flow
    figures: dict[str, Any] = {}
    went_on: dict[int, float] = {}

    turn = asyncio.Semaphore(at_once)

    async def timed(number: int) -> None:
        async with turn:
            await call(number)
            went_on[number] = time.time()

    async def fan_out() -> tuple[str, float]:
        start, cpu = time.time(), time.process_time()
        calls = [asyncio.ensure_future(timed(number)) for number in range(count)]
        if way == "idle":
            await idle(calls)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        figures["seconds"] = time.time() - start
        figures["cpu_parent"] = time.process_time() - cpu
        figures["requests"] = requests.count
        if way != "idle":
            figures["failures"] = [repr(end) for end in ends if isinstance(end, Exception)]
        return str(flow_run.id), start

    async def idle(calls: Sequence[asyncio.Future[None]]) -> None:
        async with get_client() as client:
            while len(await read_children(client, UUID(flow_run.id))) < count:  # noqa: ASYNC110
                await asyncio.sleep(1)
        before = requests.count
        await asyncio.sleep(IDLE_SECONDS)
        figures["idle_requests_per_second"] = (requests.count - before) / IDLE_SECONDS
        for waiting in calls:
            waiting.cancel()

    parent_id, start = await make(name=f"{side}-parent")(fan_out)()
    figures["megabytes"] = peak_megabytes()
    if way in ("wait", "real"):
        async with get_client() as client:
            children = await read_children(client, UUID(parent_id))
            figures["runs"] = len(children)
            runs = [
                (run, went_on[number])
                for run in children
                if (number := run.parameters["number"]) in went_on
            ]
            figures["delays"] = [gone_on - run.end_time.timestamp() for run, gone_on in runs]
            if way == "real" and runs:
                places = count if deployment == "plain" else PLACES
                figures["parts"] = await split(client, start, runs, places)
    return figures


async def split(
    client: PrefectClient, start: float, runs: Sequence[tuple[FlowRun, float]], places: int
) -> dict[str, float]:
    """Return the mean seconds of each part of a child's time, by the times of its run's states.

    Args:
        client: The client to read with.
        start: When the children were called.
        runs: Their runs, and when the parent went on.
        places: So many may run at once.
    """
    children = []
    for run, went_on in runs:
        states = await client.read_flow_run_states(run.id)
        first = {state.type: state.timestamp.timestamp() for state in reversed(states)}
        pending = first[StateType.PENDING]
        # In process, a run begins as pending, and then nothing has to start.
        created = first.get(StateType.SCHEDULED, pending)
        running = pending if created == pending else first[StateType.RUNNING]
        children.append((pending, created, running, first[StateType.COMPLETED], went_on))
    ends = sorted(completed for *_, completed, _ in children)
    parts = []
    for index, (pending, created, *later) in enumerate(sorted(children)):
        place = ends[index - places] if index >= places else created
        times = (start, created, min(max(place, created), pending), pending, *later)
        parts.append([end - begin for begin, end in itertools.pairwise(times)])
    return dict(zip(PARTS, map(statistics.mean, zip(*parts, strict=True)), strict=True))


def peak_megabytes() -> float | None:
    """Return the most memory that this process had, where Linux tells it."""
    # Not getrusage: its maximum includes the process that started this one.
    if not (status := Path("/proc/self/status")).exists():
        return None
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(peak) / 1024


async def read_children(client: PrefectClient, parent_id: UUID) -> list[Any]:
    """Return all children of a parent."""
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent_id]))
    runs: list[Any] = []
    while page := await client.read_flow_runs(
        flow_run_filter=children, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=len(runs)
    ):
        runs += page
    return runs


if __name__ == "__main__":
    side, way, deployment, *numbers = sys.argv[1:]
    print(json.dumps(asyncio.run(main(side, way, deployment, *map(int, numbers)))))
