"""What our deploys have left on a server and prefect.yaml no longer declares."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    FlowRunFilter,
    WorkPoolFilter,
    WorkQueueFilter,
)
from prefect.settings import get_current_settings
from rich.console import Console

from deployments._console import confirm
from deployments.deploy._definitions import mark_of
from deployments.deploy._deploy import PROJECT, deploy_manifest
from deployments.deploy._safety_net import with_safety_net
from deployments.project import Manifest
from deployments.runs import UNFINISHED, online_workers, read_everything
from deployments.servers import require_server

SERVER_SECONDS = 60


@dataclass(frozen=True)
class Leftover:
    """A thing that prefect.yaml no longer declares.

    Attributes:
        kind: Deployment, automation, work queue or work pool.
        runs: The names of its unfinished runs, of a deployment.
    """

    kind: str
    name: str
    id: UUID
    runs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say so in a line."""
        runs = f": unfinished runs: {', '.join(self.runs)}" if self.runs else ""
        return f"no longer declared: {self.kind} {self.name}{runs}"


async def deploy_and_prune(manifest: Manifest, console: Console, *, prune: bool, yes: bool) -> bool:
    """Deploy, say what that changed and what is left over, and delete that, if `prune` says so.

    With `yes`, nobody is asked.

    Returns:
        Whether something that was to be deleted is kept.

    Raises:
        RuntimeError: The deploy failed; or there is nobody to ask.
        ValueError: A flow can't be imported.
    """
    report = partial(console.print, soft_wrap=True)
    async with get_client() as client:
        await require_server(client, console, SERVER_SECONDS)
        env = os.environ | {"PREFECT_API_URL": str(get_current_settings().api.url)}
        await deploy_manifest(manifest, env, report)
        for line in await _find_unserved(client, manifest):
            console.print(line, style="yellow", soft_wrap=True)
        leftovers = await find_leftovers(client, manifest)
        for leftover in leftovers:
            report(str(leftover))
        if not (prune and leftovers):
            return False
        if not confirm("--prune", "what is no longer declared", yes):
            return True
        kept = False
        # Again: somebody may have taken their time to answer, and runs go on.
        for leftover in await find_leftovers(client, manifest):
            why = await delete(client, leftover)
            what = f"{leftover.kind} {leftover.name}"
            report(f"kept: {what}: {why}" if why else f"deleted: {what}")
            kept = kept or bool(why)
        return kept


async def _find_unserved(client: PrefectClient, manifest: Manifest) -> list[str]:
    """Return a line for each work pool without a worker, where others of the project have one.

    A stack of containers has none for processes of a checkout, and a checkout none for containers.
    """
    served = [
        pool.name
        for pool in await read_everything(client.read_work_pools)
        if pool.name in manifest.whole.definitions.work_pools
        and await online_workers(client, pool.name)
    ]
    return [
        f"no worker is online for work pool {name}, only for {', '.join(served)}: "
        f"`prefect worker start --pool {name}`, or deploy what runs there"
        for name in manifest.definitions.work_pools
        if served and name not in served
    ]


async def find_leftovers(client: PrefectClient, manifest: Manifest) -> list[Leftover]:
    """Return what has the mark of this project, and is not declared in all of its prefect.yaml.

    In the order in which it can be deleted: deployments, automations, queues, pools.

    Raises:
        ValueError: A flow can't be imported.
    """
    whole = with_safety_net(manifest.whole)
    found, mark, pools = [], mark_of(whole.name), whole.definitions.work_pools
    declared = {deployment.full_name for deployment in whole.deployments}
    for deployment in await read_everything(client.read_deployments):
        if (deployment.job_variables or {}).get(PROJECT) != whole.name:
            continue
        name = f"{(await client.read_flow(deployment.flow_id)).name}/{deployment.name}"
        if name not in declared:
            of_it = DeploymentFilter.model_validate({"id": {"any_": [deployment.id]}})
            runs = await _read_unfinished(client, deployment_filter=of_it)
            found.append(Leftover("deployment", name, deployment.id, tuple(runs)))
    automations = {automation.name for automation in whole.definitions.automations}
    for automation in await read_everything(client.read_automations):
        if mark in automation.tags and automation.name not in automations:
            found.append(Leftover("automation", automation.name, automation.id))
    existing = await read_everything(client.read_work_pools)
    for pool in existing:
        queues = pools[pool.name].queues if pool.name in pools else {}
        for queue in await read_everything(partial(client.read_work_queues, pool.name)):
            if queue.description == mark and queue.name not in {"default", *queues}:
                found.append(Leftover("work queue", f"{pool.name}/{queue.name}", queue.id))
    for pool in existing:
        if pool.description == mark and pool.name not in pools:
            found.append(Leftover("work pool", pool.name, pool.id))
    return found


async def delete(client: PrefectClient, leftover: Leftover) -> str | None:
    """Delete a thing, or return why it is kept: it is in use."""
    match leftover.kind:
        case "deployment" if leftover.runs:
            return "its runs are unfinished: let them end, or cancel them"
        case "deployment":
            await client.delete_resource_owned_automations(f"prefect.deployment.{leftover.id}")
            await client.delete_deployment(leftover.id)
        case "automation":
            await client.delete_automation(leftover.id)
        case _ if used := await _why_used(client, leftover):
            return used
        case "work queue":
            await client.delete_work_queue_by_id(leftover.id)
        case "work pool":
            await client.delete_work_pool(leftover.name)
    return None


async def _why_used(client: PrefectClient, leftover: Leftover) -> str | None:
    """Say what uses a work queue or pool, whosever it is."""
    where: dict[str, Any] = {"id": {"any_": [leftover.id]}}
    if leftover.kind == "work queue":
        where = {"work_queue_filter": WorkQueueFilter.model_validate(where)}
    else:
        where = {"work_pool_filter": WorkPoolFilter.model_validate(where)}
    deployments = await read_everything(partial(client.read_deployments, **where))
    users = [f"deployment {deployment.name}" for deployment in deployments]
    users += [f"run {name}" for name in await _read_unfinished(client, **where)]
    if users:
        return f"in use by {', '.join(users)}"
    if leftover.kind == "work pool" and await online_workers(client, leftover.name):
        return "a worker is online for it: stop that first"
    return None


async def _read_unfinished(client: PrefectClient, **where: Any) -> list[str]:
    """Return the names of the runs that are not final; not of those that a schedule plans."""
    unfinished = FlowRunFilter.model_validate({"state": {"type": {"any_": UNFINISHED}}})
    read = partial(client.read_flow_runs, flow_run_filter=unfinished, **where)
    return [
        run.name
        for run in await read_everything(read)
        if not (run.auto_scheduled and run.state_name == "Scheduled")
    ]
