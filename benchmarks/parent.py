"""One parent, in a process of its own and measured from inside: `fan_out.py` runs it.

python -m benchmarks.parent {plain,ours} {create,idle,wait} DEPLOYMENT CHILDREN

It prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.runtime import flow_run

from benchmarks.flows import one
from deployments import child, parent_flow

Call = Callable[[int], Awaitable[Any]]

IDLE_SECONDS = 30.0
PAGE = 200


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


def ours(deployment: str, *, wait: bool) -> Call:
    """Return a call of this template."""

    async def call(number: int) -> None:
        if wait:
            await child(one, deployment=deployment)(number)
        else:
            await child(one, deployment=deployment, leave_running=True).submit(number)

    return call


async def main(side: str, way: str, deployment: str, count: int) -> dict[str, Any]:
    """Run a parent of so many children, and return what it took."""
    requests = Requests()
    logging.getLogger("httpx").addHandler(requests)
    logging.getLogger("httpx").setLevel(logging.INFO)
    call = (ours if side == "ours" else plain)(deployment, wait=way != "create")
    make: Any = parent_flow if side == "ours" else flow
    figures: dict[str, Any] = {}
    went_on: dict[int, float] = {}

    async def timed(number: int) -> None:
        await call(number)
        went_on[number] = time.time()

    async def fan_out() -> str:
        start = time.perf_counter()
        calls = [asyncio.ensure_future(timed(number)) for number in range(count)]
        if way == "idle":
            await idle(calls)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        figures["seconds"] = time.perf_counter() - start
        figures["requests"] = requests.count
        if way != "idle":
            figures["failures"] = [repr(end) for end in ends if isinstance(end, Exception)]
        return str(flow_run.id)

    async def idle(calls: Sequence[asyncio.Future[None]]) -> None:
        async with get_client() as client:
            while len(await read_children(client, UUID(flow_run.id))) < count:  # noqa: ASYNC110
                await asyncio.sleep(1)
        before = requests.count
        await asyncio.sleep(IDLE_SECONDS)
        figures["idle_requests_per_second"] = (requests.count - before) / IDLE_SECONDS
        for waiting in calls:
            waiting.cancel()

    parent_id = UUID(await make(name=f"{side}-parent")(fan_out)())
    figures["megabytes"] = peak_megabytes()
    if way == "wait":
        async with get_client() as client:
            for run in await read_children(client, parent_id):
                number = run.parameters["number"]
                if number in went_on and run.end_time:
                    delay = went_on[number] - run.end_time.timestamp()
                    figures.setdefault("delays", []).append(delay)
    return figures


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
    side, way, deployment, count = sys.argv[1:]
    print(json.dumps(asyncio.run(main(side, way, deployment, int(count)))))
