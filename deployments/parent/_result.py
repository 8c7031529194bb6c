"""From a final state to the child's value, or to an error that says what happened."""

from typing import Any, TypeVar

from prefect.client.schemas.objects import State, StateType
from pydantic import ValidationError

from deployments.parent._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildResultUnavailable,
    RunInfo,
)
from deployments.parent._lineage import link_state_to_flow_run_result
from deployments.values import Returns, Unreadable, read_exception, read_value

R = TypeVar("R")

# What happened, and where to look or what to do.
ENDINGS: dict[StateType, tuple[type[ChildError], str, str]] = {
    StateType.FAILED: (ChildFailed, "failed", "its log"),
    StateType.CRASHED: (ChildCrashed, "crashed", "its worker's log says more than"),
    StateType.CANCELLED: (ChildCancelled, "was cancelled", "retry the parent to run it again;"),
}


async def read_result(run: RunInfo, state: State[Any], returns: Returns[R]) -> R:
    """Return what a child returned, validated, and linked to its run for the run graph.

    Raises:
        ChildFailed, ChildCrashed, ChildCancelled: The child did not complete.
        ChildResultUnavailable: It did, but its result can't be read.
    """
    # The state's type first: reading the result of a failed child would raise about the
    # storage, and hide the child's own message.
    if state.type in ENDINGS:
        error, verb, hint = ENDINGS[state.type]
        raise error(
            f"{run} {verb}: {state.message or 'no reason given'} ({hint} {run.url})", run=run
        ) from await read_exception(state, returns)
    try:
        result = await read_value(state, returns)
    except ValidationError as invalid:
        reason = (
            f"is not what it should be: {invalid}. Make the deployed code and this parent's agree"
        )
        cause: BaseException | None = invalid
    except Unreadable as unreadable:
        reason, cause = str(unreadable), unreadable.__cause__
    else:
        link_state_to_flow_run_result(state, result)
        return result
    raise ChildResultUnavailable(
        f"{run} completed, but its result {reason} ({run.url})", run=run
    ) from cause
