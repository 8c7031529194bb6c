"""A child's run that was started: waiting for its result, and cancelling it."""

from typing import Any, Generic, TypeVar

from prefect.client.schemas.objects import FlowRun, State, StateType
from pydantic import ValidationError

from deployments.parent._call import Call
from deployments.parent._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildResultUnavailable,
    ChildTimedOut,
    RunInfo,
)
from deployments.parent._lineage import link_state_to_flow_run_result
from deployments.parent._parent_run import ParentRun
from deployments.values import Returns, Unreadable, read_exception, read_value

R = TypeVar("R")

# What is kept of a run that is waited for: thousands of whole runs would take much memory.
KEPT = {"id", "name", "flow_id", "tags", "idempotency_key", "job_variables"}
AGREE = "Make the deployed code and this parent's agree"
# What happened, and where to look or what to do.
ENDINGS: dict[StateType, tuple[type[ChildError], str, str]] = {
    StateType.FAILED: (ChildFailed, "failed", "its log"),
    StateType.CRASHED: (ChildCrashed, "crashed", "its worker's log says more than"),
    StateType.CANCELLED: (ChildCancelled, "was cancelled", "retry the parent to run it again;"),
}


class ChildRun(Generic[R]):
    """A child's run that was started. Made by `child(...).submit(...)`.

    Attributes:
        id: The id of the flow run.
        name: The name of the flow run.
        deployment: `flow-name/deployment-name`.
        url: The run's page in the Prefect UI.
    """

    def __init__(
        self, parent: ParentRun, call: Call, flow_run: FlowRun, returns: Returns[R]
    ) -> None:
        self._parent = parent
        self._call = call
        self._returns = returns
        self._follow(flow_run)

    def _follow(self, flow_run: FlowRun) -> None:
        self._flow_run = FlowRun.model_validate(flow_run.model_dump(include=KEPT))
        self._info = RunInfo.of(flow_run, self._call.deployment)
        self.id, self.name, self.url = self._info.id, self._info.name, self._info.url
        self.deployment = self._info.deployment

    def __str__(self) -> str:
        return str(self._info)

    async def result(self) -> R:
        """Wait for the run, and return its result.

        Cancelling the wait cancels the run.

        Raises:
            ChildError: There is no result; the subclass says why.
        """
        return await self._parent.loop.run(self._result())

    async def _result(self) -> R:
        try:
            final = await self._parent.wait(self._flow_run, self._call.deadline)
        except TimeoutError:
            raise ChildTimedOut(
                f"{self} did not finish within {self._call.timeout:g} s: raise `timeout`, or see "
                f"what it waits for ({self.url})",
                run=self._info,
            ) from None
        try:
            return await self._read(final)
        except (ChildResultUnavailable, ChildCrashed) as error:
            # Only now it is known that an earlier attempt's run gives no result.
            replacement = await self._parent.replace(self._call, self._flow_run, error)
            if replacement is None:
                raise
        self._follow(replacement)
        return await self._result()

    async def _read(self, state: State[Any]) -> R:
        """Return what the child returned, validated, and linked to its run for the run graph."""
        # The state's type first: reading the result of a failed child would raise about the
        # storage, and hide the child's own message.
        if state.type in ENDINGS:
            error, verb, hint = ENDINGS[state.type]
            raise error(
                f"{self} {verb}: {state.message or 'no reason given'} ({hint} {self.url})",
                run=self._info,
            ) from await read_exception(state, self._returns, self._parent.storages)
        cause: BaseException | None
        try:
            result = await read_value(state, self._returns, self._parent.storages)
        except ValidationError as invalid:
            reason, cause = f"is not what it should be: {invalid}. {AGREE}", invalid
        except Unreadable as unreadable:
            reason, cause = str(unreadable), unreadable.__cause__
        else:
            link_state_to_flow_run_result(state, result)
            return result
        raise ChildResultUnavailable(
            f"{self} completed, but its result {reason} ({self.url})", run=self._info
        ) from cause

    async def cancel(self) -> None:
        """Ask for the run's cancellation; a run that has ended stays as it is."""
        await self._parent.cancel(self._flow_run)
