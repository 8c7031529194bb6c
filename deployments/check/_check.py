"""What is wrong with prefect.yaml, in the light of the code, before anything is deployed."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.utilities.templating import find_placeholders
from pydantic import ValidationError

from deployments.check._blocks import (
    check_blocks,
    check_results,
    check_results_of_child,
    find_placeholders_in,
)
from deployments.check._calls import ChildCall, find_child_calls
from deployments.parent import is_parent
from deployments.project import Deployment, JobVariables, Manifest, check_name, first_problem
from deployments.values import Returns, find_refused, validate_some


def check_manifest(manifest: Manifest) -> Iterator[str]:
    """Yield one line for each thing that is wrong, with what to do.

    Of a part of prefect.yaml, it tells of its deployments, in the light of the whole.
    """
    # What several deployments share is found with each of them. Users' errors may have many lines.
    yield from dict.fromkeys(" ".join(finding.split()) for finding in _check_manifest(manifest))


def _check_manifest(manifest: Manifest) -> Iterator[str]:
    from prefect.cli.deploy._models import PrefectYamlModel  # slow: with all of Prefect's commands

    whole, file = manifest.whole, manifest.path.name
    try:  # `prefect deploy` skips all of a file that it can't read
        PrefectYamlModel(deployments=[deployment.declared for deployment in whole.deployments])
    except ValidationError as error:
        yield f"{manifest.path}: {first_problem(error)}"
        return
    yield from (f"{file}: definitions.{finding}" for finding in _check_definitions(whole))
    deployments: dict[str, Deployment] = {}
    for deployment in whole.deployments:
        try:
            name = deployment.full_name
        except ValueError as error:
            if deployment in manifest.deployments:
                yield f"{file}: {error}"
            continue
        if name in deployments:
            yield f"{file}: {name} is declared twice: give one of them another name"
        deployments[name] = deployment
    calls = {
        name: list(find_child_calls(deployment.load_flow(), deployment.name))
        for name, deployment in deployments.items()
    }
    called = {call.name for of_one in calls.values() for call in of_one}
    for name, deployment in deployments.items():
        if deployment not in manifest.deployments:
            continue
        for placeholder in _find_unset(deployment.declared):
            yield f"{file}: {placeholder} is not set, and would become empty: set it in .env"
        for findings in (
            _check_flow(deployment, name in called or not is_parent(deployment.load_flow())),
            _check_queue(whole, deployment),
            check_blocks(whole, deployment),
            check_results(whole, deployment),
            _check_sizes(whole, deployment.work_pool.name, deployment.work_pool.job_variables),
        ):
            yield from (f"{file}: {name}: {finding}" for finding in findings)
        for call in calls[name]:
            for finding in _check_call(whole, deployments, deployment, call):
                yield f"{call.place}: {finding}"


def _check_definitions(manifest: Manifest) -> Iterator[str]:
    for automation in manifest.definitions.automations:
        if not automation.name.startswith(f"{manifest.name}: "):
            yield (
                f"automations: {automation.name!r} must begin with the name of the project, "
                f"'{manifest.name}: ', or another project's could replace it"
            )
    for name, pool in manifest.definitions.work_pools.items():
        if not f"{name}-".startswith(f"{manifest.name}-"):
            yield (
                f"work_pools: {name} must begin with the name of the project, "
                f"'{manifest.name}-', or another project's runs could get into it"
            )
        for placeholder in _find_unset(pool.job_variables.model_dump()):
            yield (
                f"work_pools.{name}: {placeholder} is not set, and would become empty: set it in "
                ".env"
            )
        for finding in _check_sizes(manifest, name, pool.job_variables):
            yield f"work_pools.{name}: {finding}"


def _find_unset(declared: Any) -> Iterator[str]:
    """Yield the variables that placeholders name, and the environment lacks."""
    for _, placeholder in find_placeholders_in(declared):
        if placeholder.startswith("$") and placeholder[1:] not in os.environ:
            yield placeholder


def _check_flow(deployment: Deployment, result_is_read: bool) -> Iterator[str]:
    flow = deployment.load_flow()
    try:
        check_name(flow.name)
    except ValueError as error:
        yield f"the flow's name {error}"
    default = get_current_settings().results.persist_by_default
    if result_is_read and not (default if flow.persist_result is None else flow.persist_result):
        yield (
            "a parent can't read its result, since it is not persisted: remove "
            "persist_result=False, or set results.persist_by_default in prefect.toml"
        )
    if result_is_read and flow.isgenerator:
        yield "a parent can't get its result, since it is a generator: return a list"
    try:
        yield from _check_parameters(flow, deployment)
        if result_is_read:
            Returns[Any].of(flow)
    except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything
        yield f"its annotations can't be used: {type(error).__name__}: {error}"


def _check_parameters(flow: Flow[..., Any], deployment: Deployment) -> Iterator[str]:
    yield from _check_values(flow, "parameters", deployment.parameters)
    starts = {}  # what starts runs without anybody who could give a value
    for number, schedule in enumerate(deployment.schedules or []):
        starts[f"schedules.{number}"] = given = schedule.get("parameters", {})
        yield from _check_values(flow, f"schedules.{number}.parameters", given)
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


def _check_sizes(manifest: Manifest, pool: str, variables: JobVariables) -> Iterator[str]:
    """Yield the limits that Docker could not read when it starts a run."""
    pools = manifest.definitions.work_pools
    if pool not in pools or pools[pool].type != "docker":
        return
    import docker.utils  # type: ignore[import-not-found]  # slow

    for name in ("mem_limit", "memswap_limit"):
        size = getattr(variables, name, None)
        if size is None or find_placeholders(size):
            continue
        try:
            readable = isinstance(size, str) and docker.utils.parse_bytes(size) is not None
        except docker.errors.DockerException:
            readable = False
        if not readable:
            yield f"job_variables.{name}: {size!r} is no size: write a text, such as 512m or 4g"


def _check_call(
    manifest: Manifest, deployments: Mapping[str, Deployment], caller: Deployment, call: ChildCall
) -> Iterator[str]:
    if not call.in_parent:
        flow_name = caller.load_flow().name
        yield f"{flow_name} calls a child, and is no parent: make it a @parent_flow"
    if call.dropped:
        yield "this child never runs, since nobody awaits it: write `await` before it"
    name, target = call.name, call.target
    if isinstance(target, str) and not re.fullmatch("[^/]+/[^/]+", target):
        yield f"calls {target!r}: the name must be 'flow-name/deployment-name'"
        return
    child = deployments.get(name or "")
    flow = target if isinstance(target, Flow) else child.load_flow() if child else None
    added = child.parameters if child and isinstance(target, str) else {}
    for problem in _check_arguments(flow, call, added):
        yield f"{name or (flow and flow.name)}: {problem}"
    if child is None:
        if name and isinstance(target, Flow):  # by name, it may be of another repository
            yield f"calls {name}, which is not declared: add it to prefect.yaml"
        return
    for problem in check_results_of_child(manifest, caller, child):
        yield f"{name}: {problem}"
    ours, theirs = caller.work_pool, child.work_pool
    queue_name = call.queue or theirs.work_queue_name
    pool = manifest.definitions.work_pools.get(theirs.name)
    if call.queue and pool and call.queue not in pool.queues:  # Prefect would make it
        yield (
            f"{name}: the work queue {call.queue} is not in "
            f"definitions.work_pools.{theirs.name}.queues: add it there"
        )
    queue = pool.queues.get(queue_name) if pool else None
    shared = (ours.name, ours.work_queue_name) == (theirs.name, queue_name)
    if shared and queue and queue.concurrency_limit is not None:
        yield (
            f"{name} is in the limited queue {ours.name}/{ours.work_queue_name} together with "
            "its parent, which holds a slot while it waits: that is a deadlock. Put the parent "
            "into a queue of its own, without a limit"
        )


def _check_arguments(
    flow: Flow[..., Any] | None, call: ChildCall, added: dict[str, Any]
) -> Iterator[str]:
    """Yield why a call does not fit a child's flow, whose deployment adds some parameters."""
    if call.arguments is None:
        return
    args, names = call.arguments.args, [keyword.arg for keyword in call.arguments.keywords]
    starred = [isinstance(arg, ast.Starred) for arg in args]
    if isinstance(call.target, str) and not all(starred):
        yield "a child called by name takes keywords only"
    elif flow and not any(starred) and None not in names:  # else only a run can tell
        try:
            inspect.signature(flow.fn).bind(*args, **(dict.fromkeys(map(str, names)) | added))
        except TypeError as error:
            yield str(error)
