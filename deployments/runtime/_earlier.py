"""The children that earlier attempts of a parent run had, found by the keys of its calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.states import AwaitingRetry

from deployments.runtime._orphans import ALIVE
from deployments.runtime._patience import persist, read_all

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State


class EarlierRuns:
    """The latest run of each call of earlier attempts; all of them are read once.

    The key of a run, its idempotency key, is that of its call and the number of the run.

    Args:
        client: The client to read with.
        parent: The parent's run.
        give_up_after: Seconds without an answer of the server after which reading fails.
    """

    def __init__(self, client: PrefectClient, parent: FlowRun, give_up_after: float) -> None:
        self._client = client
        self._parent = parent
        self._give_up_after = give_up_after
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
        children = FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[self._parent.id])
        )
        latest: dict[str, FlowRun] = {}
        for run in await persist(lambda: read_all(self._client, children), self._give_up_after):
            key, _, number = (run.idempotency_key or "").rpartition(":")
            if not key.startswith(f"{self._parent.id}:"):
                continue  # made by other means, such as a plain subflow
            if key not in latest or int(number) > number_of(latest[key]):
                latest[key] = run
        return latest

    async def retry(self, run: FlowRun) -> FlowRun | None:
        """Retry a run that has children of its own, as *Retry* in the UI does: it uses them again.

        Returns:
            The run, in its new state; None where it has no children.
        """
        of_run = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))

        async def retry_once() -> FlowRun | None:
            if not await self._client.read_flow_runs(flow_run_filter=of_run, limit=1):
                return None
            again = await self._client.read_flow_run(run.id)
            if again.state is not None and again.state.is_final():  # else the request came through
                state: State[Any] = AwaitingRetry(message="Its parent was retried")
                await self._client.set_flow_run_state(run.id, state)
                again = await self._client.read_flow_run(run.id)
            return again

        return await persist(retry_once, self._give_up_after)


def counts(run: FlowRun) -> bool:
    """Tell whether a retried parent uses an earlier run, rather than a new one."""
    state = run.state
    return state is not None and (state.is_completed() or run.state_type in ALIVE)


def number_of(run: FlowRun) -> int:
    """Return how many runs a call had, with this one."""
    return int((run.idempotency_key or "").rpartition(":")[2])


def next_key(run: FlowRun) -> str:
    """Return the key of the run after this one."""
    return f"{(run.idempotency_key or '').rpartition(':')[0]}:{number_of(run) + 1}"
