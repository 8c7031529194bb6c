"""Cancelling child runs, so that none outlives its parent."""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled

from deployments.runtime._patience import read_all

# Tells everybody who could cancel a child of an ended parent not to.
LEAVE_RUNNING = "leave-running"

UNFINISHED: list[StateType] = sorted(set(StateType) - TERMINAL_STATES)
ALIVE: list[StateType] = [state for state in UNFINISHED if state != StateType.CANCELLING]

# How long a worker may take to end a run that was cancelled before it started.
GRACE_SECONDS = 10.0
LOOK_SECONDS = 1.0


async def cancel_run(client: PrefectClient, flow_run_id: UUID) -> None:
    """Ask the server to cancel a run; its worker stops the process, if there is one."""
    # Cancelling, not Cancelled: the latter would leave the process running. The server makes
    # Cancelled of it at once where no process exists (BypassCancellingFlowRunsWithNoInfra).
    cancelling = State[Any](type=StateType.CANCELLING, name="Cancelling")
    with contextlib.suppress(ObjectNotFound):  # deleted: nothing is left to cancel
        await client.set_flow_run_state(flow_run_id, cancelling)


def never_started(run: FlowRun) -> bool:
    """Tell whether a run is being cancelled that had not started.

    It will never run: the server refuses Running (EnforceCancellingToCancelledTransition). But
    where its process came up after that, or its worker is gone, nobody calls it Cancelled.
    """
    return run.state_type == StateType.CANCELLING and run.start_time is None


async def settle(client: PrefectClient, run: FlowRun) -> bool:
    """Call a run Cancelled that has not started, and was asked to end `GRACE_SECONDS` ago.

    Returns:
        Whether it is settled; where not, it is still to wait for.
    """
    assert run.state is not None  # noqa: S101 - one that is being cancelled has a state
    if (datetime.now(UTC) - run.state.timestamp).total_seconds() < GRACE_SECONDS:
        return False
    with contextlib.suppress(ObjectNotFound):
        message = "It was cancelled before it had started"
        await client.set_flow_run_state(run.id, Cancelled(message=message))
    return True


async def read_children(
    client: PrefectClient, parent_id: UUID, states: list[StateType]
) -> list[FlowRun]:
    """Return the children of a parent run in some states, less those that are left running."""
    runs = await read_all(
        client,
        FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent_id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
        ),
    )
    return [run for run in runs if LEAVE_RUNNING not in run.tags]


async def cancel_children(client: PrefectClient, parent_id: UUID) -> list[FlowRun]:
    """Cancel every child run of a parent run that is not final, and return them.

    Those that carry the tag `LEAVE_RUNNING` are left alone. Those that have started are ended
    by their workers, later.
    """
    cancelled: dict[UUID, FlowRun] = {}
    # Each pass reads those that are still alive, so that none is missed that is created or
    # retried meanwhile. It ends when the server refuses to cancel the rest.
    while fresh := [
        run for run in await read_children(client, parent_id, ALIVE) if run.id not in cancelled
    ]:
        for run in fresh:
            if run.deployment_id is None:  # a plain subflow: no worker would end it
                await cancel_children(client, run.id)
                await client.set_flow_run_state(run.id, Cancelled())
            else:
                await cancel_run(client, run.id)
            cancelled[run.id] = run
    await _settle_children(client, parent_id)
    return list(cancelled.values())


async def _settle_children(client: PrefectClient, parent_id: UUID) -> None:
    while True:
        cancelling = await read_children(client, parent_id, [StateType.CANCELLING])
        starting = [run for run in cancelling if never_started(run)]
        if all([await settle(client, run) for run in starting]):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def cancel_children_hook(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the children of a parent that crashed or was cancelled.

    Prefect runs it on the worker's side, after the parent's own process is gone.
    """
    async with get_client() as client:
        runs = await cancel_children(client, flow_run.id)
    if runs:
        flow_run_logger(flow_run, flow).warning(
            "This parent is %s: cancelled %s", state.name, name_all(runs)
        )


def name_all(runs: list[FlowRun]) -> str:
    """Count and name runs."""
    count = "1 child" if len(runs) == 1 else f"{len(runs)} children"
    return f"{count}: {', '.join(sorted(run.name for run in runs))}"
