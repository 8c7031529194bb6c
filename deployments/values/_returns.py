"""What a child returns: how an annotation reads what a serializer wrote."""

from __future__ import annotations  # or `Serializer[Any]` would be made a serializer of its own

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar, get_args, get_origin

from prefect.client.schemas.objects import State
from prefect.flows import Flow
from prefect.results import ResultStorage, resolve_serializer
from prefect.serializers import (
    CompressedJSONSerializer,
    CompressedSerializer,
    JSONSerializer,
    Serializer,
)
from prefect.settings import get_current_settings
from prefect.utilities.importtools import to_qualified_name
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import CoreConfig, CoreSchema, SchemaValidator

from deployments.values._json import (
    count_unread,
    holds_secret,
    is_equal,
    mark,
    may_be_secret,
    sort_sets,
)
from deployments.values._parameters import type_hints

R = TypeVar("R")
Place = tuple[str | int, ...]

# How Prefect writes what JSON does not know (`prefect_json_object_encoder`).
DECODER = JSONSerializer().object_decoder
WRAPPER = {"__class__", "data"}
EXCEPTION = {"__exc_type__", "message"}
STATE = to_qualified_name(State)
# Of a child by name nothing else is known; these run no code.
BY_NAME = (JSONSerializer(), CompressedJSONSerializer())
# Keys of a core schema that hold what users wrote, not schemas.
NOT_SCHEMAS = {"metadata", "default", "expected", "serialization"}
ADVICE = "give the flow a result_serializer"


class Unreadable(Exception):
    """Tell why a result can't be read."""


