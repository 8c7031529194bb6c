"""Cancelling runs, so that no child outlives its parent.

`cancel_run` and `cancel_children` ask for it. Then workers end what has started, and the server
what no worker has taken. Between the two is what a worker has taken and not started yet:
`confirm_cancelled` ends that once it can't start any more.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from logging import Logger
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.filters import EventFilter
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging.loggers import LoggingAdapter
from prefect.states import Cancelled, to_state_create
from prefect.utilities.collections import batched_iterable

from deployments.runs._client import read_all
from deployments.runs._restart import will_restart

# Tells everybody who could cancel a child of an ended parent not to.
LEAVE_RUNNING = "leave-running"

UNFINISHED: list[StateType] = sorted(set(StateType) - TERMINAL_STATES)
ALIVE: list[StateType] = [state for state in UNFINISHED if state != StateType.CANCELLING]

# By it a worker tells that a run's process has ended. What it says of the run comes soon after.
EXECUTED = "prefect.worker.executed-flow-run"
EVENTS = 50  # more at once the server refuses, also what `read_events` asks for by itself
WORD_TIME = timedelta(seconds=5)
# So late may a run start that a worker has taken, before an automation calls it crashed.
START_TIME = timedelta(seconds=600)
LOOK_SECONDS = 1.0
# So many runs one request cancels at most: the server refuses more.
TOGETHER = 50
# So many names a line of a log has.
NAMES = 20


async def cancel_run(client: PrefectClient, flow_run_id: UUID) -> None:
    """Ask the server to cancel a run; its worker stops the process, if there is one."""
    with contextlib.suppress(ObjectNotFound):  # deleted: nothing is left to cancel
        answer = await client.set_flow_run_state(flow_run_id, _cancelling())
        if answer.status == SetStateStatus.ABORT and await will_restart(
            client, await client.read_flow_run(flow_run_id)
        ):
            message = "It was cancelled before it was restarted"
            await client.set_flow_run_state(flow_run_id, Cancelled(message=message))


def _cancelling() -> State[Any]:
    # Not Cancelled: that would leave the process running. The server makes Cancelled of it at
    # once where no process exists (BypassCancellingFlowRunsWithNoInfra).
    return State(type=StateType.CANCELLING, name="Cancelling")


async def cancel_runs(client: PrefectClient, run_ids: Iterable[UUID]) -> None:
    """Do what `cancel_run` does, for many runs with each request."""
    for some in batched_iterable(run_ids, TOGETHER):
        for run_id in await _cancel_together(client, some) if len(some) > 1 else some:
            await cancel_run(client, run_id)


async def _cancel_together(client: PrefectClient, run_ids: Sequence[UUID]) -> Sequence[UUID]:
    """Ask the server to cancel runs, and return those that are to be asked for one by one."""
    body = {
        "flow_runs": {"id": {"any_": [str(run_id) for run_id in run_ids]}},
        "state": to_state_create(_cancelling()).model_dump(mode="json", exclude_unset=True),
    }
    try:  # the client has no method for this
        answer = await client.request(
            "POST",
            "/flow_runs/bulk_set_state",  # type: ignore[arg-type]
            json=body,
        )
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (404, 405):
            raise
        return run_ids  # the server does not know it
    # Of one that failed, such as where the database was locked, it says that it was aborted.
    results = answer.json()["results"]
    return [UUID(each["flow_run_id"]) for each in results if each["status"] == "ABORT"]


async def cancel_children(client: PrefectClient, parent_id: UUID) -> list[FlowRun]:
    """Ask for the end of every child run of a parent run that is not final, and return them.

    Those that carry the tag `LEAVE_RUNNING` are left alone. Those that have started are ended
    by their workers, later.
    """
    cancelled: dict[UUID, FlowRun] = {}
    # Each pass reads those that are still alive, so that none is missed that is created or
    # retried meanwhile. It ends when the server refuses to cancel the rest.
    while fresh := [
        run for run in await read_children(client, [parent_id], ALIVE) if run.id not in cancelled
    ]:
        cancelled |= {run.id: run for run in fresh}
        await cancel_runs(client, [run.id for run in fresh if run.deployment_id])
        for run in fresh:
            if run.deployment_id is None:  # a plain subflow: no worker would end it
                cancelled |= {below.id: below for below in await cancel_children(client, run.id)}
                await client.set_flow_run_state(run.id, Cancelled())
    return list(cancelled.values())


async def read_children(
    client: PrefectClient, parent_ids: Iterable[UUID], states: list[StateType]
) -> list[FlowRun]:
    """Return the children of parent runs in some states, less those that are left running."""
    of_parents = {
        "parent_flow_run_id": {"any_": [*parent_ids]},
        "state": {"type": {"any_": states}},
    }
    runs = await read_all(client, FlowRunFilter.model_validate(of_parents))
    return [run for run in runs if LEAVE_RUNNING not in run.tags]


async def wait_until_cancelled(
    client: PrefectClient,
    parent_id: UUID,
    cancelled: Iterable[FlowRun],
    logger: LoggingAdapter | Logger,
) -> None:
    """Wait until no child that `cancel_children` asked to end may still start."""
    parent_ids = [parent_id, *(run.id for run in cancelled if run.deployment_id is None)]
    told = False
    while starting := [
        run
        for run in await read_children(client, parent_ids, [StateType.CANCELLING])
        if run.start_time is None
    ]:
        if not told:
            logger.info("Their worker may still start, in vain, %s", name_all(starting))
            told = True
        await confirm_cancelled(client, starting)
        await asyncio.sleep(LOOK_SECONDS)


async def confirm_cancelled(client: PrefectClient, runs: Iterable[FlowRun]) -> None:
    """Call those runs Cancelled that are to end, had not started, and can't start any more.

    A busy worker starts the process of a run much later than it took the run. The server refuses
    Running after Cancelling (EnforceCancellingToCancelledTransition), but not after Cancelled: so
    the process comes up in vain, and nobody calls the run Cancelled. Nor where the worker is gone.
    """
    # When it was asked to end.
    since = {
        run.id: run.state.timestamp
        for run in runs
        if run.state and run.state.is_cancelling() and run.start_time is None
    }
    if not since:
        return
    ended = await read_ends(client, since)
    now = datetime.now(UTC)
    for run_id, asked in since.items():
        # An earlier end is that of an earlier attempt.
        end = ended.get(run_id, asked)
        if asked < end < now - WORD_TIME or asked < now - START_TIME:
            with contextlib.suppress(ObjectNotFound):
                message = "It was cancelled before it had started"
                await client.set_flow_run_state(run_id, Cancelled(message=message))


async def read_ends(client: PrefectClient, run_ids: Iterable[UUID]) -> dict[UUID, datetime]:
    """Return when workers last told that the processes of runs have ended."""
    ids = {f"prefect.flow-run.{run_id}": run_id for run_id in run_ids}
    of_these = {"event": {"name": [EXECUTED]}, "related": {"id": [*ids]}}
    events = await client.read_events(EventFilter.model_validate(of_these), limit=EVENTS)
    return {
        ids[resource.id]: event.received
        for event in reversed(events.events)  # the latest is the first
        for resource in event.related
        if resource.id in ids
    }


def name_all(runs: list[FlowRun]) -> str:
    """Count runs, and name some."""
    count = "1 child" if len(runs) == 1 else f"{len(runs)} children"
    names = ", ".join(sorted(run.name for run in runs)[:NAMES])
    return f"{count}: {names}{' …' if len(runs) > NAMES else ''}"
