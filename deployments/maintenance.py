"""A flow that cleans up where a process is gone: each deploy has it run when a run has ended."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Pending

from deployments.runs import (
    ALIVE,
    LEAVE_RUNNING,
    PAUSES,
    RESTART,
    UNFINISHED,
    cancel_children,
    count_restarts,
    may_restart,
    read_children,
    read_ends,
    wait_until_cancelled,
    will_restart,
)

# A worker calls a run Crashed once more after its hooks (`_submit_run_and_capture_errors`), which
# must not hit the next attempt. Then it tells that the process has ended, if it is still there.
LAST_WORD = timedelta(seconds=20)
# So long may a process go on that was told to end: `_warm_process.py`.
LAST_BREATH = timedelta(seconds=6)


@flow(flow_run_name="clean up after {parent}")
async def cancel_orphans(parent: str) -> list[str]:
    """Restart a durable run that crashed; or cancel the children that a run has left behind.

    Args:
        parent: The id of the flow run; or its resource id, as events have it.

    Returns:
        The names of those that were cancelled.
    """
    async with get_client() as client:
        run_id = UUID(parent.removeprefix("prefect.flow-run."))
        with contextlib.suppress(ObjectNotFound):
            run = await client.read_flow_run(run_id)
            if await will_restart(client, run):
                await _wait_for_last_word(client, run)
                await _restart(client, run_id)
        return sorted(await _cancel_orphans(client, run_id))


async def _cancel_orphans(client: PrefectClient, parent_id: UUID) -> set[str]:
    with contextlib.suppress(ObjectNotFound):  # deleted: nobody knows which were its children
        parent = await client.read_flow_run(parent_id)
        if parent.state_type in ALIVE or await will_restart(client, parent):
            return set()  # it goes on with its children
    runs = await cancel_children(client, parent_id)
    names = {run.name for run in runs}
    # A child may itself be a parent whose worker is gone, too.
    for run in await read_children(client, [parent_id], UNFINISHED):
        names |= await _cancel_orphans(client, run.id)
    await wait_until_cancelled(client, parent_id, runs, get_run_logger())
    return names


async def _wait_for_last_word(client: PrefectClient, run: FlowRun) -> None:
    assert run.state is not None  # noqa: S101 - it is Crashed
    crashed = run.state.timestamp
    await asyncio.sleep(max(0, (crashed + LAST_BREATH - datetime.now(UTC)).total_seconds()))
    while datetime.now(UTC) < crashed + LAST_WORD:
        if (await read_ends(client, [run.id])).get(run.id, crashed) > crashed:
            return
        await asyncio.sleep(1)


async def _restart(client: PrefectClient, run_id: UUID) -> None:
    """Schedule a durable run again, unless somebody else has done something about it."""
    # Before its state: a restart that somebody else begins from here on has the same number.
    number = await count_restarts(client, run_id) + 1
    run = await client.read_flow_run(run_id)
    if run.state is None or not may_restart(run) or number > len(PAUSES):
        return
    logger = get_run_logger()
    if completed := await _completed_before(client, run_id):
        logger.info("%s had completed when its process was ended", run.name)
        # `set_flow_run_state` would drop where the result is (`to_state_create`).
        fields = {"type", "name", "message", "data", "state_details"}
        body = {"state": completed.model_dump(mode="json", include=fields)}
        path = {"id": run_id}
        await client.request("POST", "/flow_runs/{id}/set_state", path_params=path, json=body)
        return
    # The second of two is refused (PreventPendingTransitions), or schedules the same restart anew.
    # Who comes after a retry, or a cancellation, is refused, too. It may have to wait for a slot.
    pending: State[Any] = Pending(message="It is being restarted")
    claim = await client.set_flow_run_state(run_id, pending)
    waits = claim.state is not None and claim.state.is_scheduled()
    if claim.status != SetStateStatus.ACCEPT and not waits:
        return
    # The old process can't be cancelled any more. The client can't send null.
    gone = {"infrastructure_pid": None}
    await client.request("PATCH", "/flow_runs/{id}", path_params={"id": run_id}, json=gone)
    # Only now: a parent that ends from here on cancels it.
    if await _is_orphan(client, run):
        await client.set_flow_run_state(run_id, Cancelled(message="Its parent has ended"))
        return
    message = f"{RESTART}{number} of {len(PAUSES)}: {run.state.message}"
    due = datetime.now(UTC) + timedelta(seconds=PAUSES[number - 1])
    await client.set_flow_run_state(run_id, AwaitingRetry(scheduled_time=due, message=message))
    logger.warning("%s: %s", run.name, message)


async def _completed_before(client: PrefectClient, run_id: UUID) -> State[Any] | None:
    """Return the Completed of an attempt that was called Crashed after it.

    Prefect's engine does so where SIGTERM reaches a process that is about to end.
    """
    completed = None
    for state in sorted(await client.read_flow_run_states(run_id), key=lambda one: one.timestamp):
        if state.is_completed():
            completed = state
        elif state.type != StateType.CRASHED:
            completed = None
    return completed


async def _is_orphan(client: PrefectClient, run: FlowRun) -> bool:
    if run.parent_task_run_id is None or LEAVE_RUNNING in run.tags:
        return False
    with contextlib.suppress(ObjectNotFound):
        task_run = await client.read_task_run(run.parent_task_run_id)
        parent = await client.read_flow_run(task_run.flow_run_id)  # type: ignore[arg-type]
        ended = parent.state is not None and parent.state.is_final()
        return ended and not await will_restart(client, parent)
    return True
