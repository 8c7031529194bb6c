"""From a final state to the child's value, or to an error that says what happened."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel
from prefect.client.schemas.objects import State, StateType, TaskRunResult
from prefect.client.schemas.sorting import LogSort
from prefect.filesystems import LocalFileSystem
from prefect.results import (
    aget_default_result_storage,
    aresolve_result_storage,
)
from prefect.serializers import (
    CompressedSerializer,
    JSONSerializer,
    Serializer,
    prefect_json_object_decoder,
)

# Prefect has no public way to link a child deployment's result to its run: with these two
# the run graph gets its arrows, as it does for tasks and subflows.
from prefect.utilities.engine import collect_task_run_inputs, link_state_to_flow_run_result
from prefect.utilities.importtools import to_qualified_name
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from deployments.runtime._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildResultUnavailable,
)
from deployments.runtime._json import find_loss

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from deployments.runtime._run import ChildRun

__all__ = ["Returns", "Unreadable", "find_inputs", "read_result", "read_value"]

R = TypeVar("R")

# What happened, and where to look or what to do.
ENDINGS: dict[StateType, tuple[type[ChildError], str, str]] = {
    StateType.FAILED: (ChildFailed, "failed", "its log"),
    StateType.CRASHED: (ChildCrashed, "crashed", "its worker's log says more than"),
    StateType.CANCELLED: (ChildCancelled, "was cancelled", "retry the parent to run it again;"),
}
# A result may be there a little later than the state that tells of it, as Prefect's own reader
# allows for (RESULT_READ_MAXIMUM_ATTEMPTS).
ATTEMPTS = 10
PAUSE_SECONDS = 0.25
# How Prefect writes what JSON does not know, and exceptions (`prefect_json_object_encoder`).
DECODER = JSONSerializer().object_decoder
WRAPPER = {"__class__", "data"}
EXCEPTION = {"__exc_type__", "message"}
STATE = to_qualified_name(State)


class Unreadable(Exception):
    """Tell why a result can't be read."""


class _MayPass(Unreadable):
    """Tell why a result can't be read yet, or at all."""


class Returns(Generic[R]):
    """What a child returns: the annotation that its results are read by.

    Args:
        annotation: Whatever pydantic can validate; of other classes, instances.
    """

    def __init__(self, annotation: Any) -> None:
        try:
            self._adapter: TypeAdapter[R] = TypeAdapter(annotation)
        except PydanticSchemaGenerationError:  # a class that pydantic does not know
            config = ConfigDict(arbitrary_types_allowed=True)
            self._adapter = TypeAdapter(annotation, config=config)
        named = list(_classes_in(annotation))
        known: list[type] = []
        for cls in named:
            known += _subclasses_of(cls)
        self._classes = {_short(cls.__name__): cls for cls in [*known, *named]}

    def load(self, blob: bytes, serializer: Serializer[Any]) -> R:
        """Return what a serializer wrote, as the annotation wants it.

        Raises:
            ValidationError: It does not fit.
            Unreadable: JSON does not hold all of it.
            Exception: Whatever the serializer raises.
        """
        plain = _without_decoder(serializer)
        value = plain.loads(blob)
        if plain is serializer:
            return self.validate(value)
        result = self.validate(self._restore(value))
        if loss := find_loss(result):
            raise Unreadable(f"did not arrive whole: {loss}")
        return result

    def validate(self, value: Any) -> R:
        """Return a value as the annotation wants it.

        Raises:
            ValidationError: It does not fit.
        """
        return self._adapter.validate_python(value, by_alias=True, by_name=True)

    def _restore(self, value: Any) -> Any:
        """Take Prefect's wrapper, a class by name and its data, off what JSON does not know."""
        if isinstance(value, list):
            return [self._restore(each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.keys() != WRAPPER or "." not in str(value["__class__"]):
            return {name: self._restore(each) for name, each in value.items()}
        if value["__class__"] == STATE:  # a flow returned a future, or some
            return self._restore(value["data"]["data"]["result"])
        # The class tells the members of a union apart. Only those that the annotation names: the
        # child's own have other modules here than there, and a name in data must import nothing.
        cls = self._classes.get(_short(str(value["__class__"])))
        if cls is not None:
            with contextlib.suppress(PydanticSchemaGenerationError, ValidationError):
                # As JSON, which strict types take for dates, say, and some have bytes in base64.
                text = json.dumps(value["data"])
                return TypeAdapter(cls).validate_json(text, by_alias=True, by_name=True)
        return value["data"]


def _without_decoder(serializer: Serializer[Any]) -> Serializer[Any]:
    """Return a serializer that leaves JSON as it is, where the given one is Prefect's for JSON.

    Its decoder imports the classes that the data names (`prefect_json_object_decoder`).
    """
    if isinstance(serializer, JSONSerializer) and serializer.object_decoder == DECODER:
        return serializer.model_copy(update={"object_decoder": None})
    if isinstance(serializer, CompressedSerializer):
        inner = _without_decoder(serializer.serializer)
        if inner is not serializer.serializer:
            return serializer.model_copy(update={"serializer": inner})
    return serializer


def _short(class_name: str) -> str:
    return class_name.partition("[")[0].rpartition(".")[2]


def _classes_in(annotation: Any) -> Iterator[type]:
    annotation = getattr(annotation, "__value__", annotation)  # of `type X = ...`
    yield from (each for each in (annotation, get_origin(annotation)) if isinstance(each, type))
    for argument in get_args(annotation):
        yield from _classes_in(argument)


def _subclasses_of(cls: type) -> list[type]:
    if cls.__module__ == "builtins":
        return []
    subclasses: list[type] = cls.__subclasses__()
    return [each for sub in subclasses for each in (*_subclasses_of(sub), sub)]


async def find_inputs(argument: Any) -> list[TaskRunResult]:
    """Return the children whose results an argument holds: the run graph's arrows."""
    # They are flow runs, but with that type in a task run's inputs Prefect's UI shows no task
    # runs at all (PrefectHQ/prefect#18680). The run graph looks at the id alone.
    found = await collect_task_run_inputs(argument)
    return [TaskRunResult(id=run.id) for run in found]


async def read_result(run: ChildRun[R], final: FlowRun, returns: Returns[R]) -> R:
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
    try:
        result = await read_value(state, returns)
    except ValidationError as invalid:
        reason = (
            f"is not what it should be: {invalid}. Make the deployed code and this parent's agree"
        )
        cause: BaseException | None = invalid
    except Unreadable as unreadable:
        reason, cause = f"{unreadable}{await _last_warning(run.id)}", unreadable.__cause__
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
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _try_to_read(record, returns)
        except _MayPass:
            if attempt == ATTEMPTS:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


async def _try_to_read(record: Any, returns: Returns[R]) -> R:
    try:
        blob = await _read_blob(record)
    except Exception as error:
        raise _MayPass(
            f"can't be reached from here: {error!r}. It was deleted, was never written, or is in a "
            "storage that this parent does not share"
        ) from error
    try:
        return returns.load(blob, record.serializer)
    except (ValidationError, Unreadable):
        raise
    except Exception as error:
        raise _MayPass(f"can't be decoded: {error!r}") from error


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


async def _last_warning(run_id: UUID) -> str:
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
