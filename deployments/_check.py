"""What is wrong with prefect.yaml, in the light of the code, before anything is deployed."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from deployments._parameters import validate_some
from deployments._parent import is_parent
from deployments._unstarted import online_workers
from deployments.manifest import ROOT, Deployment, Manifest, WorkPool

# A flow of ours that does nothing when it is asked about a parent that does not exist.
PROBE = "cancel-orphans"

Flows = dict[str, tuple[Deployment, Flow[..., Any]]]

# Where results go, by either name of each setting (ResultsSettings).
STORAGE_BLOCK = ("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK")
STORAGE_PATH = ("PREFECT_LOCAL_STORAGE_PATH", "PREFECT_RESULTS_LOCAL_STORAGE_PATH")

VARIABLE = re.compile(r"{{\s*\$(\w+)\s*}}")


@dataclass(frozen=True)
class ChildCall:
    """A call of a child in a parent's source, as far as it can be read there.

    Attributes:
        place: `file:line`.
        flow_name: Of the child.
        deployment: Of the child, or None for the parent's own.
        flow: The child, or None where it is called by name.
        call: The call of the child with its parameters, or None where it is made elsewhere.
    """

    place: str
    flow_name: str
    deployment: str | None
    flow: Flow[..., Any] | None
    call: ast.Call | None


def check_manifest(path: Path = ROOT / "prefect.yaml") -> Iterator[str]:
    """Yield one line for each thing that is wrong, with what to do."""
    try:
        manifest = Manifest.load(path)
    except ValueError as error:
        yield str(error)
        return
    yield from find_unset_variables(path)
    flows: Flows = {}
    for deployment in manifest.deployments:
        try:
            flow = deployment.load_flow()
        except Exception as error:  # noqa: BLE001 - the user's module may raise anything
            yield f"{path.name}: {deployment.entrypoint} can't be imported: {error!r}"
            continue
        name = f"{flow.name}/{deployment.name}"
        if name in flows:
            yield f"{path.name}: {name} is declared twice: give one of them another name"
        flows[name] = (deployment, flow)
    for name, (deployment, flow) in flows.items():
        where = f"{path.name}: {name}"
        yield from (f"{where}: {finding}" for finding in _check_flow(deployment, flow))
        yield from (f"{where}: {finding}" for finding in _check_queue(manifest, deployment))
        yield from (f"{where}: {finding}" for finding in _check_container(manifest, deployment))
        for call in find_child_calls(flow):
            yield from _check_call(manifest, flows, deployment, call)


def find_unset_variables(path: Path = ROOT / "prefect.yaml") -> Iterator[str]:
    """Yield one line for each `{{ $VARIABLE }}` of which Prefect would make an empty string."""
    for variable in sorted(set(VARIABLE.findall(path.read_text(encoding="utf-8")))):
        if variable not in os.environ:
            yield f"{path.name}: ${variable} is not set, and would become empty: set it in .env"


async def check_server(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield one line for each thing that is wrong with the server, with what to do."""
    if error := await client.api_healthcheck():
        yield f"{client.api_url} does not answer: {error!r}: start it, or set PREFECT_API_URL"
        return
    ready, probes = True, []
    for name, pool in manifest.definitions.work_pools.items():
        async for finding in _check_work_pool(client, name, pool):
            ready = False
            yield finding
    for deployment in manifest.deployments:
        name = f"{deployment.load_flow().name}/{deployment.name}"
        if name.startswith(f"{PROBE}/"):
            probes.append(name)
        try:
            await client.read_deployment_by_name(name)
        except ObjectNotFound:
            ready = False
            yield f"{name} is not deployed: `python -m deployments deploy {deployment.name}`"
    for probe in probes:
        if ready and (problem := await _check_results(client, probe)):
            yield problem


async def _check_work_pool(client: PrefectClient, name: str, pool: WorkPool) -> AsyncIterator[str]:
    try:
        there = await client.read_work_pool(name)
    except ObjectNotFound:
        yield f"work pool {name} does not exist: `python -m deployments deploy`"
        return
    if there.type != pool.type:
        yield f"work pool {name} is of type {there.type}, not {pool.type}: delete it, or rename one"
    if there.is_paused:
        yield f"work pool {name} is paused: `prefect work-pool resume {name}`"
    if there.concurrency_limit is not None:
        yield (
            f"work pool {name} has a concurrency limit, which parents and children share: that is "
            f"a deadlock. `prefect work-pool clear-concurrency-limit {name}`; limit a queue instead"
        )
    for queue in pool.queues:
        try:
            await client.read_work_queue_by_name(queue, work_pool_name=name)
        except ObjectNotFound:
            yield f"work queue {name}/{queue} does not exist: `python -m deployments deploy`"
    if not await online_workers(client, name):
        yield f"no worker is online for work pool {name}: `prefect worker start --pool {name}`"


async def _check_results(client: PrefectClient, probe: str) -> str | None:
    """Run something harmless, and read its result as a parent would read a child's."""
    run = await arun_deployment(
        probe, client=client, parameters={"parent": str(uuid4())}, timeout=60, poll_interval=0.5
    )
    if run.state is None or not run.state.is_completed():
        return f"{probe} does not complete, but is {run.state}: look at {url_for(run)}"
    in_volume = getattr(run.state.data, "storage_block_id", None) is None
    if in_volume and await _runs_in_container(client, run):
        return None  # a volume, which `check_manifest` looks at: only containers read it
    try:
        await run.state.aresult()
    except Exception as error:  # noqa: BLE001 - each storage has errors of its own
        return (
            f"the result of {probe} can't be read here: {error!r}: give parents and children one "
            "result storage, such as a shared PREFECT_LOCAL_STORAGE_PATH"
        )
    return None


