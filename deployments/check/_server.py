"""What is wrong with the server, in the light of prefect.yaml."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.check._blocks import check_blocks_of_server
from deployments.check._calls import find_child_calls
from deployments.check._leases import check_leases
from deployments.deploy import find_leftovers
from deployments.project import Manifest, WorkPool
from deployments.runs import online_workers


async def check_server(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield one line for each thing that is wrong with the server, with what to do."""
    for name, pool in manifest.definitions.work_pools.items():
        async for finding in _check_work_pool(client, name, pool):
            yield finding
    for automation in manifest.definitions.automations:
        if not await client.read_automations_by_name(automation.name):
            yield f"automation {automation.name} does not exist: `python -m deployments deploy`"
    async for finding in check_leases(client, manifest):
        yield finding
    flows, deployments = {}, {}
    for deployment in manifest.deployments:
        flow = deployment.load_flow()
        name = f"{flow.name}/{deployment.name}"
        flows[name], deployments[name] = flow, deployment
        if not await _is_deployed(client, name):
            yield f"{name} is not deployed: `python -m deployments deploy {deployment.name}`"
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
    async for finding in check_blocks_of_server(client, manifest, deployments):
        yield finding


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
