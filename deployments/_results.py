"""From a final state to the child's value, or to an error that says what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from prefect.client.schemas.objects import StateType, TaskRunResult
from prefect.exceptions import MissingResult

# Prefect has no public way to link a child deployment's result to its run: with these two
# the run graph gets its arrows, as it does for tasks and subflows.
from prefect.utilities.engine import collect_task_run_inputs, link_state_to_flow_run_result
from pydantic import TypeAdapter, ValidationError

from deployments._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildResultUnavailable,
)

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

    from deployments._run import ChildRun

__all__ = ["find_inputs", "read_result"]

R = TypeVar("R")

# What happened, and where to look or what to do.
ENDINGS: dict[StateType, tuple[type[ChildError], str, str]] = {
    StateType.FAILED: (ChildFailed, "failed", "its log"),
    StateType.CRASHED: (ChildCrashed, "crashed", "its worker's log says more than"),
    StateType.CANCELLED: (ChildCancelled, "was cancelled", "retry the parent to run it again;"),
}


async def find_inputs(argument: Any) -> list[TaskRunResult]:
    """Return the children whose results an argument holds: the run graph's arrows."""
    # They are flow runs, but with that type in a task run's inputs Prefect's UI shows no task
    # runs at all (PrefectHQ/prefect#18680). The run graph looks at the id alone.
    found = await collect_task_run_inputs(argument)
    return [TaskRunResult(id=run.id) for run in found]


async def read_result(run: ChildRun[R], final: FlowRun, returns: TypeAdapter[R]) -> R:
    """Return what a child returned, validated, and linked to its run for the run graph.

    Raises:
        ChildFailed, ChildCrashed, ChildCancelled: The child did not complete.
        ChildResultUnavailable: It did, but its result can't be read.
    """
    state = final.state
    assert state is not None  # noqa: S101 - a run without a state is not final
    # The state's type first: reading the result of a failed child would raise about the
    # storage, and hide the child's own message.
    if state.type in ENDINGS:
        error, verb, hint = ENDINGS[state.type]
        raise error(
            f"{run} {verb}: {state.message or 'no reason given'} ({hint} {run.url})", run=run
        ) from await _read_exception(state)
    value = await _read_value(run, state)
    try:
        result = returns.validate_python(value)
    except ValidationError as invalid:
        raise ChildResultUnavailable(
            f"{run} completed, but its result is not what it should be: {invalid}. "
            f"Make the deployed code and this parent's agree ({run.url})",
            run=run,
        ) from invalid
    link_state_to_flow_run_result(state, result)
    return result


async def _read_value(run: ChildRun[Any], state: State[Any]) -> Any:
    try:
        return await state.aresult(raise_on_failure=False)
    except MissingResult as error:
        reason = "was not persisted: set persist_result=True on the flow"
        cause: Exception = error
    except (OSError, ImportError, ConnectionError) as error:
        reason, cause = f"can't be reached from here: {error}", error
    except ValueError as error:
        # `LocalFileSystem.read_path` raises a ValueError for a file that does not exist.
        if "does not exist" in str(error):
            reason = (
                f"can't be reached from here: {error} It was deleted, was never written (then the "
                "child's log says why), or is in a storage that this parent does not share"
            )
        else:
            reason = f"can't be decoded: {error}"
        cause = error
    except Exception as error:  # noqa: BLE001 - each storage has errors of its own
        reason, cause = f"can't be read: {error!r}", error
    raise ChildResultUnavailable(
        f"{run} completed, but its result {reason} ({run.url})", run=run
    ) from cause


async def _read_exception(state: State[Any]) -> BaseException | None:
    if state.data is None:
        return None
    try:
        value = await state.aresult(raise_on_failure=False)
    except Exception:  # noqa: BLE001 - the state's message says what happened
        return None
    return value if isinstance(value, BaseException) else None
