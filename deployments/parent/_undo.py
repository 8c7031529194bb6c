"""Cancelling single runs of a parent, and what else goes on when its caller is cancelled."""

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from deployments.runs import LEAVE_RUNNING, TOGETHER, PatientClient, cancel_runs

R = TypeVar("R", bound=FlowRun | None)

# How long the end of a parent waits for what is under way.
CLOSE_SECONDS = 60.0
# So soon the end of a durable parent knows that its process was told to end.
TOLD_SECONDS = 2.0


class Canceller:
    """Cancel child runs of one attempt of a parent run.

    Args:
        server: The server to ask, one request at a time.
        deadline: When the parent is cancelled by its own `timeout_seconds`, in anyio's time.
        durable: Whether the parent goes on elsewhere where its process is told to end.

    Attributes:
        told: That its process was told to end.
    """

    def __init__(self, server: PatientClient, deadline: float, durable: bool) -> None:
        self._server = server
        self._deadline = deadline
        self._durable = durable
        self.told = asyncio.Event()
        self._asked: dict[UUID, None] = {}
        self._cancelling = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def finish(self) -> None:
        """Wait a while for what is under way."""
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way, timeout=CLOSE_SECONDS)
            if not done:
                break

    async def start(self, starting: Coroutine[Any, Any, R]) -> R:
        """Wait for a run to be started; if the caller is cancelled, it is abandoned then."""
        # A run can't be cancelled before its id is known.
        task = self._go_on(starting)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._go_on(self._undo(task))
            raise

    async def cancel(self, run_id: UUID) -> None:
        """Ask for a run's cancellation, also if this is cancelled itself."""
        await asyncio.shield(self._go_on(self._cancel(run_id)))

    def abandon(self, run: FlowRun) -> None:
        """Cancel a run that nobody waits for any more, where it is not to run on.

        It goes on behind the caller, who may have a time limit, and `finish` waits for it.
        """
        # When the parent's own time is up, its end knows whether the child is still needed.
        if LEAVE_RUNNING not in run.tags and not self.time_is_up():
            self._go_on(self._cancel_later(run.id) if self._durable else self._cancel(run.id))

    def time_is_up(self) -> bool:
        """Tell whether the parent is cancelled by its own `timeout_seconds`."""
        return anyio.current_time() >= self._deadline

    def _go_on(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do some work that goes on when its caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen: where nobody waits for it, the parent's end makes up for it

    async def _undo(self, starting: asyncio.Task[FlowRun | None]) -> None:
        if run := await starting:  # where nothing was started, nothing is to undo
            self.abandon(run)

    async def _cancel_later(self, run_id: UUID) -> None:
        # Where a process is told to end, all is cancelled in it, before the parent's end knows.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOLD_SECONDS):
                await self.told.wait()
                return
        await self._cancel(run_id)

    async def _cancel(self, run_id: UUID) -> None:
        async def all_that_are_asked_for(client: PrefectClient) -> None:
            async with self._cancelling:  # for the reason that `Submitter` tells
                while run_id in self._asked:
                    some = [*itertools.islice(self._asked, TOGETHER)]
                    await cancel_runs(client, some)
                    for each in some:
                        del self._asked[each]

        self._asked[run_id] = None
        await self._server.ask(all_that_are_asked_for)
