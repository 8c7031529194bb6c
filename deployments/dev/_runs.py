"""The runs on the server of `dev`: a line when one starts and ends, and the truth of lost ones."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for
from rich.console import Console

from deployments.deploy import QUEUE, state_of_lost
from deployments.runs import (
    ALIVE,
    DURABLE,
    PatientClient,
    cancel_children,
    get_eager_client,
    read_all,
    read_everything,
    will_restart,
)

RUNNING = [StateType.RUNNING, StateType.CANCELLING]
TAKEN = [StateType.PENDING, *RUNNING]
LOST = "Its process ended with the last `make dev`"
LOOK_SECONDS = 1.0
# So long before the server was asked a run may have ended that it did not tell.
LATE = timedelta(seconds=10)
# What an answer of the server may take, and how long it may be away.
ANSWER_SECONDS, GIVE_UP_SECONDS = 30.0, 600.0


async def tell_runs(console: Console) -> None:
    """Print a line for each run without a parent that starts or ends from now on, for ever."""
    since = begun = datetime.now(UTC)
    running, told = set[UUID](), set[tuple[UUID, datetime | None]]()

    def tell(run: FlowRun, what: str, color: str) -> None:
        line = f"{datetime.now():%H:%M:%S}  {run.name} {what}  {url_for(run)}"
        console.print(line, style=color, soft_wrap=True)

    async with get_eager_client() as client:
        server = PatientClient(client, GIVE_UP_SECONDS, RuntimeError, console.print, ANSWER_SECONDS)
        while True:
            now = datetime.now(UTC)
            # In this order: what ends meanwhile is among both.
            started = await _read_roots(server, state=_of_types(RUNNING))
            ended = await _read_roots(server, end_time={"after_": since})
            ended = [run for run in ended if (run.id, run.end_time) not in told]
            for run in {run.id: run for run in (*started, *ended)}.values():
                if run.start_time and run.id not in running:
                    tell(run, "started", "blue")
            for run in ended:
                completed = run.state_type == StateType.COMPLETED
                tell(run, _describe_end(run), "green" if completed else "red")
            running = {run.id for run in started}
            told |= {(run.id, run.end_time) for run in ended}
            since = max(begun, now - LATE)
            await asyncio.sleep(LOOK_SECONDS)


def _describe_end(run: FlowRun) -> str:
    state, seconds = run.state, run.total_run_time.total_seconds()
    took = f" after {seconds:.1f} s" if run.start_time else ""
    if state is None or state.is_completed() or not state.message:
        return f"{run.state_name}{took}"
    return f"{run.state_name}{took}: {' '.join(state.message.split())}"


async def _read_roots(server: PatientClient, **which: Any) -> list[FlowRun]:
    which["parent_task_run_id"] = {"is_null_": True}
    runs = await server.ask(lambda client: _read(client, **which))
    return [run for run in runs if run.work_queue_name != QUEUE]


async def end_lost_runs(client: PrefectClient) -> str | None:
    """Tell the server which runs no worker runs any more, and cancel children of ended parents.

    What cleans up begins anew, and durable runs are restarted.

    Returns:
        How many they were, in a line, if there were any.
    """
    pools = await read_everything(client.read_work_pools)
    names = {pool.name for pool in pools if pool.type == "process"}
    taken = await _read(client, state=_of_types(TAKEN))
    lost = [run for run in taken if run.work_pool_name in names]
    for run in lost:
        await client.set_flow_run_state(run.id, state_of_lost(run, LOST))
    crashed = _of_types([StateType.CRASHED])
    for run in await _read(client, state=crashed, tags={"all_": [DURABLE]}):
        # The server's last process may not have acted on that. Of what came before it, this one
        # knows no events, and would wait for them for 15 minutes (`CausalOrdering`).
        if await will_restart(client, run):
            with contextlib.suppress(ObjectNotFound):
                name, same = f"cancel-orphans/{run.work_pool_name}", {"parent": str(run.id)}
                await arun_deployment(name, client=client, parameters=same, timeout=0)
    # Also of parents that had a moment left to say so themselves, and no more.
    waiting = await _read(client, state=_of_types(ALIVE), parent_task_run_id={"is_null_": False})
    task_ids = {"id": {"any_": [run.parent_task_run_id for run in waiting]}}
    read_tasks = functools.partial(
        client.read_task_runs, task_run_filter=TaskRunFilter.model_validate(task_ids)
    )
    parent_ids = {task.flow_run_id for task in await read_everything(read_tasks)}
    parents = await _read(client, id={"any_": [*parent_ids]}, state=_of_types(TERMINAL_STATES))
    children = [
        child
        for run in parents
        if not await will_restart(client, run)
        for child in await cancel_children(client, run.id)
    ]
    if not (lost or children):
        return None
    return (
        f"Runs that ended with the last `make dev`, now Crashed or Cancelled: {len(lost)}; "
        f"children that had not started, now Cancelled: {len(children)}"
    )


async def _read(client: PrefectClient, **which: Any) -> list[FlowRun]:
    return await read_all(client, FlowRunFilter.model_validate(which))


def _of_types(types: Iterable[StateType]) -> dict[str, Any]:
    return {"type": {"any_": [*types]}}
