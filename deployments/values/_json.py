"""Values as JSON data: what a server can store of them, and whether it comes back equal."""

import dataclasses
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, RootModel, Secret, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

SETS = (set, frozenset)
SECRETS = (Secret, SecretBytes, SecretStr)
ARRAYS = (list, tuple, deque)
IDENTITY: Any = object.__eq__
# JSON data to be read, as subclasses: pydantic hands them on only where no type reads them.
UNREAD: dict[type, Any] = {
    kind: type("Unread", (kind,), {}) for kind in (str, int, float, list, dict)
}


def to_text(data: Any) -> str:
    """Return JSON data as text, if a server can store it.

    Raises:
        TypeError, ValueError: It can't.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # NaN would become null
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("it has a NUL character, which Postgres does not store")
    if '"__prefect_kind":' in text:  # a quote inside of a text has a backslash before it
        raise ValueError("it has a key __prefect_kind, whose dict the server replaces")
    json.dumps(data, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    return text


def to_plain(value: Any) -> Any:
    """Return a value as JSON data, the same in every process.

    Raises:
        TypeError, ValueError: It has no such form.
    """
    data = sort_sets(value, to_jsonable_python(value))
    to_text(data)
    return data


def sort_sets(value: Any, data: Any) -> Any:
    """Return a value's JSON data with its sets in the same order in every process.

    Raises:
        ValueError: Two keys of a mapping are one in JSON.
    """
    if isinstance(value, RootModel):
        return sort_sets(value.root, data)
    kind, parts = _take_apart(value)
    if isinstance(data, list) and len(data) == len(parts):
        if kind not in SETS:
            return list(map(sort_sets, parts.values(), data))
        # The data may be of another process, where the set had another order.
        elements = sorted(
            value, key=lambda element: _unordered(to_jsonable_python(element, fallback=repr))
        )
        items = map(sort_sets, elements, sorted(data, key=_unordered))
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(data, dict):
        if kind is Mapping:  # a key may be another one in JSON
            if len(data) < len(parts):
                raise ValueError("two of its keys are the same text in JSON")
            parts = dict(zip(data, parts.values(), strict=False))
        else:
            parts = parts | _written_by_pydantic(value, parts)
        return {key: sort_sets(parts.get(key), item) for key, item in data.items()}
    return data


def _written_by_pydantic(value: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Return what pydantic writes of a value besides its parts: by alias, and what it computes."""
    decorators = getattr(type(value), "__pydantic_decorators__", None)
    computed = decorators.computed_fields if decorators else {}
    fields = getattr(type(value), "__pydantic_fields__", {})
    return {field.info.alias or name: getattr(value, name) for name, field in computed.items()} | {
        field.serialization_alias: parts[name]
        for name, field in fields.items()
        if name in parts and field.serialization_alias
    }


def _unordered(data: Any) -> str:
    """Return JSON data as text that is the same for every order of what it has in lists."""
    if isinstance(data, list):
        return f"[{','.join(sorted(map(_unordered, data)))}]"
    if isinstance(data, dict):
        return f"{{{','.join(sorted(f'{key}:{_unordered(data[key])}' for key in data))}}}"
    return json.dumps(data)


def holds_secret(value: Any) -> bool:
    """Tell whether a value is a secret that is not empty, or has one at any depth."""
    if isinstance(value, SECRETS):
        return bool(value.get_secret_value())
    return any(map(holds_secret, _take_apart(value)[1].values()))


def may_be_secret(core_schema: Any) -> bool:
    """Tell whether a type's values may be secret: as pydantic says, or the name of a field."""
    return "secret" in repr(core_schema).lower()


def mark(data: Any) -> Any:
    """Return JSON data of which, once it is read, each part tells whether a type has read it."""
    if isinstance(data, list):
        data = [mark(item) for item in data]
    elif isinstance(data, dict):
        data = {mark(key): mark(item) for key, item in data.items()}
    return UNREAD[type(data)](data) if type(data) in UNREAD else data


def count_unread(value: Any) -> int:
    """Return how many parts of what became of marked data were read by no type."""
    if type(value) in UNREAD.values():
        return 1
    return sum(map(count_unread, _take_apart(value)[1].values()))


def is_equal(value: Any, arrived: Any) -> bool:
    """Tell whether what arrived is equal to a value, as far as its type can tell.

    JSON has one kind of array, so a list is as good as a tuple. Where no type has read marked
    data, it is as good as the value whose JSON it is.
    """
    if type(arrived) in UNREAD.values():
        return _same_data(value, arrived)
    (kind, ours), (other_kind, theirs) = _take_apart(value), _take_apart(arrived)
    if value is arrived or kind is None or kind != other_kind:
        return _equals(value, arrived)
    if kind in SETS:
        unread = count_unread(arrived) == len(arrived)
        return value == arrived or (unread and _same_data(value, arrived))
    if isinstance(value, BaseModel):  # its serializer may have added to it: a block's does
        theirs = {key: part for key, part in theirs.items() if key in ours}
    return len(ours) == len(theirs) and all(
        is_equal(key, other) and is_equal(part, other_part)
        for (key, part), (other, other_part) in zip(ours.items(), theirs.items(), strict=True)
    )


def _equals(value: Any, other: Any) -> bool:
    try:
        if value is other or value == other or (value != value and other != other):  # or NaN
            return True
    except Exception:  # noqa: BLE001 - an array, for one, is equal in each of its parts
        return type(value) is type(other)
    return type(value) is type(other) and type(value).__eq__ is IDENTITY


def _same_data(value: Any, other: Any) -> bool:
    try:
        return bool(to_plain(value) == to_plain(other))
    except (TypeError, ValueError):
        return False


def _take_apart(value: Any) -> tuple[Any, dict[Any, Any]]:
    """Return a value's kind, and its parts by field, key or number.

    Those of two values of one kind may be compared. Where the kind is None, there are none.
    """
    if isinstance(value, BaseModel):
        names = [name for name in type(value).model_fields if name in value.__dict__]
        parts = {name: value.__dict__[name] for name in names} | (value.model_extra or {})
        return value.__pydantic_generic_metadata__["origin"] or type(value), parts
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value), {field.name: getattr(value, field.name) for field in fields}
    if isinstance(value, Mapping):
        return Mapping, dict(value)
    for kind in (ARRAYS, *SETS):
        if isinstance(value, kind):
            return kind, dict(enumerate(value))
    return None, {}
