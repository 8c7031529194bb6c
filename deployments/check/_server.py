"""What is wrong with the server, in the light of prefect.yaml."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator

from httpx import HTTPStatusError
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.check._blocks import check_blocks_of_server
from deployments.check._calls import find_child_calls
from deployments.deploy import find_leftovers
from deployments.project import Manifest, WorkPool
from deployments.runs import online_workers

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


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
    for deployment in manifest.deployments:
        if not await _is_deployed(client, deployment.full_name):
            yield (
                f"{deployment.full_name} is not deployed: "
                f"`python -m deployments deploy {deployment.name}`"
            )
    for leftover in await find_leftovers(client, manifest):
        yield f"{leftover}: `python -m deployments deploy --prune`"
    async for finding in _check_called(client, manifest):
        yield finding
    async for finding in check_blocks_of_server(client, manifest):
        yield finding


async def check_leases(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield a line if a restart of the server would end runs, since they hold a limit."""
    limited = [found for found in manifest.deployments if found.declared.get("concurrency_limit")]
    if not limited:
        return
    try:
        settings = (await client.request("GET", "/admin/settings")).json()
    except HTTPStatusError:  # Prefect Cloud has no such route
        return
    if settings["server"]["concurrency"]["lease_storage"] == IN_MEMORY:
        yield (
            f"the server keeps concurrency limits in its memory: when it is restarted, runs of "
            f"{limited[0].name} crash. Start it where prefect.toml is, or with its lease_storage"
        )


async def _check_called(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield the children of other repositories that the server lacks."""
    declared = {deployment.full_name for deployment in manifest.deployments}
    places: dict[str, str] = {}  # the first of each
    for deployment in manifest.deployments:
        for call in find_child_calls(deployment.load_flow(), deployment.name):
            if call.name and call.name not in declared:
                places.setdefault(call.name, call.place)
    for name, place in places.items():
        if not await _is_deployed(client, name):
            near = difflib.get_close_matches(name, await _read_names(client), n=1)
            hint = f"did you mean {near[0]}?" if near else "deploy it there"
            yield f"{place}: calls {name}, which is not on {client.api_url}: {hint}"


async def _is_deployed(client: PrefectClient, name: str) -> bool:
    try:
        await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return False
    return True


async def _read_names(client: PrefectClient) -> list[str]:
    """Return the full names of all deployments on the server."""
    flows: list[Flow] = []
    while some_flows := await client.read_flows(offset=len(flows)):
        flows += some_flows
    deployments: list[DeploymentResponse] = []
    while some := await client.read_deployments(offset=len(deployments)):
        deployments += some
    names = {flow.id: flow.name for flow in flows}
    return [f"{names.get(deployment.flow_id)}/{deployment.name}" for deployment in deployments]


async def _check_work_pool(client: PrefectClient, name: str, pool: WorkPool) -> AsyncIterator[str]:
    try:
        existing = await client.read_work_pool(name)
    except ObjectNotFound:
        yield f"work pool {name} does not exist: `python -m deployments deploy`"
        return
    if existing.type != pool.type:
        yield (
            f"work pool {name} is of type {existing.type}, not {pool.type}: delete it, or rename "
            "one"
        )
    if existing.is_paused:
        yield f"work pool {name} is paused: `prefect work-pool resume {name}`"
    if existing.concurrency_limit is not None:
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
