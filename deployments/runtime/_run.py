"""A child's run that was started: waiting for its result, and cancelling it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from prefect.utilities.urls import url_for

from deployments.runtime._errors import ChildResultUnavailable, ChildTimedOut
from deployments.runtime._orphans import LEAVE_RUNNING
from deployments.runtime._results import Returns, read_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from deployments.runtime._parent import ParentRun

R = TypeVar("R")


class ChildRun(Generic[R]):
    """A child's run that was started. Made by `child(...).submit(...)`.

    Attributes:
        id: Of the flow run.
        name: Of the flow run.
        deployment: `flow-name/deployment-name`.
    """

    def __init__(
        self,
        parent: ParentRun,
        deployment: str,
        flow_run: FlowRun,
        final: asyncio.Future[FlowRun],
        returns: Returns[R],
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        again: Callable[[], Awaitable[FlowRun]] | None = None,
    ) -> None:
        self.id: UUID = flow_run.id
        self.name: str = flow_run.name
        self.deployment = deployment
        self._parent = parent
        self._leave_running = LEAVE_RUNNING in flow_run.tags
        self._final = final
        self._returns = returns
        self._timeout = timeout
        self._deadline = deadline
        self._again = again

    def __str__(self) -> str:
        return f"{self.deployment} {self.name!r}"

    @property
    def url(self) -> str:
        """The run's page in the Prefect UI."""
        return url_for("flow-run", self.id) or f"flow run {self.id}"

    async def result(self) -> R:
        """Wait for the run, and return its result.

        Cancelling the wait cancels the run.

        Raises:
            ChildError: There is no result; the subclass says why.
        """
        try:
            async with asyncio.timeout_at(self._deadline) as limit:
                final = await asyncio.shield(self._final)
        except TimeoutError:
            if not limit.expired():
                raise
            await self._abandon()
            raise ChildTimedOut(
                f"{self} did not finish within {self._timeout:g} s: raise `timeout`, or see what "
                f"it waits for ({self.url})",
                run=self,
            ) from None
        except asyncio.CancelledError:
            await self._abandon()
            raise
        try:
            return await read_result(self, final, self._returns)
        except ChildResultUnavailable as error:
            if self._again is None:
                raise
            # A run of an earlier attempt. Only now it is known that its result is needed.
            self._parent.logger.warning("%s: it runs again", error)
            flow_run, self._again = await self._again(), None
            self.id, self.name = flow_run.id, flow_run.name
            self._final = self._parent.watcher.watch(flow_run)
            return await self.result()

    async def _abandon(self) -> None:
        # When the parent's own time is up, its end knows whether the child is still needed.
        if not (self._leave_running or self._parent.time_is_up()):
            await self.cancel()

    async def cancel(self) -> None:
        """Ask for the run's cancellation; a run that has ended stays as it is."""
        if not self._final.done():
            await self._parent.submitter.cancel(self.id)
