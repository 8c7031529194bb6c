"""Cancelling child runs, so that none outlives its parent."""

from __future__ import annotations

import contextlib
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

# Tells everybody who could cancel a child of an ended parent not to.
LEAVE_RUNNING = "leave-running"

UNFINISHED: list[StateType] = sorted(set(StateType) - TERMINAL_STATES)
ALIVE: list[StateType] = [state for state in UNFINISHED if state != StateType.CANCELLING]


async def cancel_run(client: PrefectClient, flow_run_id: UUID) -> None:
    """Ask the server to cancel a run; its worker stops the process, if there is one."""
    # Cancelling, not Cancelled: the latter would leave the process running. The server makes
    # Cancelled of it at once where no process exists (BypassCancellingFlowRunsWithNoInfra).
    cancelling = State[Any](type=StateType.CANCELLING, name="Cancelling")
    with contextlib.suppress(ObjectNotFound):  # deleted: nothing is left to cancel
        await client.set_flow_run_state(flow_run_id, cancelling)


async def read_children(
    client: PrefectClient, parent_id: UUID, states: list[StateType]
) -> list[FlowRun]:
    """Return a page of the children of a parent run in some states, less those left running."""
    runs = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent_id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
        )
    )
    return [run for run in runs if LEAVE_RUNNING not in run.tags]


async def cancel_children(client: PrefectClient, parent_id: UUID) -> list[FlowRun]:
    """Cancel every child run of a parent run that is not final, and return them.

    Those that carry the tag `LEAVE_RUNNING` are left alone.
    """
    cancelled: dict[UUID, FlowRun] = {}
    # Each pass reads those that are still alive, so that no page is missed or read twice. It
    # ends when the server refuses to cancel the rest.
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
    return list(cancelled.values())


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