async def _runs_in_container(client: PrefectClient, run: FlowRun) -> bool:
    assert run.work_pool_name is not None  # noqa: S101 - each of our deployments has one
    return (await client.read_work_pool(run.work_pool_name)).type != "process"


def _check_flow(deployment: Deployment, flow: Flow[..., Any]) -> Iterator[str]:
    persists = flow.persist_result
    if persists is None:
        persists = get_current_settings().results.persist_by_default
    if not persists:
        yield (
            "a parent can't read its result, since it is not persisted: remove "
            "persist_result=False, or set results.persist_by_default in prefect.toml"
        )
    tags = {"parent-flows", "parent"} if is_parent(flow) else {"parent-flows"}
    if flow.name != PROBE and (missing := sorted(tags - set(deployment.tags))):
        yield (
            f"tags: lacks {', '.join(missing)}, by which the automations of prefect.yaml find its "
            "runs: add it"
        )
    try:
        validate_some(flow, deployment.parameters)
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            yield f"parameters.{place}: {problem['msg']}"


def _check_queue(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    pools, used = manifest.definitions.work_pools, deployment.work_pool
    if used.name not in pools:
        yield f"its work pool {used.name} is not in definitions.work_pools: add it there"
    elif used.work_queue_name not in pools[used.name].queues:
        yield (
            f"its work queue {used.work_queue_name} is not in "
            f"definitions.work_pools.{used.name}.queues: add it there"
        )


def _check_container(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    used = deployment.work_pool
    pool = manifest.definitions.work_pools.get(used.name)
    if pool is None or pool.type == "process":
        return
    env = used.job_variables.get("env", {})
    if any(env.get(name) for name in STORAGE_BLOCK):
        return
    volumes = [volume.split(":")[1] for volume in used.job_variables.get("volumes", [])]
    path = next((env[name] for name in STORAGE_PATH if env.get(name)), None)
    if path is None or not any(PurePosixPath(path).is_relative_to(each) for each in volumes):
        yield (
            "its results would end with its container: set PREFECT_LOCAL_STORAGE_PATH to a "
            "directory in one of its volumes, or PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, in "
            "work_pool.job_variables.env"
        )


def _check_call(
    manifest: Manifest,
    flows: Flows,
    parent: Deployment,
    call: ChildCall,
) -> Iterator[str]:
    name = f"{call.flow_name}/{call.deployment or parent.name}"
    if name not in flows:
        if call.flow is not None:
            yield f"{call.place}: calls {name}, which is not declared: add it to prefect.yaml"
        return  # by name, it may be of another repository
    child, flow = flows[name]
    if call.call is not None and (problem := _does_not_bind(flow, call.call)):
        yield f"{call.place}: {name}: {problem}"
    ours, theirs = parent.work_pool, child.work_pool
    pool = manifest.definitions.work_pools.get(ours.name)
    queue = pool.queues.get(ours.work_queue_name) if pool else None
    shared = (ours.name, ours.work_queue_name) == (theirs.name, theirs.work_queue_name)
    if shared and queue and queue.concurrency_limit is not None:
        yield (
            f"{call.place}: {name} is in the limited queue {ours.name}/{ours.work_queue_name} "
            "together with its parent, which holds a slot while it waits: that is a deadlock. "
            "Put the parent into a queue of its own, without a limit"
        )


def _does_not_bind(flow: Flow[..., Any], call: ast.Call) -> str | None:
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    if any(keyword.arg is None for keyword in call.keywords):
        return None
    try:
        inspect.signature(flow.fn).bind(*call.args, **{str(k.arg): k for k in call.keywords})
    except TypeError as error:
        return str(error)
    return None


def find_child_calls(flow: Flow[..., Any]) -> Iterator[ChildCall]:
    """Yield the calls of `child(...)` in the module of a parent flow."""
    if not is_parent(flow):
        return  # a call in its module is that of a parent beside it
    function = inspect.unwrap(flow.fn)
    source = Path(function.__code__.co_filename)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made_of = {id(node.func): node for node in calls}  # child(flow) -> child(flow)(parameters)
    for node in sorted(calls, key=lambda call: call.lineno):
        if not (ast.unparse(node.func) in ("child", "deployments.child") and node.args):
            continue
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        deployment = options.get("deployment")
        if deployment is not None and not isinstance(deployment, ast.Constant):
            continue
        place = f"{os.path.relpath(source, ROOT)}:{node.lineno}"
        named = None if deployment is None else str(deployment.value)
        target = node.args[0]
        if isinstance(target, ast.Constant):
            flow_name, _, named = str(target.value).partition("/")
            yield ChildCall(place, flow_name, named, None, made_of.get(id(node)))
        elif isinstance(target, ast.Name):
            found = function.__globals__.get(target.id)
            if isinstance(found, Flow):
                yield ChildCall(place, found.name, named, found, made_of.get(id(node)))
