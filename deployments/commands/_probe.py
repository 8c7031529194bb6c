"""A test run on each worker of a work pool, whose result is read from here."""

from __future__ import annotations

import asyncio
import re
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, Worker
from prefect.deployments import arun_deployment
from prefect.utilities.urls import url_for

from deployments import maintenance
from deployments.runtime import (
    Returns,
    Unreadable,
    cancel_run,
    explain_unstarted,
    online_workers,
    read_value,
)

# A flow of ours that does nothing when it is asked about a parent that does not exist.
PROBE = maintenance.cancel_orphans.name
# The label by which a worker says that it took a run.
WORKER = "prefect.worker.name"
# Who takes a run is not ours to say.
RUNS_PER_WORKER = 5
TAKE_SECONDS = 60.0
PROCESS_SECONDS = 60.0
CONTAINER_SECONDS = 300.0  # an image may have to be pulled
LOOK_SECONDS = 0.2
MESSAGE_LENGTH = 600
HEARTBEATS = 1.5  # they have a jitter of 0.3


async def probe_workers(client: PrefectClient, name: str) -> AsyncIterator[str]:
    """Run something harmless on each online worker, and read its result as a parent would.

    Args:
        client: Of the server.
        name: Of a deployment of the flow `PROBE`.

    Yields:
        One line for each worker whose run does not complete, whose result can't be read, or that
        took none.
    """
    deployment = await client.read_deployment_by_name(name)
    assert deployment.work_pool_name is not None  # noqa: S101 - each of our deployments has one
    pool = await client.read_work_pool(deployment.work_pool_name)
    in_process = pool.type == "process"
    runs: list[FlowRun] = []
    try:
        taken, idle = await _start_runs(client, name, pool.name, runs)
        if runs and not taken:
            yield f"{name} does not complete: {await _explain(client, runs[0])}"
            return
        image = deployment.job_variables.get("image")
        place = f", in image {image}" if image else ""
        deadline = time.monotonic() + (PROCESS_SECONDS if in_process else CONTAINER_SECONDS)
        in_volume = []
        for each in runs:
            if not (worker := _worker_of(each)):
                continue  # nobody took the last one
            run = await _wait(client, each, deadline, _is_final)
            if run.id != taken[worker].id:
                pass  # one of each worker tells enough
            elif run.state is None or not run.state.is_completed():
                reason = await _explain(client, run)
                yield f"{name} does not complete on worker {worker}{place}: {reason}"
            elif not in_process and not _in_block(run.state):
                in_volume.append(worker)  # `check_manifest` looks at it: only containers read it
            elif problem := await _find_unreadable(run.state):
                yield f"the result of {name} on worker {worker} {problem}: look at {url_for(run)}"
        if len(in_volume) > 1:
            yield (
                f"the results of {name} stay in a volume or directory on the machine of each of "
                f"its workers ({', '.join(sorted(in_volume))}): if that is not the same machine, "
                "set PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: see docker/README.md"
            )
        for left in idle:
            yield (
                f"worker {left.name} of work pool {pool.name} took none of {len(runs)} test runs, "
                "and is not checked: it is busy, at its limit, or works for other queues"
            )
    finally:
        for run in runs:
            await cancel_run(client, run.id)


async def _start_runs(
    client: PrefectClient, name: str, pool: str, runs: list[FlowRun]
) -> tuple[dict[str, FlowRun], list[Worker]]:
    """Start runs until each worker took one.

    Args:
        client: Of the server.
        name: Of the deployment.
        pool: Its work pool.
        runs: Gets all that were started.

    Returns:
        The first run of each worker by its name, and the workers that took none.
    """
    taken: dict[str, FlowRun] = {}
    idle = online = await online_workers(client, pool)
    while idle and len(runs) < RUNS_PER_WORKER * len(online):
        # Right after the last was taken, when another worker is likely to look next.
        run = await arun_deployment(
            name, client=client, parameters={"parent": str(uuid4())}, timeout=0, as_subflow=False
        )
        runs.append(run)
        runs[-1] = run = await _wait(client, run, time.monotonic() + TAKE_SECONDS, _worker_of)
        if not (worker := _worker_of(run)):
            break
        taken.setdefault(worker, run)
        idle = [each for each in idle if each.name not in taken]
    return taken, await _find_alive(client, pool, idle)


async def _wait(
    client: PrefectClient, run: FlowRun, deadline: float, true: Callable[[FlowRun], object]
) -> FlowRun:
    """Return a run once something is true of it, it is final, or time is up."""
    while True:
        run = await client.read_flow_run(run.id)
        if true(run) or _is_final(run) or time.monotonic() > deadline:
            return run
        await asyncio.sleep(LOOK_SECONDS)


def _worker_of(run: FlowRun) -> str | None:
    worker = run.labels.get(WORKER)
    return None if worker is None else str(worker)


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


async def _find_alive(client: PrefectClient, pool: str, workers: list[Worker]) -> list[Worker]:
    """Return those that send heartbeats: a worker that has stopped is online for a while."""
    seconds = max((each.heartbeat_interval_seconds or 0 for each in workers), default=0)
    deadline = time.monotonic() + HEARTBEATS * seconds
    alive: list[Worker] = []
    while len(alive) < len(workers) and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
        latest = {
            each.name: each.last_heartbeat_time for each in await online_workers(client, pool)
        }
        alive = [
            each
            for each in workers
            if latest.get(each.name) not in (None, each.last_heartbeat_time)
        ]
    return alive


async def _find_unreadable(state: State[Any]) -> str | None:
    try:
        await read_value(state, Returns.of(maintenance.cancel_orphans))
    except Unreadable as error:
        reason = _one_line(str(error))
        if _in_block(state):
            return reason
        return (
            f"{reason}: give parents and children one result storage: a shared "
            "PREFECT_LOCAL_STORAGE_PATH, or a block, PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"
        )
    return None


def _in_block(state: State[Any]) -> bool:
    return getattr(state.data, "storage_block_id", None) is not None


async def _explain(client: PrefectClient, run: FlowRun) -> str:
    """Say in a line in which state a run is, why, and where to look."""
    run = await client.read_flow_run(run.id)
    reasons = [run.state.message if run.state else None]
    reasons += [reason async for reason in explain_unstarted(client, [run])]
    reason = _one_line("; ".join(filter(None, reasons)))
    still = "" if _is_final(run) else "still "
    return (
        f"it is {still}{run.state_name}{f' ({reason})' if reason else ''}: look at {url_for(run)}"
    )


def _one_line(text: str) -> str:
    # A value that pydantic refused may be that of a block.
    shown = re.sub(r", input_value=.*?, input_type=", ", input_type=", text, flags=re.DOTALL)
    return textwrap.shorten(shown, MESSAGE_LENGTH, placeholder=" ...")
