"""One watcher for all children of a parent: events wake it, a bulk read makes sure."""

import asyncio
import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilterState
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter
from prefect.events.schemas.events import Event
from prefect.logging.loggers import LoggingAdapter

from deployments.parent._errors import WHICH_LIMIT, ChildError
from deployments.runs import (
    PAUSES,
    confirm_cancelled,
    count_existing,
    count_restarts,
    explain_waiting,
    may_restart,
    read_pages,
    unreachable,
)

# Those that have ended, or soon will.
ENDED = FlowRunFilterState.model_validate(
    {"type": {"any_": [*TERMINAL_STATES, StateType.CANCELLING]}}
)
# Of a run that was called crashed: what only its own process can say.
WENT_ON = (StateType.COMPLETED.value, StateType.FAILED.value)
# A missed event costs this much delay, and idle waiting costs one request in this time.
READ_SECONDS = 5.0
# So often those that wait are counted, too: one that is missing was deleted.
READS = 4
# The events of a burst share one request; and so do those that come while children keep ending.
BURST_SECONDS = 0.05
SHARED_SECONDS = 0.15


class Watcher:
    """Wait for the final states of a parent's children.

    What it costs does not grow with their number: one subscription to the final states of
    flow runs, and one read of the children that have ended, at most every `READ_SECONDS`
    or when an event says that there are some.

    Args:
        client: The client to read with.
        logger: The logger of the parent's run.
        give_up_after: Seconds without any answer of the server after which waiting fails.
    """

    def __init__(self, client: PrefectClient, logger: LoggingAdapter, give_up_after: float) -> None:
        self._client = client
        self._logger = logger
        self._give_up_after = give_up_after
        self._finals: dict[UUID, asyncio.Future[State[Any]]] = {}
        # A run can end before its creator knows of it, so some strangers are remembered.
        self._ended: deque[UUID] = deque(maxlen=10_000)
        # The crashes after which children are restarted, by the ids of the states.
        self._passing: set[UUID] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    def watch(self, run: FlowRun) -> asyncio.Future[State[Any]]:
        """Return a future of the run's final state."""
        if run.id not in self._finals:
            final: asyncio.Future[State[Any]] = asyncio.get_running_loop().create_future()
            self._finals[run.id] = final
            if self._closed:
                final.cancel()
            elif run.state and run.state.is_final() and not may_restart(run):
                final.set_result(run.state)
            elif run.id in self._ended or may_restart(run):
                self._wake.set()
            if not self._tasks and not final.done():
                explaining = explain_waiting(self._client, self._read_waiting, self._logger.warning)
                loops = (self._listen(), self._read(), explaining)
                self._tasks = [asyncio.create_task(loop) for loop in loops]
        return self._finals[run.id]

    def forget(self, run_id: UUID) -> None:
        """Forget how a run ended that runs again."""
        self._finals.pop(run_id)

    async def close(self) -> None:
        """Stop watching: who still waits is cancelled."""
        self._closed = True
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
                self._logger.debug("No events from the server: %r", error)
            await asyncio.sleep(READ_SECONDS)

    def _on_event(self, event: Event) -> None:
        run_id = UUID(event.resource.id.removeprefix("prefect.flow-run."))
        self._ended.append(run_id)
        if final := self._finals.get(run_id):
            self._wake.set()
            # Silence is no proof: a process that hung may go on.
            if _is_crashed(final) and event.resource["prefect.state-type"] in WENT_ON:
                name = event.resource["prefect.resource.name"]
                now = event.resource["prefect.state-name"]
                self._logger.warning("Child %s was told as crashed, went on, and is %s", name, now)

    async def _read(self) -> None:
        answered = time.monotonic()
        read_at = -math.inf
        read_all_at = answered + READ_SECONDS
        reads = itertools.count(1)
        while True:
            # Not `wait_for`: in Python 3.11 it can swallow the cancellation by `close`.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(read_all_at - time.monotonic()):
                    await self._wake.wait()
                    soonest = read_at + SHARED_SECONDS
                    await asyncio.sleep(max(BURST_SECONDS, soonest - time.monotonic()))
            self._wake.clear()
            run_ids = self._waiting()
            count = False
            if time.monotonic() < read_all_at:
                ended = set(self._ended)
                run_ids = [run_id for run_id in run_ids if run_id in ended]
            else:
                read_all_at = time.monotonic() + READ_SECONDS
                count = next(reads) % READS == 0
            read_at = time.monotonic()
            patience = self._give_up_after - (time.monotonic() - answered)
            try:
                async with asyncio.timeout(max(patience, 1)):  # the client retries by itself
                    await self._read_ended(run_ids)
                    if count:
                        await self._find_deleted()
            except Exception as error:  # noqa: BLE001 - the server may come back
                silence = time.monotonic() - answered
                self._logger.warning(
                    "The Prefect server has not answered for %.0f s: %r", silence, error
                )
                if silence >= self._give_up_after:
                    self._fail(self._waiting(), f"{unreachable(silence, error)}: {WHICH_LIMIT}")
            else:
                answered = time.monotonic()

    async def _read_ended(self, run_ids: list[UUID]) -> None:
        # One request for many that wait.
        async for runs in read_pages(self._client, run_ids, ENDED):
            for run in runs:
                if run.state and run.state.is_final() and not self._finals[run.id].done():
                    if may_restart(run) and await self._will_restart(run, run.state):
                        continue
                    self._finals[run.id].set_result(run.state)
            with contextlib.suppress(Exception):  # in the end the server does it
                await confirm_cancelled(self._client, runs)

    async def _find_deleted(self) -> None:
        run_ids = self._waiting()
        if await count_existing(self._client, run_ids) < len(run_ids):
            there = {run.id for run in await self._read_waiting()}
            self._fail(set(run_ids) - there, "the child's run was deleted")

    async def _will_restart(self, run: FlowRun, crashed: State[Any]) -> bool:
        """Tell whether a durable child's crash is not its end; that is told once."""
        if crashed.id not in self._passing:
            restarts = await count_restarts(self._client, run.id)
            if restarts >= len(PAUSES):
                crashed.message = f"{crashed.message} (attempt {restarts + 1}, the last one)"
                return False
            self._passing.add(crashed.id)
            self._logger.warning(
                "Child %s crashed, and is restarted (%s of %s times): %s",
                *(run.name, restarts + 1, len(PAUSES), crashed.message),
            )
        return True

    async def _read_waiting(self) -> list[FlowRun]:
        pages = read_pages(self._client, self._waiting())
        return [run async for page in pages for run in page]

    def _waiting(self) -> list[UUID]:
        return [run_id for run_id, final in self._finals.items() if not final.done()]

    def _fail(self, run_ids: Iterable[UUID], message: str) -> None:
        for run_id in run_ids:
            if not self._finals[run_id].done():
                self._finals[run_id].set_exception(ChildError(f"flow run {run_id}: {message}"))


def _is_crashed(final: asyncio.Future[State[Any]]) -> bool:
    known = final.done() and not final.cancelled() and final.exception() is None
    return known and final.result().is_crashed()


def _final_states() -> EventFilter:
    # A new one for each subscription, since the subscriber writes into its filter.
    states = [state.value for state in TERMINAL_STATES]
    return EventFilter.model_validate(
        {
            "event": {"prefix": ["prefect.flow-run."]},
            "resource": {"labels": {"prefect.state-type": states}},
        }
    )
