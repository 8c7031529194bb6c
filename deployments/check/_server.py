"""What is wrong with the server, in the light of prefect.yaml."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator

from httpx import HTTPStatusError
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from deployments.check._blocks import check_blocks_of_server
from deployments.check._calls import find_child_calls
from deployments.deploy import find_leftovers, with_safety_net
from deployments.project import Manifest, WorkPool
from deployments.runs import online_workers, read_everything

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


async def check_server(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield one line for each thing that is wrong with the server, with what to do."""
    manifest = with_safety_net(manifest)
    for findings in (
        *(_check_work_pool(client, *named) for named in manifest.definitions.work_pools.items()),
        check_leases(client, manifest),
        _check_automations(client, manifest),
        _check_deployments(client, manifest),
        check_blocks_of_server(client, manifest),
    ):
        async for finding in findings:
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


async def _check_automations(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    for automation in manifest.definitions.automations:
        if not await client.read_automations_by_name(automation.name):
            yield f"automation {automation.name} does not exist: `python -m deployments deploy`"


async def _check_deployments(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    flows = {flow.id: flow.name for flow in await read_everything(client.read_flows)}
    existing = await read_everything(client.read_deployments)
    names = [f"{flows.get(deployment.flow_id)}/{deployment.name}" for deployment in existing]
    called: dict[str, str] = {}  # from where first
    for deployment in manifest.deployments:
        if deployment.full_name not in names:
            command = f"`python -m deployments deploy {deployment.name}`"
            yield f"{deployment.full_name} is not deployed: {command}"
        for call in find_child_calls(deployment.load_flow(), deployment.name):
            if call.name:
                called.setdefault(call.name, call.place)
    for leftover in await find_leftovers(client, manifest):
        yield f"{leftover}: `python -m deployments deploy --prune`"
    declared = {deployment.full_name for deployment in manifest.deployments}
    for name, place in called.items():
        if name not in declared.union(names):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "deploy it there"
            yield f"{place}: calls {name}, which is not on {client.api_url}: {hint}"


async def _check_work_pool(client: PrefectClient, name: str, pool: WorkPool) -> AsyncIterator[str]:
    try:
        existing = await client.read_work_pool(name)
    except ObjectNotFound:
        yield f"work pool {name} does not exist: `python -m deployments deploy`"
        return
    if existing.type != pool.type:
        types = f"of type {existing.type}, not {pool.type}"
        yield f"work pool {name} is {types}: delete it, or rename one"
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
