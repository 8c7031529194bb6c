"""Where flows call children, as far as their source tells."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from prefect.flows import Flow
from prefect.tasks import Task

from deployments.parent import child, is_parent
from deployments.project import ROOT, is_installed

# What a name stands for where only a run can tell.
UNKNOWN = object()


@dataclass(frozen=True)
class ChildCall:
    """A call of `child(...)`.

    Attributes:
        place: `file:line`.
        in_parent: Whether a parent flow runs when it is made.
        target: The child: a flow, or its full name; None where only a run can tell.
        name: The full name of the child's deployment; None where only a run can tell.
        queue: The work queue that the call names; None where it names none, or only a run can tell.
        arguments: The call of the child with its parameters, or None where it is made elsewhere.
        dropped: Whether what is to be awaited is a statement of its own, so that nobody does.
    """

    place: str
    in_parent: bool
    target: Flow[..., Any] | str | None
    name: str | None
    queue: str | None
    arguments: ast.Call | None
    dropped: bool


def find_child_calls(flow: Flow[..., Any], deployment_name: str) -> Iterator[ChildCall]:
    """Yield the calls of children in a flow, and in the functions, tasks and flows that it calls.

    Names mean what they mean to the code: `child`, `deployments.child` and that of `from
    deployments import child as c` are one; `helper()` and `module.helper()` are followed into
    other modules, but not into installed packages.

    Only a run can tell, so these are not found: calls of methods; of functions that are bound in
    a function (parameters, variables, imports there) or passed on (`map(helper, ...)`); and the
    parameters of a child that is kept first (`c = child(f)`, `c(...)`).

    Args:
        flow: The flow.
        deployment_name: The name of its deployment; of those of its children, where they name none.
    """
    yield from _find(flow, deployment_name, in_parent=False, seen=set())


def _find(
    called: Any, deployment_name: str, *, in_parent: bool, seen: set[tuple[CodeType, bool]]
) -> Iterator[ChildCall]:
    if isinstance(called, Flow):
        in_parent = in_parent or is_parent(called)
    function = inspect.unwrap(called.fn if isinstance(called, Flow | Task) else called)
    if not isinstance(function, FunctionType) or (function.__code__, in_parent) in seen:
        return
    seen.add((function.__code__, in_parent))
    nodes = [node for statement in _read_body(function) for node in ast.walk(statement)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    dropped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    arguments = {id(_callee(call)): call for call in calls}
    # What a function binds itself hides the globals.
    hidden = _bound(function.__code__)
    names = {name: value for name, value in function.__globals__.items() if name not in hidden}
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        value = _value(call.func, names)
        if value is child:
            place = f"{os.path.relpath(function.__code__.co_filename, ROOT)}:{call.lineno}"
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            target, name = _read_target(call, options, names, deployment_name)
            queue = _value(options.get("work_queue_name"), names)
            made = arguments.get(id(call))
            alone = id(made or call) in dropped
            named = queue if isinstance(queue, str) else None
            yield ChildCall(place, in_parent, target, name, named, made, alone)
        elif isinstance(value, Flow | Task | FunctionType):
            yield from _find(value, deployment_name, in_parent=in_parent, seen=seen)


def _callee(call: ast.Call) -> ast.expr:
    """Return what is called: `child(f)` in `child(f)(...)` and in `child(f).submit(...)`."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "submit":
        return call.func.value
    return call.func


def _read_target(
    call: ast.Call,
    options: dict[str | None, ast.expr],
    names: dict[str, Any],
    deployment_name: str,
) -> tuple[Flow[..., Any] | str | None, str | None]:
    """Return the target of a call of `child`, and the full name of its deployment."""
    given = call.args[0] if call.args else options.get("target")
    target = _value(given, names)
    if isinstance(target, str):
        return target, target
    if not isinstance(target, Flow):
        return None, None
    name = _value(options["deployment"], names) if "deployment" in options else None
    if None in options or not (name is None or isinstance(name, str)):  # `**options`
        return target, None
    return target, f"{target.name}/{name or deployment_name}"


def _value(node: ast.expr | None, names: dict[str, Any]) -> Any:
    """Return what an expression stands for, without running any code."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, UNKNOWN)
        case ast.Attribute():
            owner = _value(node.value, names)
            if isinstance(owner, ModuleType):
                return vars(owner).get(node.attr, UNKNOWN)
    return UNKNOWN


def _bound(code: CodeType) -> set[str]:
    bound = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return bound.union(*map(_bound, inner))


def _read_body(function: FunctionType) -> list[ast.stmt]:
    """Return the statements of a function, with the line numbers of its file."""
    if is_installed(Path(function.__code__.co_filename)):
        return []
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError, ValueError):  # made at run time, or a lambda
        return []
    ast.increment_lineno(definition, function.__code__.co_firstlineno - 1)
    return definition.body if isinstance(definition, ast.AsyncFunctionDef | ast.FunctionDef) else []
