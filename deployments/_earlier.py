"""The children that earlier attempts of a parent run had, found by the keys of its calls."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.sorting import FlowRunSort

from deployments._orphans import ALIVE
from deployments._patience import PAGE, persist

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun


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
        for offset in itertools.count(0, PAGE):
            runs = await persist(
                lambda offset=offset: self._client.read_flow_runs(  # type: ignore[misc]
                    flow_run_filter=children,
                    sort=FlowRunSort.ID_DESC,
                    limit=PAGE,
                    offset=offset,
                ),
                self._give_up_after,
            )
            for run in runs:
                key, _, number = (run.idempotency_key or "").rpartition(":")
                if not key.startswith(f"{self._parent.id}:"):
                    continue  # made by other means, such as a plain subflow
                if key not in latest or int(number) > number_of(latest[key]):
                    latest[key] = run
            if len(runs) < PAGE:
                return latest
        raise AssertionError("unreachable")


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
