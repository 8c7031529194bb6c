"""A child's run that was started: waiting for its result, and cancelling it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from prefect.client.schemas.objects import FlowRun

from deployments.parent._errors import ChildResultUnavailable, ChildTimedOut, RunInfo
from deployments.parent._loop import Loop
from deployments.parent._result import read_result
from deployments.parent._undo import Canceller
from deployments.parent._watch import Watcher
from deployments.values import Returns

R = TypeVar("R")


@dataclass(eq=False, repr=False)
class ChildRun(Generic[R]):
    """A child's run that was started. Made by `child(...).submit(...)`.

    Attributes:
        id: Of the flow run.
        name: Of the flow run.
        deployment: `flow-name/deployment-name`.
        url: The run's page in the Prefect UI.
    """

    deployment: str
    _flow_run: FlowRun
    _returns: Returns[R]
    _loop: Loop
    _watcher: Watcher
    _canceller: Canceller
    _timeout: float | None
    _deadline: float | None
    _again: Callable[[ChildResultUnavailable], Awaitable[FlowRun]] | None

    def __post_init__(self) -> None:
        self._follow(self._flow_run)

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
        return await self._loop.run(self._wait())

    async def _wait(self) -> R:
        try:
            async with asyncio.timeout_at(self._deadline):
                final = await asyncio.shield(self._final)
        except TimeoutError:
            self._abandon()
            raise ChildTimedOut(
                f"{self} did not finish within {self._timeout:g} s: raise `timeout`, or see what "
                f"it waits for ({self.url})",
                run=self._info,
            ) from None
        except asyncio.CancelledError:
            self._abandon()
            raise
        try:
            return await read_result(self._info, final, self._returns)
        except ChildResultUnavailable as error:
            if self._again is None:
                raise
            # A run of an earlier attempt. Only now it is known that its result is needed.
            self._follow(await self._again(error))
            self._again = None
            return await self._wait()

    def _abandon(self) -> None:
        if not self._final.done():
            self._canceller.abandon(self._flow_run)

    async def cancel(self) -> None:
        """Ask for the run's cancellation; a run that has ended stays as it is."""
        if not self._final.done():
            await self._loop.run(self._canceller.cancel(self.id))
