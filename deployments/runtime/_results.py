"""From a final state to the child's value, or to an error that says what happened."""

import asyncio
import contextlib
import inspect
import logging
import time
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.filesystems import LocalFileSystem
from prefect.results import aget_default_result_storage, aresolve_result_storage
from prefect.serializers import prefect_json_object_decoder
from pydantic import ValidationError

from deployments.runtime._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildResultUnavailable,
)
from deployments.runtime._info import RunInfo
from deployments.runtime._lineage import link_state_to_flow_run_result
from deployments.runtime._returns import Returns, Unreadable

R = TypeVar("R")

# What happened, and where to look or what to do.
ENDINGS: dict[StateType, tuple[type[ChildError], str, str]] = {
    StateType.FAILED: (ChildFailed, "failed", "its log"),
    StateType.CRASHED: (ChildCrashed, "crashed", "its worker's log says more than"),
    StateType.CANCELLED: (ChildCancelled, "was cancelled", "retry the parent to run it again;"),
}
# A result may be there a little later than the state that tells of it, as Prefect's own reader
# allows for. By the clock: a storage may have retries of its own, which take minutes.
READ_SECONDS = 2.5
PAUSE_SECONDS = 0.25
# How Prefect writes an exception as JSON (`prefect_json_object_encoder`).
EXCEPTION = {"__exc_type__", "message"}


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
        ) from await _read_exception(state)
    try:
        result = await read_value(state, returns)
    except ValidationError as invalid:
        reason = (
            f"is not what it should be: {invalid}. Make the deployed code and this parent's agree"
        )
        cause: BaseException | None = invalid
    except Unreadable as unreadable:
        reason, cause = f"{unreadable}{await last_warning(run.id)}", unreadable.__cause__
    else:
        link_state_to_flow_run_result(state, result)
        return result
    raise ChildResultUnavailable(
        f"{run} completed, but its result {reason} ({run.url})", run=run
    ) from cause


async def read_value(state: State[Any], returns: Returns[R]) -> R:
    """Do what `State.aresult` does, but take what is stored for what the serializer wrote.

    Prefect looks first whether the bytes may be a record of its own (`ResultRecord.deserialize`),
    and takes a child's JSON with such keys for one, which it may even unpickle.

    Raises:
        Unreadable: There is no result, or none that can be read from here.
        ValidationError: It is not what the annotation says.
    """
    record = state.data
    if record is None:
        raise Unreadable("was not persisted: set persist_result=True on the flow")
    if not hasattr(record, "storage_key"):  # the value itself
        return returns.validate(record)
    cause: Exception | None
    deadline = time.monotonic() + READ_SECONDS
    while True:
        try:
            blob = await _read_blob(record)
        except Exception as error:  # noqa: BLE001 - a storage may raise anything
            # What pydantic refused may be a block's secret, which its error shows.
            refused = isinstance(error, ValidationError)
            cause = None if refused else error
            told = "its values are refused" if refused else repr(error)
            block = await _name_block(record.storage_block_id)
            reason = (
                f"can't be reached from here{block}: {told}. It was deleted, was never written, "
                "or is in a storage that this parent does not share"
            )
        else:
            try:
                return returns.load(blob, record.serializer)
            except (ValidationError, Unreadable):
                raise
            except Exception as error:  # noqa: BLE001 - so may a serializer
                cause, reason = error, f"can't be decoded: {error!r}"
        if time.monotonic() > deadline:
            raise Unreadable(reason) from cause
        await asyncio.sleep(PAUSE_SECONDS)


async def _read_blob(record: Any) -> bytes:
    """Read what `ResultStore` wrote (its `_from_metadata` finds the storage in the same way)."""
    key = str(record.storage_key)
    storage: Any
    if record.storage_block_id is not None:
        storage = await aresolve_result_storage(record.storage_block_id)
    elif Path(key).is_absolute():
        storage = LocalFileSystem(basepath=str(Path(key).parent))
    else:
        storage = await aget_default_result_storage()
    # Blocks have one of two names for it; older ones await where an event loop runs.
    read = getattr(storage, "aread_path", storage.read_path)
    content = read(key)
    blob: bytes = await content if inspect.isawaitable(content) else content
    return blob


async def _name_block(block_id: UUID | None) -> str:
    """Tell in which block a result is, if it is in one."""
    if block_id is None:
        return ""
    with contextlib.suppress(Exception):  # only a service to the reader
        async with get_client() as client:
            block = await client.read_block_document(block_id, include_secrets=False)
            if block.block_type:
                return f", in block {block.block_type.slug}/{block.name}"
    return f", in block {block_id}"


async def last_warning(run_id: UUID) -> str:
    """Quote a child's log, where Prefect says that it could not write a result."""
    of_run = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[run_id]), level=LogFilterLevel(ge_=logging.WARNING)
    )
    with contextlib.suppress(Exception):  # only a service to the reader
        async with get_client() as client:
            for log in await client.read_logs(of_run, limit=1, sort=LogSort.TIMESTAMP_DESC):
                return f". The child's last warning: {log.message}"
    return ""


async def _read_exception(state: State[Any]) -> BaseException | None:
    with contextlib.suppress(Exception):  # the state's message says what happened
        value = await read_value(state, Returns[Any](Any))
        if isinstance(value, dict) and value.keys() == EXCEPTION:
            value = prefect_json_object_decoder(value)
        if isinstance(value, BaseException):
            return value
    return None
