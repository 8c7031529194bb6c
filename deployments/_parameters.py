"""From a call's arguments to the parameters of a run, refused early where they don't fit."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, NotRequired, cast, get_type_hints

from prefect.flows import Flow
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

# The server refuses more (`prefect.server.api.validation`, PREFECT_SERVER_API_MAX_PARAMETER_SIZE).
MAX_BYTES = 512 * 1024
# What pydantic makes of a secret in JSON.
MASKED = "**********"


def bind(flow: Flow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, as given, without defaults.

    Raises:
        TypeError: An argument is missing, unknown or given twice.
    """
    try:
        return dict(inspect.signature(flow.fn).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TypeError(f"{flow.name}: {error}") from None


def validate(flow: Flow[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as the flow's annotations want them.

    Raises:
        ValidationError: A value does not fit; the error is titled with the flow's name.
    """
    return _adapter(flow.name, flow.fn).validate_python(arguments)


def validate_some(flow: Flow[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Do as `validate`, where some of the arguments will come later.

    Raises:
        ValidationError: A value does not fit.
    """
    return _adapter(flow.name, flow.fn, partial=True).validate_python(arguments)


def to_json(flow: Flow[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return validated arguments as the JSON data that Prefect passes to a run.

    Raises:
        ValueError: JSON has no such value, or there is too much for the server.
    """
    adapter = _adapter(flow.name, flow.fn)
    parameters = adapter.dump_python(arguments, mode="json", by_alias=True)
    for name, value in arguments.items():
        if isinstance(value, set | frozenset):  # its order differs from process to process
            parameters[name] = sorted(parameters[name], key=json.dumps)
    return check_json(flow.name, parameters)


def check_json(flow_name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters if the server takes them.

    Raises:
        ValueError: JSON has no such value, or there is too much for the server.
    """
    try:
        text = json.dumps(parameters, allow_nan=False)
    except (TypeError, ValueError) as error:  # NaN would become null, silently
        raise ValueError(f"{flow_name}: a parameter can't be passed as JSON: {error}") from None
    if MASKED in text:
        raise ValueError(
            f"{flow_name}: a secret would be passed as {MASKED}: pass the name of a Secret block"
        )
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"{flow_name}: the parameters have {len(text):,} bytes as JSON, and Prefect takes "
            f"{MAX_BYTES:,}: pass large data by reference, such as a path"
        )
    return parameters


def with_defaults(flow: Flow[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments, and the flow's defaults for those that are not given."""
    empty: dict[Any, Any] = {
        inspect.Parameter.VAR_POSITIONAL: (),
        inspect.Parameter.VAR_KEYWORD: {},
    }
    defaults = {
        parameter.name: empty.get(parameter.kind, parameter.default)
        for parameter in inspect.signature(flow.fn).parameters.values()
        if parameter.kind in empty or parameter.default is not parameter.empty
    }
    return defaults | arguments


def type_hints(name: str, fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a flow's function.

    Raises:
        TypeError: One of them can't be resolved.
    """
    try:
        return get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise TypeError(f"{name}: {error}: import it outside `if TYPE_CHECKING`") from error


@functools.lru_cache(maxsize=256)
def _adapter(
    name: str, fn: Callable[..., Any], partial: bool = False
) -> TypeAdapter[dict[str, Any]]:
    hints = type_hints(name, fn)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(fn).parameters.values():
        hint = hints.get(parameter.name, Any)
        required = parameter.default is parameter.empty and not partial
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            hint, required = Any, False  # Prefect takes them as one parameter, a list or an object
        fields[parameter.name] = hint if required else NotRequired[hint]
    # TypedDict, not a model: a parameter may be called `json` or `copy`.
    schema = cast(Any, TypedDict)(name, fields)
    schema.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    return TypeAdapter(cast(Any, schema))
