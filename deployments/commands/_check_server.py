"""What is wrong with the server, in the light of prefect.yaml."""

from __future__ import annotations

import difflib
import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from deployments import maintenance
from deployments.commands._calls import find_child_calls
from deployments.commands._changes import find_changes
from deployments.commands._manifest import Manifest, WorkPool
from deployments.commands._prune import find_leftovers
from deployments.runtime import Returns, Unreadable, online_workers, read_value

# A flow of ours that does nothing when it is asked about a parent that does not exist.
PROBE = maintenance.cancel_orphans.name


async def check_server(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield one line for each thing that is wrong with the server, with what to do."""
    if error := await client.api_healthcheck():
        yield f"{client.api_url} does not answer: {error!r}: start it, or set PREFECT_API_URL"
        return
    ready = True
    for name, pool in manifest.definitions.work_pools.items():
        async for finding in _check_work_pool(client, name, pool):
            ready = False
            yield finding
    flows = {}
    for deployment in manifest.deployments:
        flow = deployment.load_flow()
        name = f"{flow.name}/{deployment.name}"
        flows[name] = flow
        if not await _is_deployed(client, name):
            ready = False
            yield f"{name} is not deployed: `python -m deployments deploy {deployment.name}`"
    if ready:
        for change in await find_changes(client, manifest, os.environ):
            if change.created or change.fields:
                yield f"{change}: `python -m deployments deploy`"
        for leftover in await find_leftovers(client, manifest):
            yield f"{leftover}: `python -m deployments deploy --prune`"
    # The places of each; those of this manifest are looked up above.
    called: dict[str, list[str]] = {}
    for name, flow in flows.items():
        for call in find_child_calls(flow, name.split("/")[1]):
            if call.deployment and call.deployment not in flows:
                called.setdefault(call.deployment, []).append(call.place)
    for name, places in called.items():
        if not await _is_deployed(client, name):
            near = difflib.get_close_matches(name, await _read_names(client), n=1)
            hint = f"did you mean {near[0]}?" if near else "deploy it there"
            yield f"{places[0]}: calls {name}, which is not on {client.api_url}: {hint}"
    for name in flows:
        if (
            ready
            and name.startswith(f"{PROBE}/")
            and (problem := await _check_results(client, name))
        ):
            yield problem


async def _is_deployed(client: PrefectClient, name: str) -> bool:
    try:
        await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return False
    return True


async def _read_names(client: PrefectClient) -> list[str]:
    """Return the names of all deployments on the server."""
    flows: list[Flow] = []
    while some := await client.read_flows(offset=len(flows)):
        flows += some
    deployments: list[DeploymentResponse] = []
    while more := await client.read_deployments(offset=len(deployments)):
        deployments += more
    names = {flow.id: flow.name for flow in flows}
    return [f"{names.get(each.flow_id)}/{each.name}" for each in deployments]


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
        await read_value(run.state, Returns(Any))
    except Unreadable as error:
        return (
            f"the result of {probe} {error}: give parents and children one result storage, such as "
            "a shared PREFECT_LOCAL_STORAGE_PATH"
        )
    return None


async def _runs_in_container(client: PrefectClient, run: FlowRun) -> bool:
    assert run.work_pool_name is not None  # noqa: S101 - each of our deployments has one
    return (await client.read_work_pool(run.work_pool_name)).type != "process"
