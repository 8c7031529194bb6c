"""What our deploys have left on a server and prefect.yaml no longer declares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterWorkQueueName,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, WorkQueue

from deployments.deploy._changes import PROJECT, mark_of
from deployments.project import Manifest
from deployments.runs import online_workers, read_all

T = TypeVar("T")


@dataclass(frozen=True)
class Leftover:
    """A thing that prefect.yaml no longer declares.

    Attributes:
        what: Its kind and name.
        delete: Deletes it, and says why it did not where it is in use.
        runs: The names of its unfinished runs.
    """

    what: str
    delete: Callable[[], Awaitable[str | None]]
    runs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say so in a line."""
        runs = f": unfinished runs: {', '.join(self.runs)}" if self.runs else ""
        return f"no longer declared: {self.what}{runs}"


async def find_leftovers(client: PrefectClient, manifest: Manifest) -> list[Leftover]:
    """Return what has the mark of this project, and is not declared in all of its prefect.yaml.

    In the order in which it can be deleted: deployments, automations, queues, pools.

    Raises:
        ValueError: A flow can't be imported.
    """
    whole = manifest.whole
    if not whole.name:
        return []
    found = await _find_deployments(client, whole)
    mark, definitions = mark_of(whole.name), whole.definitions
    automations = {each.name for each in definitions.automations}
    for automation in await _all(client.read_automations):
        if mark in automation.tags and automation.name not in automations:
            found.append(
                Leftover(
                    f"automation {automation.name}",
                    partial(_delete_automation, client, automation.id),
                )
            )
    pools = await _all(client.read_work_pools)
    for pool in pools:
        declared = definitions.work_pools.get(pool.name)
        names = set(declared.queues) if declared else set()
        for queue in await _all(partial(client.read_work_queues, pool.name)):
            if queue.description == mark and queue.name not in names | {"default"}:
                what = f"work queue {pool.name}/{queue.name}"
                found.append(Leftover(what, partial(_delete_queue, client, pool.name, queue)))
    for pool in pools:
        if pool.description == mark and pool.name not in definitions.work_pools:
            what = f"work pool {pool.name}"
            found.append(Leftover(what, partial(_delete_pool, client, pool.name)))
    return found


async def _find_deployments(client: PrefectClient, whole: Manifest) -> list[Leftover]:
    declared = {(each.load_flow().name, each.name) for each in whole.deployments}
    found = []
    for there in await _all(client.read_deployments):
        if (there.job_variables or {}).get(PROJECT) != whole.name:
            continue
        flow = await client.read_flow(there.flow_id)
        if (flow.name, there.name) not in declared:
            of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[there.id]))
            runs = [run.name for run in await _unfinished(client, of_it)]
            name = f"deployment {flow.name}/{there.name}"
            delete = partial(_delete_deployment, client, there.id)
            found.append(Leftover(name, delete, tuple(runs)))
    return found


async def _unfinished(client: PrefectClient, where: FlowRunFilter) -> list[FlowRun]:
    """Return the runs that are not final; not those that a schedule plans."""
    final = FlowRunFilterStateType(not_any_=sorted(TERMINAL_STATES))
    unfinished = where.model_copy(update={"state": FlowRunFilterState(type=final)})
    runs = await read_all(client, unfinished)
    return [run for run in runs if not (run.auto_scheduled and run.state_name == "Scheduled")]


async def _delete_deployment(client: PrefectClient, deployment_id: UUID) -> None:
    await client.delete_resource_owned_automations(f"prefect.deployment.{deployment_id}")
    await client.delete_deployment(deployment_id)


async def _delete_automation(client: PrefectClient, automation_id: UUID) -> None:
    await client.delete_automation(automation_id)


async def _delete_queue(client: PrefectClient, pool: str, queue: WorkQueue) -> str | None:
    if used := await _why_used(client, pool, queue.name):
        return used
    await client.delete_work_queue_by_id(queue.id)
    return None


async def _delete_pool(client: PrefectClient, pool: str) -> str | None:
    if used := await _why_used(client, pool):
        return used
    if await online_workers(client, pool):
        return "a worker is online for it: stop that first"
    await client.delete_work_pool(pool)
    return None


async def _why_used(client: PrefectClient, pool: str, queue: str | None = None) -> str | None:
    """Say what uses a work pool, or a queue of it, whosever it is."""
    in_pool = (
        FlowRunFilter(work_queue_name=FlowRunFilterWorkQueueName(any_=[queue]))
        if queue
        else FlowRunFilter()
    )
    deployments = await _all(client.read_deployments)
    users = [
        ("deployment", each.name, each.work_pool_name, each.work_queue_name) for each in deployments
    ]
    for run in await _unfinished(client, in_pool):
        users.append(("run", run.name, run.work_pool_name, run.work_queue_name))
    used = [
        f"{kind} {name}"
        for kind, name, its_pool, its_queue in users
        if its_pool == pool and queue in (None, its_queue)
    ]
    return f"in use by {', '.join(used)}" if used else None


async def _all(read: Callable[..., Awaitable[list[T]]]) -> list[T]:
    """Return what a request lists, however few the server returns at once."""
    found: list[T] = []
    while some := await read(offset=len(found)):
        found += some
    return found
