"""The children that earlier attempts of a parent run had, found by the keys of its calls."""

import asyncio
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry

from deployments.parent._call import split_key
from deployments.runs import ALIVE, PatientClient, read_all


class EarlierRuns:
    """The latest run of each call of earlier attempts; all of them are read once."""

    def __init__(self, server: PatientClient, parent_id: UUID) -> None:
        self._server = server
        self._parent_id = parent_id
        self._latest: dict[str, FlowRun] | None = None
        self._reading = asyncio.Lock()

    async def find(self, key: str) -> FlowRun | None:
        """Return the latest run of the call of a key, if there is one.

        Raises:
            ChildError: The server did not answer in time.
        """
        async with self._reading:
            if self._latest is None:
                self._latest = await self._read()
        return self._latest.get(key)

    async def _read(self) -> dict[str, FlowRun]:
        children = _children_of(self._parent_id)
        runs = await self._server.ask(lambda client: read_all(client, children))
        # Others were made by other means, such as a plain subflow.
        ours = [run for run in runs if f"{run.idempotency_key}".startswith(f"{self._parent_id}:")]
        ours.sort(key=lambda run: split_key(run)[1])
        return {split_key(run)[0]: run for run in ours}

    async def retry(self, run: FlowRun) -> FlowRun | None:
        """Retry a run that has children of its own, as *Retry* in the UI does: it uses them again.

        Returns:
            The run, in its new state; None where it has no children.
        """

        async def retry_once(client: PrefectClient) -> FlowRun | None:
            if not await client.read_flow_runs(flow_run_filter=_children_of(run.id), limit=1):
                return None
            again = await client.read_flow_run(run.id)
            if again.state is not None and again.state.is_final():  # else the request came through
                state: State[Any] = AwaitingRetry(message="Its parent was retried")
                await client.set_flow_run_state(run.id, state)
                again = await client.read_flow_run(run.id)
            return again

        return await self._server.ask(retry_once)


def counts(run: FlowRun) -> bool:
    """Tell whether a retried parent uses an earlier run, rather than a new one."""
    state = run.state
    return state is not None and (state.is_completed() or run.state_type in ALIVE)


def _children_of(run_id: UUID) -> FlowRunFilter:
    return FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
