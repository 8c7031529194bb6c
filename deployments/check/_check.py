"""What is wrong with prefect.yaml, in the light of the code, before anything is deployed."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.utilities.templating import find_placeholders
from pydantic import ValidationError

from deployments.check._blocks import check_blocks
from deployments.check._calls import ChildCall, find_child_calls
from deployments.check._containers import check_job_variables, check_results
from deployments.check._notice import Flows, check_automations, check_noticed, check_pools
from deployments.check._outputs import check_outputs
from deployments.check._returns import check_return
from deployments.parent import is_parent
from deployments.project import ROOT, Deployment, Manifest, check_name, first_problem
from deployments.values import find_refused, validate_some

VARIABLE = re.compile(r"{{\s*\$(\w+)\s*}}")


def check_manifest(path: Path = ROOT / "prefect.yaml", *names: str) -> Iterator[str]:
    """Yield one line for each thing that is wrong, with what to do.

    Args:
        path: Of the file.
        names: Of the deployments to look at; by default, all.
    """
    # What several deployments share is found with each of them.
    yield from dict.fromkeys(_check_manifest(path, names))


def find_unset_variables(path: Path = ROOT / "prefect.yaml") -> Iterator[str]:
    """Yield one line for each `{{ $VARIABLE }}` of which Prefect would make an empty string."""
    for variable in sorted(set(VARIABLE.findall(path.read_text(encoding="utf-8")))):
        if variable not in os.environ:
            yield f"{path.name}: ${variable} is not set, and would become empty: set it in .env"


def _check_manifest(path: Path, names: tuple[str, ...]) -> Iterator[str]:
    try:
        manifest = Manifest.load(path)
        _require_model(path)
    except ValueError as error:
        yield str(error)
        return
    yield from find_unset_variables(path)
    flows: dict[str, tuple[Deployment, Flow[..., Any]]] = {}
    for deployment in manifest.deployments:
        try:
            flow = deployment.load_flow()
        except ValueError as error:
            if not names or deployment.name in names:
                yield f"{path.name}: {error}"
            continue
        name = f"{flow.name}/{deployment.name}"
        if name in flows:
            yield f"{path.name}: {name} is declared twice: give one of them another name"
        flows[name] = (deployment, flow)
    for findings in (check_pools(manifest.definitions, flows), check_automations(manifest)):
        yield from (f"{path.name}: {finding}" for finding in findings)
    calls = {name: list(find_child_calls(flow, of.name)) for name, (of, flow) in flows.items()}
    called = {call.deployment for each in calls.values() for call in each}
    for name, (deployment, flow) in flows.items():
        if names and deployment.name not in names:
            continue
        for findings in (
            _check_flow(deployment, flow, result_is_read=name in called or not is_parent(flow)),
            check_noticed(manifest.definitions, flows, name),
            _check_queue(manifest, deployment),
            check_blocks(deployment),
            check_outputs(manifest, deployment),
            check_job_variables(manifest, deployment),
        ):
            yield from (f"{path.name}: {name}: {finding}" for finding in findings)
        for call in calls[name]:
            for finding in _check_call(manifest, flows, name, call):
                yield f"{call.place}: {finding}"


def _require_model(path: Path) -> None:
    """Ask Prefect whether it can read a file: `prefect deploy` skips all of one that it can't.

    Raises:
        ValueError: It can't; in one line, with the place.
    """
    from prefect.cli.deploy._models import PrefectYamlModel  # slow: with all of Prefect's commands

    try:
        PrefectYamlModel.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from error


def _check_flow(
    deployment: Deployment, flow: Flow[..., Any], result_is_read: bool
) -> Iterator[str]:
    try:
        check_name(flow.name)
    except ValueError as error:
        yield f"the flow's name {error}"
    persists = flow.persist_result
    if persists is None:
        persists = get_current_settings().results.persist_by_default
    if result_is_read and not persists:
        yield (
            "a parent can't read its result, since it is not persisted: remove "
            "persist_result=False, or set results.persist_by_default in prefect.toml"
        )
    try:
        yield from _check_parameters(deployment, flow)
        if result_is_read:
            yield from check_return(flow)
    except TypeError as error:  # an annotation can't be resolved
        yield str(error)


def _check_parameters(deployment: Deployment, flow: Flow[..., Any]) -> Iterator[str]:
    yield from _check_values(flow, "parameters", deployment.parameters)
    starts = {}  # what starts runs without anybody who could give a value
    for number, schedule in enumerate(deployment.schedules or []):
        starts[f"schedules.{number}"] = schedule.parameters
        yield from _check_values(flow, f"schedules.{number}.parameters", schedule.parameters)
    for number, trigger in enumerate(deployment.triggers or []):
        starts[f"triggers.{number}"] = trigger.parameters or {}  # templates, of any value
    for place, parameters in starts.items():
        for name in required_parameters(flow):
            if name not in deployment.parameters | parameters:
                yield (
                    f"{place}: its runs would fail, since {name} has no value: give one in its "
                    "parameters, or in the deployment's"
                )


def required_parameters(flow: Flow[..., Any]) -> list[str]:
    """Return the names of the parameters that a run must be given."""
    refused = [parameter.name for parameter in find_refused(flow)]
    return [name for name in flow.parameters.required if name not in refused]


def _check_values(flow: Flow[..., Any], place: str, parameters: dict[str, Any]) -> Iterator[str]:
    known = {  # a template is a value only when it is deployed
        name: value
        for name, value in parameters.items()
        if name not in flow.parameters.properties or not find_placeholders(value)
    }
    try:
        validate_some(flow, known)
    except ValidationError as error:
        for problem in error.errors():
            yield f"{'.'.join([place, *map(str, problem['loc'])])}: {problem['msg']}"


def _check_queue(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    pools, used = manifest.definitions.work_pools, deployment.work_pool
    if used.name not in pools:
        yield f"its work pool {used.name} is not in definitions.work_pools: add it there"
    elif used.work_queue_name not in pools[used.name].queues:
        yield (
            f"its work queue {used.work_queue_name} is not in "
            f"definitions.work_pools.{used.name}.queues: add it there"
        )


def _check_call(manifest: Manifest, flows: Flows, parent: str, call: ChildCall) -> Iterator[str]:
    deployment, caller = flows[parent]
    if not call.in_parent:
        yield f"{caller.name} calls a child, and is no parent: make it a @parent_flow"
    if call.dropped:
        yield "this child never runs, since nobody awaits it: write `await` before it"
    name, target = call.deployment, call.target
    if isinstance(target, str) and not re.fullmatch("[^/]+/[^/]+", target):
        yield f"calls {target!r}: the name must be 'flow-name/deployment-name'"
        return
    child, declared = flows.get(name or "", (None, None))
    flow = target if isinstance(target, Flow) else declared
    added = child.parameters if child and isinstance(target, str) else {}
    for problem in _check_arguments(flow, call, added):
        yield f"{name or (flow and flow.name)}: {problem}"
    if name is None:
        return
    if child is None:
        if isinstance(target, Flow):  # by name, it may be of another repository
            yield f"calls {name}, which is not declared: add it to prefect.yaml"
        return
    for problem in check_results(deployment, child):
        yield f"{name}: {problem}"
    ours, theirs = deployment.work_pool, child.work_pool
    pool = manifest.definitions.work_pools.get(ours.name)
    queue = pool.queues.get(ours.work_queue_name) if pool else None
    shared = (ours.name, ours.work_queue_name) == (theirs.name, theirs.work_queue_name)
    if shared and queue and queue.concurrency_limit is not None:
        yield (
            f"{name} is in the limited queue {ours.name}/{ours.work_queue_name} together with "
            "its parent, which holds a slot while it waits: that is a deadlock. Put the parent "
            "into a queue of its own, without a limit"
        )


def _check_arguments(
    flow: Flow[..., Any] | None, call: ChildCall, added: dict[str, Any]
) -> Iterator[str]:
    """Yield why a call does not fit its child, where that is plain.

    Args:
        flow: The child's, if it is known.
        call: The call.
        added: The parameters that the child's deployment adds to those of a call by name.
    """
    args = call.arguments.args if call.arguments else []
    if isinstance(call.target, str) and any(not isinstance(each, ast.Starred) for each in args):
        yield "a child called by name takes keywords only"
        return
    if flow is None:
        return
    for parameter in find_refused(flow):
        taken = parameter.replace(annotation=parameter.empty)
        yield (
            f"this Prefect refuses runs of a flow that takes {taken}: make it one parameter, a "
            "list or a dict"
        )
    names = [keyword.arg for keyword in call.arguments.keywords] if call.arguments else [None]
    if None in names or any(isinstance(each, ast.Starred) for each in args):
        return  # only a run can tell
    try:
        inspect.signature(flow.fn).bind(*args, **(dict.fromkeys(map(str, names)) | added))
    except TypeError as error:
        yield str(error)
