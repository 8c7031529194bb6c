"""Values as JSON data, there and back: arguments of a run, and results."""

from deployments.values._parameters import (
    bind,
    find_refused,
    to_json,
    to_json_option,
    to_json_untyped,
    type_hints,
    validate,
    validate_some,
    with_defaults,
)
from deployments.values._returns import Returns, Unreadable
from deployments.values._stored import read_exception, read_value

__all__ = [
    "Returns",
    "Unreadable",
    "bind",
    "find_refused",
    "read_exception",
    "read_value",
    "to_json",
    "to_json_option",
    "to_json_untyped",
    "type_hints",
    "validate",
    "validate_some",
    "with_defaults",
]
