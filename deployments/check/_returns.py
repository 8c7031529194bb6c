"""What a flow's annotation shows about its result, before anything runs.

A result is stored by Prefect's JSON serializer in the child's process, and validated against the
annotation in the parent's.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from prefect.flows import Flow
from prefect.settings import get_current_settings
from pydantic import PydanticSchemaGenerationError, TypeAdapter

from deployments.values import type_hints

GENERATORS = (
    abc.AsyncGenerator,
    abc.AsyncIterable,
    abc.AsyncIterator,
    abc.Generator,
    abc.Iterable,
    abc.Iterator,
)
OTHERWISE = "a path, or give the flow a result_serializer"
GENERATOR = "it is a generator, and a result is one value: return a list"
# By the type of a pydantic core schema.
NOT_JSON = {
    "generator": GENERATOR,
    "bytes": f"of bytes, JSON holds only those that are text: return a str (base64), {OTHERWISE}",
    "callable": "JSON has no functions: return data",
    "is-instance": f"JSON has no such class: return a model or plain data, {OTHERWISE}",
    "is-subclass": "JSON has no classes: return data",
}
SECRET = "a secret arrives as asterisks: return the name of a Secret block"  # noqa: S105
# Keys that `json` does not write: outside of a model, it meets them as they are.
NOT_KEYS = {
    "bytes",
    "dataclass",
    "date",
    "datetime",
    "decimal",
    "frozenset",
    "is-instance",
    "model",
}
NOT_KEYS |= {"time", "timedelta", "tuple", "url", "uuid"}
KEYS = "JSON has only text and numbers as keys: return those, a list of pairs, or a model"
# Keys of a core schema that hold what users wrote, not schemas.
NOT_SCHEMAS = {"metadata", "default", "expected", "serialization"}


def check_return(flow: Flow[..., Any]) -> Iterator[str]:
    """Yield why a parent can't get what a flow's annotation says that it returns.

    Where a flow has a serializer of its own, other than JSON, its author knows.

    Raises:
        TypeError: An annotation can't be resolved.
    """
    serializer = flow.result_serializer or get_current_settings().results.default_serializer
    if (serializer if isinstance(serializer, str) else serializer.type) != "json":
        return
    annotation = type_hints(flow.name, flow.fn).get("return", Any)
    function = inspect.unwrap(flow.fn)
    generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if generates or _is_generator(annotation):
        reasons = [GENERATOR]
    else:
        try:
            # A set: the same may be in many places.
            reasons = sorted(set(_find(TypeAdapter(annotation).core_schema)))
        except PydanticSchemaGenerationError:
            reasons = [NOT_JSON["is-instance"]]
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything
            reasons = [f"pydantic can't validate it: {error!r}"]
    for reason in reasons:
        line = f"a parent can't get its result, {inspect.formatannotation(annotation)}: {reason}"
        yield " ".join(line.split())


def _is_generator(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return any(kind is each for each in GENERATORS) or any(
        _is_generator(part) for part in get_args(annotation)
    )


def _find(schema: Any, plain: bool = True) -> Iterator[str]:
    """Yield what is wrong anywhere in a core schema: in its models and containers, too.

    Args:
        schema: The core schema.
        plain: Whether Python's own `json` meets it, or pydantic, which writes models and sets.
    """
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from _find(part, plain)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if "function" in (schema.get("serialization") or {}):  # its author knows
        if "_serialize_secret" in repr(schema["serialization"]):
            yield SECRET
        return
    if isinstance(kind, str) and kind in NOT_JSON:
        yield NOT_JSON[kind]
    elif kind == "json-or-python":
        yield from _find(schema["json_schema"], plain)
    elif kind == "lax-or-strict":
        yield from _find(schema["lax_schema"], plain)
    else:
        if kind == "dict" and plain and _has_other_keys(schema.get("keys_schema")):
            yield KEYS
        plain = plain and kind not in ("dataclass", "frozenset", "model", "set")
        for key, part in schema.items():
            if key not in NOT_SCHEMAS:
                yield from _find(part, plain)


def _has_other_keys(schema: Any) -> bool:
    """Tell whether what a core schema reads may be a key that `json` does not write."""
    if isinstance(schema, list | tuple):
        return any(map(_has_other_keys, schema))
    if not isinstance(schema, dict):
        return False
    if schema.get("type") == "enum":  # one of texts or numbers is one itself
        return "sub_type" not in schema
    parts = [schema[key] for key in schema if key not in NOT_SCHEMAS]
    return schema.get("type") in NOT_KEYS or any(map(_has_other_keys, parts))
