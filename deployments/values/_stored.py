"""Reading what a run has stored: its result, or its exception."""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import LogSort
from prefect.results import aget_default_result_storage, aresolve_result_storage
from prefect.serializers import prefect_json_object_decoder
from pydantic import ValidationError

from deployments.values._returns import EXCEPTION, Returns, Unreadable

T = TypeVar("T")
R = TypeVar("R")

# A result may be there a little later than the state that tells of it, as Prefect's own reader
# allows for. By the clock: a storage may have retries of its own, which take minutes.
READ_SECONDS = 2.5
PAUSE_SECONDS = 0.25
# Result storages, by where they are declared: to find one takes a request.
Storages = dict[Any, Any]
# How a run's log begins to say why its result is missing (`return_value_to_state`).
NOT_WRITTEN = "Encountered an error while persisting result: "


async def read_value(state: State[Any], returns: Returns[R], storages: Storages | None = None) -> R:
    """Do what `State.aresult` does, but take what is stored for what the serializer wrote.

    Prefect looks first whether the bytes may be a record of its own (`ResultRecord.deserialize`),
    and takes a child's JSON with such keys for one, which it may even unpickle.

    Args:
        state: The state of the run, which has completed.
        returns: What it should be.
        storages: Those that were found before, to which this one is added.

    Raises:
        Unreadable: There is no result, or none that can be read from here.
        ValidationError: It is not what the annotation says.
    """
    record = state.data
    if not hasattr(record, "storage_key"):
        raise Unreadable("was not persisted: set persist_result=True on the flow")

    def load(blob: bytes) -> R:
        return returns.load(blob, record.serializer.type)

    return await _read(state, returns, load, storages)


async def _read(
    state: State[Any],
    returns: Returns[Any],
    load: Callable[[bytes], T],
    storages: Storages | None = None,
) -> T:
    """Return what `load` makes of the bytes that were stored."""
    record: Any = state.data
    cause: Exception | None
    storages = {} if storages is None else storages
    deadline = time.monotonic() + READ_SECONDS
    while True:
        try:
            blob = await _read_blob(record, returns, storages)
        except Exception as error:  # noqa: BLE001 - a storage may raise anything
            # What pydantic refused may be a block's secret, which its error shows.
            refused = isinstance(error, ValidationError)
            cause = None if refused else error
            told = "its values are refused" if refused else repr(error)
            block = await _name_block(record.storage_block_id)
            reason = (
                f"is at {record.storage_key}{block}, which can't be reached from here: it was "
                f"deleted, was never written, or is in a storage that is not shared ({told})"
            )
        else:
            try:
                return load(blob)
            except (ValidationError, Unreadable):
                raise
            except Exception as error:  # noqa: BLE001 - so may a serializer
                cause, reason = error, f"can't be decoded: {error!r}"
        if time.monotonic() > deadline:
            warning = await _read_warning(state)
            if warning.startswith(NOT_WRITTEN):
                block = await _name_block(record.storage_block_id)
                reason = f"was not written{block}: {warning.removeprefix(NOT_WRITTEN)}"
            elif warning:
                reason += f". Its run's last warning: {warning}"
            raise Unreadable(reason) from cause
        await asyncio.sleep(PAUSE_SECONDS)


async def _read_blob(record: Any, returns: Returns[Any], storages: Storages) -> bytes:
    """Read what `ResultStore` wrote (its `_from_metadata` finds the storage in the same way).

    The key is anybody's who may set a state, so it is looked for in the result storage alone:
    a local one refuses what is outside of it.
    """
    key = str(record.storage_key)
    if ".." in Path(key).parts:
        raise ValueError(f"{key} is outside of the result storage")
    storage: Any
    place: Any = record.storage_block_id or returns.storage
    storage = place if isinstance(place, Block) else storages.get(place)
    if storage is None:
        finding = aresolve_result_storage(place) if place else aget_default_result_storage()
        storages[place] = storage = await finding
    # Blocks have one of two names for it; older ones await where an event loop runs.
    read = getattr(storage, "aread_path", storage.read_path)
    try:
        content = read(key)
        blob: bytes = await content if inspect.isawaitable(content) else content
    except Exception:
        if not isinstance(place, Block):  # the next try may find it with another secret
            storages.pop(place, None)
        raise
    return blob


async def _name_block(block_id: UUID | None) -> str:
    """Tell in which block a result is, if it is in one."""
    if block_id is None:
        return ""
    with contextlib.suppress(Exception):  # only a service to the reader
        async with get_client() as client:
            block: Any = await client.read_block_document(block_id, include_secrets=False)
            return f", in block {block.block_type.slug}/{block.name}"
    return f", in block {block_id}"


async def _read_warning(state: State[Any]) -> str:
    """Return the last warning of a run's log, where Prefect says why a result is not written."""
    with contextlib.suppress(Exception):  # only a service to the reader
        run_id = state.state_details.flow_run_id
        warnings = {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": logging.WARNING}}
        async with get_client() as client:
            logs = await client.read_logs(
                LogFilter.model_validate(warnings), limit=1, sort=LogSort.TIMESTAMP_DESC
            )
        return logs[0].message
    return ""


async def read_exception(
    state: State[Any], returns: Returns[Any], storages: Storages | None = None
) -> BaseException | None:
    """Return the exception that a child raised, where it can be read."""
    with contextlib.suppress(Exception):  # the state's message says what happened
        kind = state.data.serializer.type
        value = await _read(state, returns, lambda blob: returns.decode(blob, kind)[1], storages)
        if isinstance(value, dict) and value.keys() == EXCEPTION:
            value = prefect_json_object_decoder(value)
        return value if isinstance(value, BaseException) else None
    return None
