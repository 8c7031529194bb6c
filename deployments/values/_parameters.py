"""From a call's arguments to the parameters of a run, refused early where they don't fit."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NotRequired, cast, get_type_hints

from prefect.flows import Flow
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import CoreConfig, SchemaValidator
from typing_extensions import TypedDict

from deployments.values._json import (
    holds_secret,
    is_equal,
    mark,
    may_be_secret,
    sort_sets,
    to_plain,
    to_text,
)

# The server refuses more (`prefect.server.api.validation`, PREFECT_SERVER_API_MAX_PARAMETER_SIZE).
MAX_BYTES = 512 * 1024
# What a run is given is the first of these of which it makes the same again. By default that is
# what an author expects; a round trip leaves out what is computed, and keeps `Json` as text.
DUMPS: tuple[dict[str, Any], ...] = (
    {"by_alias": True},
    {"by_alias": True, "round_trip": True},
    {"round_trip": True},
)


def find_refused(flow: Flow[..., Any]) -> Iterator[inspect.Parameter]:
    """Yield the `*rest` and `**named` of a flow because of which no server runs it.

    Until Prefect 3.9, their schema is that of one of their values, and they are required.
    """
    for parameter in inspect.signature(flow.fn).parameters.values():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic and parameter.name in (flow.parameters.required or ()):
            yield parameter


def bind(flow: Flow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, as given, without defaults.

    Raises:
        TypeError: An argument is missing, unknown or given twice; or no server would take them.
    """
    for parameter in find_refused(flow):
        raise TypeError(
            f"{flow.name}: this Prefect can't run a flow with {parameter}: take a list or a dict "
            "instead"
        )
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


def to_json(
    flow: Flow[..., Any], given: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return validated arguments as JSON data of which the run makes equal arguments.

    Args:
        flow: What runs.
        given: The arguments before they were validated.
        arguments: The same, validated.

    Raises:
        ValueError: There is no such data, or too much for the server.
    """
    return _check_size(
        flow.name, {name: _to_json(flow, name, given[name], arguments[name]) for name in arguments}
    )


def to_json_untyped(flow_name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as JSON data, where nothing is known of the flow.

    Raises:
        ValueError: There is no such data, or too much for the server.
    """
    where = f"{flow_name}: parameter"
    return _check_size(
        flow_name, {name: to_json_option(f"{where} {name}", arguments[name]) for name in arguments}
    )


def to_json_option(where: str, value: Any) -> Any:
    """Return a value as JSON data.

    Raises:
        ValueError: It has no such form, or holds a secret; the error begins with `where`.
    """
    _refuse_secret(where, value)
    try:
        return to_plain(value)
    except Exception as error:  # noqa: BLE001 - a serializer of the user's may raise anything
        raise ValueError(f"{where} {_no_json(error)}") from None


def _to_json(flow: Flow[..., Any], name: str, given: Any, argument: Any) -> Any:
    where = f"{flow.name}: parameter {name}"
    _refuse_secret(where, argument)
    adapter = _adapter(flow.name, flow.fn, partial=True)

    def dump(value: Any, options: dict[str, Any]) -> Any:
        data = adapter.dump_python({name: value}, mode="json", **options)[name]
        data = sort_sets(value, data)
        to_text(data)
        return data

    problems: list[str] = []
    # As given, for a validator that does not take what it returns. An iterator is gone by then.
    for options in DUMPS[:1] if isinstance(argument, Iterator) else (*DUMPS, None):
        try:
            data = to_plain(given) if options is None else dump(argument, options)
        except Exception as error:  # noqa: BLE001 - a serializer of the user's may raise anything
            problems.append(_no_json(error))
            continue
        try:
            arrived = adapter.validate_python({name: mark(data)})[name]
            equal = is_equal(argument, arrived)
            # Where its type can't tell, what the run would write of it does.
            equal = equal and (options is None or dump(arrived, options) == data)
        except Exception as error:  # noqa: BLE001 - so may a validator
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            problems.append(f"would be refused when it arrives, as {data!r:.200}: {why}")
            continue
        if equal:
            return data
        problems.append(f"would arrive as {arrived!r:.200}: let its type read what it writes")
    raise ValueError(f"{where} {problems[0]}")


def _no_json(error: Exception) -> str:
    return (
        f"can't be passed as JSON: {error}: pass plain data, and large data by reference, such as "
        "a path"
    )


def _refuse_secret(where: str, value: Any) -> None:
    if holds_secret(value):
        raise ValueError(
            f"{where}: a secret would be passed in the clear, or as asterisks: pass the name of a "
            "Secret block"
        )


def _check_size(flow_name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    size = len(to_text(parameters))
    if size > MAX_BYTES:
        raise ValueError(
            f"{flow_name}: the parameters have {size:,} bytes as JSON, and Prefect takes "
            f"{MAX_BYTES:,}: pass large data by reference, such as a path"
        )
    return parameters


def with_defaults(flow: Flow[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments, and the flow's defaults for those that are not given."""
    bound = inspect.BoundArguments(inspect.signature(flow.fn), OrderedDict(arguments))
    bound.apply_defaults()
    return dict(bound.arguments)


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
    # Prefect does not look into these two.
    variadic: dict[Any, Any] = {
        inspect.Parameter.VAR_POSITIONAL: list[JsonValue],
        inspect.Parameter.VAR_KEYWORD: dict[str, JsonValue],
    }
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(fn).parameters.values():
        hint = variadic.get(parameter.kind) or hints.get(parameter.name, Any)
        optional = partial or parameter.kind in variadic or parameter.default is not parameter.empty
        fields[parameter.name] = NotRequired[hint] if optional else hint
    # TypedDict, not a model: a parameter may be called `json` or `copy`.
    schema = cast(Any, TypedDict)(name, fields)
    schema.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    adapter = TypeAdapter(cast(Any, schema))
    if may_be_secret(adapter.core_schema):
        config = CoreConfig(title=name, hide_input_in_errors=True)
        adapter.validator = SchemaValidator(adapter.core_schema, config)
    return adapter
