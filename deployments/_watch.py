"""One watcher for all children of a parent: events wake it, a bulk read makes sure."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.events.schemas.events import Event, ResourceSpecification
from prefect.logging import get_logger

from deployments._errors import ChildError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

# A missed event costs this much delay, and idle waiting costs one request in this time.
READ_SECONDS = 5.0
# The events of a burst share one request.
BURST_SECONDS = 0.05
# The server's cap on the results of one read (PREFECT_API_DEFAULT_LIMIT).
PAGE = 200

logger = get_logger("deployments.watch")


class Watcher:
    """Wait for the final states of a parent's children.

    What it costs does not grow with their number: one subscription to the final states of
    flow runs, and one read of the children that have ended, at most every `READ_SECONDS`
    or when an event says that there are some.

    Args:
        client: The client to read with.
        give_up_after: Seconds without any answer of the server after which waiting fails.
    """

    def __init__(self, client: PrefectClient, give_up_after: float) -> None:
        self._client = client
        self._give_up_after = give_up_after
        self._finals: dict[UUID, asyncio.Future[FlowRun]] = {}
        # A run can end before its creator knows of it, so some strangers are remembered.
        self._ended: deque[UUID] = deque(maxlen=10_000)
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, flow_run_id: UUID) -> asyncio.Future[FlowRun]:
        """Return a future of the run in its final state."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._listen()),
                asyncio.create_task(self._read()),
            ]
        if flow_run_id not in self._finals:
            self._finals[flow_run_id] = asyncio.get_running_loop().create_future()
            if flow_run_id in self._ended:
                self._wake.set()
        return self._finals[flow_run_id]

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for final in self._finals.values():
            final.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                # `reconnect_on_clean_close`: a server that restarts closes the socket cleanly.
                async with get_events_subscriber(
                    filter=_final_states(), reconnect_on_clean_close=True
                ) as events:
                    async for event in events:
                        self._on_event(event)
            except Exception as error:  # noqa: BLE001 - reads go on without events
                logger.debug("No events from the server: %r", error)
            await asyncio.sleep(READ_SECONDS)

    def _on_event(self, event: Event) -> None:
        run_id = UUID(event.resource.id.removeprefix("prefect.flow-run."))
        self._ended.append(run_id)
        if run_id in self._finals:
            self._wake.set()

    async def _read(self) -> None:
        answered = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), READ_SECONDS)
                await asyncio.sleep(BURST_SECONDS)
            woken = self._wake.is_set()
            self._wake.clear()
            waiting = [run_id for run_id, final in self._finals.items() if not final.done()]
            ended = set(self._ended) if woken else None
            try:
                await self._settle([i for i in waiting if ended is None or i in ended])
            except Exception as error:  # noqa: BLE001 - the server may come back
                silence = time.monotonic() - answered
                logger.warning("The Prefect server did not answer for %.0f s: %r", silence, error)
                if silence > self._give_up_after:
                    self._fail(f"gave up after {silence:.0f} s without the Prefect server: {error}")
            else:
                answered = time.monotonic()

    async def _settle(self, run_ids: list[UUID]) -> None:
        for start in range(0, len(run_ids), PAGE):
            page = run_ids[start : start + PAGE]
            for run in await self._client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    id=FlowRunFilterId(any_=page),
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(any_=list(TERMINAL_STATES))
                    ),
                ),
                limit=PAGE,
            ):
                if not self._finals[run.id].done():
                    self._finals[run.id].set_result(run)

    def _fail(self, message: str) -> None:
        for final in self._finals.values():
            if not final.done():
                final.set_exception(ChildError(message))


def _final_states() -> EventFilter:
    # A new one for each subscription, since the subscriber writes into its filter.
    return EventFilter(
        event=EventNameFilter(prefix=["prefect.flow-run."]),
        resource=EventResourceFilter(
            labels=ResourceSpecification(
                {"prefect.state-type": [state.value for state in TERMINAL_STATES]}
            )
        ),
    )