class Returns(Generic[R]):
    """What a child returns: the annotation that its results are read by.

    Args:
        annotation: Whatever pydantic can validate; of other classes, instances.
        serializers: Those that its results may be written by.
        storage: Where its results are, if in no saved block; by default, Prefect's default.
        whole: The annotation names all of a result; otherwise it may leave out parts.
    """

    def __init__(
        self,
        annotation: Any,
        serializers: tuple[Serializer[Any], ...] = BY_NAME,
        storage: ResultStorage | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.storage = storage
        self._serializers = serializers
        self._whole = whole
        self._schemas: dict[Any, CoreSchema] = {None: _core_schema(annotation)}
        self._validators: dict[tuple[type | None, int | None], SchemaValidator] = {}
        named = dict.fromkeys(_classes_in(annotation))
        known = [subclass for cls in named for subclass in _subclasses_of(cls)]
        claims = Counter(name for cls in named for name in _names(cls))
        # The data tells the members of a union apart by name, if no two have the same.
        self._classes = {
            name: cls for cls in (*known, *named) for name in _names(cls) if claims[name] < 2
        }

    @classmethod
    def of(cls, flow: Flow[..., Any]) -> Self:
        """Return what a flow declares.

        Raises:
            TypeError: Its annotation can't be resolved.
        """
        return cls._of(flow, get_current_settings().results.default_serializer)

    @classmethod
    @functools.lru_cache(maxsize=256)  # a fan-out asks for the same one a thousand times
    def _of(cls, flow: Flow[..., Any], default_serializer: str) -> Self:
        serializer = resolve_serializer(flow.result_serializer or default_serializer)
        annotation = type_hints(flow.name, flow.fn).get("return", Any)
        return cls(annotation, (serializer,), flow.result_storage, whole=True)

    def load(self, blob: bytes, written_by: str) -> R:
        """Return what a child returned: an equal value, from what a serializer wrote.

        Raises:
            ValidationError: It does not fit.
            Unreadable: It would be another value, or nothing tells which it was.
            Exception: Whatever the serializer raises.
        """
        serializer, data = self.decode(blob, written_by)
        inner = getattr(serializer, "serializer", serializer)  # of a compressed one
        if isinstance(inner, JSONSerializer) and inner.object_decoder is None:
            try:
                return self._load_json(data, serializer, by_alias=False)  # Prefect writes names
            except (Unreadable, ValidationError):
                return self._load_json(data, serializer, by_alias=True)  # a model may write these
        result: R = self._read(data)
        if is_equal(data, result) or is_equal(data, serializer.loads(serializer.dumps(result))):
            return result
        raise _changed(())

    def decode(self, blob: bytes, written_by: str) -> tuple[Serializer[Any], Any]:
        """Return what a serializer wrote, and the serializer; Prefect's JSON stays as it is.

        Raises:
            Unreadable: It is not a serializer of ours: another may run what it reads.
            Exception: Whatever the serializer raises.
        """
        for serializer in map(_without_decoder, self._serializers):
            if serializer.type == written_by:
                return serializer, serializer.loads(blob)
        raise Unreadable(
            f"was written by the serializer {written_by!r}, not {self._serializers[0].type!r}: "
            "give its flow a result_serializer, and make the deployed code and that here agree"
        )

    def _load_json(self, data: Any, serializer: Serializer[Any], by_alias: bool) -> R:
        """Return that of which the child would have written the same data."""
        result = self._read(data, by_alias)
        if holds_secret(result):
            raise Unreadable(
                "is or holds a secret, for which JSON has asterisks: return the name of a Secret "
                "block"
            )
        try:
            written = serializer.loads(serializer.dumps(result))
            place = _find_change(result, written, data, self._whole)
        except Exception:  # noqa: BLE001 - a serializer of the user's may raise anything
            raise _changed(()) from None
        # What was written with its class is plain data only where no type reads it.
        lost = _count_lost(written, data) if self._whole and written != data else 0
        if lost and count_unread(self._read(data, by_alias, mark=mark)) < lost:
            place = place or ()
        if place is not None:
            raise _changed(place)
        for turn in range(max(map(_widest_union, self._schemas.values()))):
            same = False
            with contextlib.suppress(Exception):  # what it does not read or write, it was not
                other = self._read(data, by_alias, turn)
                rewritten = serializer.loads(serializer.dumps(other))
                # A text, for one, is no date: that would have been written with its class.
                same = _count_classes(rewritten) == _count_classes(written)
                same = same and _find_change(other, rewritten, written) is None
            if same and not is_equal(result, other):
                raise Unreadable(
                    "may be one or another member of a union, whose JSON is the same: make it "
                    f"one type, or tell them apart by a discriminator, or {ADVICE}"
                )
        return result

    def _read(
        self,
        data: Any,
        by_alias: bool = True,
        turn: int | None = None,
        mark: Callable[[Any], Any] = lambda data: data,
    ) -> R:
        """Return JSON data as the annotation wants it.

        Args:
            data: What is read.
            by_alias: Whether by the aliases of fields, too.
            turn: Which member of each union is tried first; by default, that which fits best.
            mark: Marks the data of classes that the annotation does not name.
        """

        def restore(name: str, data: Any) -> Any:
            # The class tells the members of a union apart. Only those that the annotation names:
            # the child's own have other modules here, and a name in data must import nothing.
            if cls := self._classes.get(name) or self._classes.get(_short(name)):
                with contextlib.suppress(ValidationError):
                    # As JSON, which strict types take for dates, and some have bytes in base64.
                    text = json.dumps(data)
                    validator = self._validator(cls, turn)
                    return validator.validate_json(text, by_alias=by_alias, by_name=True)
            return mark(data)

        value: R = self._validator(None, turn).validate_python(
            _unwrap(data, restore), by_alias=by_alias, by_name=True
        )
        return value

    def _validator(self, cls: type | None, turn: int | None) -> SchemaValidator:
        """Return what reads a class, or the annotation."""
        if (cls, turn) not in self._validators:
            if cls not in self._schemas:
                self._schemas[cls] = _core_schema(cls)
            schema = self._schemas[cls]
            # The parts of a schema have validators already, in which no union takes turns.
            self._validators[cls, turn] = SchemaValidator(
                schema if turn is None else _turned(schema, turn),
                CoreConfig(hide_input_in_errors=may_be_secret(schema)),
                _use_prebuilt=turn is None,
            )
        return self._validators[cls, turn]


def _changed(place: Place) -> Unreadable:
    at = f" at {'.'.join(map(str, place))}" if place else ""
    return Unreadable(
        f"would arrive as another value than was returned{at}: let its type read what it writes, "
        f"or {ADVICE}"
    )


def _find_change(value: Any, ours: Any, theirs: Any, whole: bool = True) -> Place | None:
    """Return where two ways to write a value differ, if anywhere; a set has no order."""
    if ours == theirs:
        return None
    ours, theirs = (sort_sets(value, _unwrap(data)) for data in (ours, theirs))
    return _find_difference(ours, theirs, whole)


def _find_difference(ours: Any, theirs: Any, whole: bool, place: Place = ()) -> Place | None:
    """Return where two pieces of JSON data differ, if anywhere."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        same = ours == theirs or (ours != ours and theirs != theirs)  # or both are NaN
        return None if same else place
    for key in ours | theirs if whole else ours:
        found: Place | None = (*place, key)
        if key in ours and key in theirs:
            found = _find_difference(ours[key], theirs[key], whole, (*place, key))
        if found is not None:
            return found
    return None


def _unwrap(data: Any, read: Callable[[str, Any], Any] = lambda _, data: data) -> Any:
    """Take Prefect's wrapper, a class by name and its data, off what JSON does not know."""
    if isinstance(data, list):
        return [_unwrap(item, read) for item in data]
    if not isinstance(data, dict):
        return data
    if data.keys() == EXCEPTION:
        raise Unreadable(
            "is or holds an exception, of which JSON has no more than its text: raise it, or "
            "return its text"
        )
    if _has_class(data):
        return read(data["__class__"], data["data"])
    if data.keys() == WRAPPER and data["__class__"] == STATE:  # a flow returned a future, or some
        return data["data"]["data"]["result"]
    return {key: _unwrap(item, read) for key, item in data.items()}


def _has_class(data: Any) -> bool:
    """Tell whether Prefect has written data with its class."""
    if not isinstance(data, dict) or data.keys() != WRAPPER:
        return False
    return "." in str(data["__class__"]) and data["__class__"] != STATE


def _count_classes(data: Any) -> int:
    """Return how many values Prefect has written with their class."""
    names: list[str] = []
    _unwrap(data, lambda name, _: names.append(name))
    return len(names)


def _count_lost(ours: Any, theirs: Any) -> int:
    """Return how many values were written with their class, and would not be again."""
    if _has_class(ours) or _has_class(theirs):
        return int(not _has_class(ours))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return sum(_count_lost(ours[key], theirs[key]) for key in ours.keys() & theirs.keys())
    both_lists = isinstance(ours, list) and isinstance(theirs, list)
    return sum(map(_count_lost, ours, theirs)) if both_lists else 0


def _without_decoder(serializer: Any) -> Any:
    """Return a serializer that leaves JSON as it is, where the given one is Prefect's for JSON.

    Its decoder imports the classes that the data names (`prefect_json_object_decoder`).
    """
    if isinstance(serializer, JSONSerializer) and serializer.object_decoder == DECODER:
        options = {"object_pairs_hook": _to_dict, **serializer.loads_kwargs}
        return serializer.model_copy(update={"object_decoder": None, "loads_kwargs": options})
    if isinstance(serializer, CompressedSerializer):
        inner = _without_decoder(serializer.serializer)
        return serializer.model_copy(update={"serializer": inner})
    return serializer


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise Unreadable("has two keys that are the same text in JSON")
    return data


def _core_schema(annotation: Any) -> CoreSchema:
    try:
        return TypeAdapter(annotation).core_schema
    except PydanticSchemaGenerationError:  # a class that pydantic does not know
        config = ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(annotation, config=config).core_schema


def _turned(schema: Any, turn: int) -> Any:
    """Return a core schema whose unions try their members in turn, another one first."""
    if isinstance(schema, list | tuple):
        return type(schema)(_turned(part, turn) for part in schema)
    if not isinstance(schema, dict):
        return schema
    turned = {
        key: part if key in NOT_SCHEMAS else _turned(part, turn) for key, part in schema.items()
    }
    if schema.get("type") == "union":
        choices = turned["choices"]
        first = turn % len(choices)
        turned |= {"mode": "left_to_right", "choices": choices[first:] + choices[:first]}
    return turned


def _widest_union(schema: Any) -> int:
    """Return how many members the union in a core schema has that has most."""
    own, parts = 0, schema
    if isinstance(schema, dict):
        own = len(schema["choices"]) if schema.get("type") == "union" else 0
        parts = [part for key, part in schema.items() if key not in NOT_SCHEMAS]
    if not isinstance(parts, list | tuple):
        return 0
    return max(own, *map(_widest_union, parts), 0)


def _short(class_name: str) -> str:
    return class_name.partition("[")[0].rpartition(".")[2]


def _names(cls: type) -> set[str]:
    """Return the names of a class in data: with its module, and without, which may differ."""
    name = to_qualified_name(cls).partition("[")[0]
    return {name, _short(name)}


def _classes_in(annotation: Any) -> Iterator[type]:
    annotation = getattr(annotation, "__value__", annotation)  # of `type X = ...`
    yield from (cls for cls in (annotation, get_origin(annotation)) if isinstance(cls, type))
    for argument in get_args(annotation):
        yield from _classes_in(argument)


def _subclasses_of(cls: type) -> Iterator[type]:
    subclasses: list[type] = cls.__subclasses__() if cls.__module__ != "builtins" else []
    for subclass in subclasses:
        yield from _subclasses_of(subclass)
        yield subclass
