"""What a child returns: how an annotation reads what a serializer wrote."""

from __future__ import annotations  # or `Serializer[Any]` would be made a serializer of its own

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, get_args, get_origin

from prefect.client.schemas.objects import State
from prefect.serializers import CompressedSerializer, JSONSerializer, Serializer
from prefect.utilities.importtools import to_qualified_name
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from deployments.runtime._json import find_loss

R = TypeVar("R")

# How Prefect writes what JSON does not know (`prefect_json_object_encoder`).
DECODER = JSONSerializer().object_decoder
WRAPPER = {"__class__", "data"}
STATE = to_qualified_name(State)


class Unreadable(Exception):
    """Tell why a result can't be read."""


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
        known = [each for cls in named for each in _subclasses_of(cls)]
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
