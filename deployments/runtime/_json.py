"""Values as JSON data: what a server can store of them, and what a run makes of it."""

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


def to_text(data: Any) -> str:
    """Return JSON data as text, if a server can store it.

    Raises:
        TypeError, ValueError: It can't.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # NaN would become null
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("it has a NUL character, which Postgres does not store")
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
    """Return a value's JSON data with its sets in the same order in every process."""
    if isinstance(value, RootModel):
        return sort_sets(value.root, data)
    parts = _parts(value)
    if isinstance(data, list) and len(data) == len(parts):
        items = [sort_sets(part, item) for part, item in zip(parts.values(), data, strict=True)]
        return sorted(items, key=_sorting) if isinstance(value, SETS) else items
    if isinstance(data, dict):
        if isinstance(value, Mapping):  # a key may be another one in JSON
            parts = dict(zip(data, parts.values(), strict=False))
        else:
            fields = getattr(type(value), "__pydantic_fields__", {})
            parts |= {
                field.serialization_alias: parts[name]
                for name, field in fields.items()
                if name in parts and field.serialization_alias
            }
        return {key: sort_sets(parts.get(key), item) for key, item in data.items()}
    return data


def holds_secret(value: Any) -> bool:
    """Tell whether a value is a secret that is not empty, or has one at any depth."""
    if isinstance(value, SECRETS):
        return bool(value.get_secret_value())
    return any(holds_secret(part) for part in _parts(value).values())


def find_loss(value: Any) -> str | None:
    """Return what a value lacks that came through JSON, as far as its own types tell."""
    if isinstance(value, SECRETS):
        return "JSON has asterisks for a secret: return the name of a Secret block"
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            if field.exclude:
                return f"{type(value).__name__}.{name} is left out of JSON (exclude=True)"
    return next(filter(None, map(find_loss, _parts(value).values())), None)


def stands_for(arrived: Any, value: Any) -> bool:
    """Tell whether what a run makes of a value's JSON data is as good as the value.

    It is equal; or it is that data, where no annotation tells the run more.
    """
    kind = _kind(value)
    if kind is not None and kind == _kind(arrived):
        ours, theirs = _parts(value), _parts(arrived)
        if isinstance(value, BaseModel):  # its serializer may have added to it: a block's does
            theirs = {key: part for key, part in theirs.items() if key in ours}
        same = ours.keys() == theirs.keys() and all(
            stands_for(theirs[key], part) for key, part in ours.items()
        )
    else:
        same = _equals(value, arrived)
    return same or (_is_plain(arrived) and _same_data(arrived, value))


def _equals(value: Any, other: Any) -> bool:
    """Tell whether two values are equal, as far as their type can tell."""
    try:
        if value == other or (value != value and other != other):  # or both are NaN
            return True
    except Exception:  # noqa: BLE001 - an array, for one, is equal in each of its parts
        return type(value) is type(other)
    return type(value) is type(other) and type(value).__eq__ is IDENTITY


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, str | int | float):
        return True
    return isinstance(value, (dict, list, *SETS)) and all(map(_is_plain, _parts(value).values()))


def _same_data(value: Any, other: Any) -> bool:
    try:
        return bool(to_plain(value) == to_plain(other))
    except (TypeError, ValueError):
        return False


def _kind(value: Any) -> Any:
    """Return what two values have in common whose parts may be compared."""
    if isinstance(value, BaseModel):
        return value.__pydantic_generic_metadata__["origin"] or type(value)
    if _is_dataclass(value):
        return type(value)
    return next((kind for kind in (Mapping, ARRAYS) if isinstance(value, kind)), None)


def _parts(value: Any) -> dict[Any, Any]:
    """Return what a value is made of: by field, key or number."""
    if isinstance(value, BaseModel):
        names = [name for name in type(value).model_fields if name in value.__dict__]
        return {name: value.__dict__[name] for name in names} | (value.model_extra or {})
    if _is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, ARRAYS + SETS) else {}


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _sorting(data: Any) -> str:
    return json.dumps(data, sort_keys=True)
