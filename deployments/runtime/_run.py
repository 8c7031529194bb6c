"""A child's run that was started: waiting for its result, and cancelling it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from prefect.client.schemas.objects import FlowRun

from deployments.runtime._cancel import Canceller
from deployments.runtime._errors import ChildResultUnavailable, ChildTimedOut
from deployments.runtime._info import RunInfo
from deployments.runtime._results import read_result
from deployments.runtime._returns import Returns
from deployments.runtime._watch import Watcher

R = TypeVar("R")


class ChildRun(Generic[R]):
    """A child's run that was started. Made by `child(...).submit(...)`.

    Attributes:
        id: Of the flow run.
        name: Of the flow run.
        deployment: `flow-name/deployment-name`.
        url: The run's page in the Prefect UI.
    """

    def __init__(
        self,
        deployment: str,
        flow_run: FlowRun,
        returns: Returns[R],
        watcher: Watcher,
        canceller: Canceller,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        again: Callable[[ChildResultUnavailable], Awaitable[FlowRun]] | None = None,
    ) -> None:
        self.deployment = deployment
        self._returns = returns
        self._watcher = watcher
        self._canceller = canceller
        self._timeout = timeout
        self._deadline = deadline
        self._again = again
        self._follow(flow_run)

    def _follow(self, flow_run: FlowRun) -> None:
        self._flow_run = flow_run
        self._info = RunInfo.of(flow_run, self.deployment)
        self._final = self._watcher.watch(flow_run)
        self.id, self.name, self.url = self._info.id, self._info.name, self._info.url

    def __str__(self) -> str:
        return str(self._info)

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
                run=self._info,
            ) from None
        except asyncio.CancelledError:
            await self._abandon()
            raise
        try:
            return await read_result(self._info, final, self._returns)
        except ChildResultUnavailable as error:
            if self._again is None:
                raise
            # A run of an earlier attempt. Only now it is known that its result is needed.
            again, self._again = self._again(error), None
            self._follow(await again)
            return await self.result()

    async def _abandon(self) -> None:
        if not self._final.done():
            await self._canceller.abandon(self._flow_run)

    async def cancel(self) -> None:
        """Ask for the run's cancellation; a run that has ended stays as it is."""
        if not self._final.done():
            await self._canceller.cancel(self.id)
