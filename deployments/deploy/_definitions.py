"""What deployments need: work pools with their queues, and automations."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.collections import deep_merge
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from deployments.project import Manifest, WorkPool

T = TypeVar("T")
Report = Callable[[str], object]


async def create_definitions(
    client: PrefectClient, manifest: Manifest, report: Report = lambda _: None
) -> None:
    """Create work pools, queues and automations, or change what differs, and report each."""
    mark = mark_of(manifest.name) if manifest.name else None
    for pool_name, pool in manifest.definitions.work_pools.items():
        report(await _create_pool(client, pool_name, pool, mark))
        for name, queue in pool.queues.items():
            report(await _create_queue(client, pool_name, name, queue.concurrency_limit, mark))
    for automation in manifest.definitions.automations:
        report(await _create_automation(client, automation, mark))


def mark_of(project: str) -> str:
    """Return what our deploys leave on automations (a tag), queues and pools (a description)."""
    return f"From prefect.yaml of {project}."


async def find(request: Awaitable[T]) -> T | None:
    """Return what a request finds, or None where there is no such thing."""
    try:
        return await request
    except ObjectNotFound:
        return None


async def _create_pool(client: PrefectClient, name: str, pool: WorkPool, mark: str | None) -> str:
    default = await get_default_base_job_template_for_infrastructure_type(pool.type)
    template = deep_merge(default or {}, pool.base_job_template)
    existing = await find(client.read_work_pool(name))
    if existing is None:
        wanted = WorkPoolCreate(
            name=name, type=pool.type, base_job_template=template, description=mark
        )
        with contextlib.suppress(ObjectAlreadyExists):  # a worker was faster
            await client.create_work_pool(wanted)
        return f"created: work pool {name}"
    # A deploy can't change the type: `check --server` says what to do.
    changed = existing.type == pool.type and existing.base_job_template != template
    if not (pool.base_job_template and changed):
        return f"unchanged: work pool {name}"
    await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return f"changed: work pool {name}: base job template"


async def _create_queue(
    client: PrefectClient, pool: str, name: str, limit: int | None, mark: str | None
) -> str:
    existing = await find(client.read_work_queue_by_name(name, work_pool_name=pool))
    before = {"concurrency limit": existing.concurrency_limit} if existing else {}
    wanted = {"concurrency limit": limit}
    if existing is None:
        await client.create_work_queue(
            name, description=mark, concurrency_limit=limit, work_pool_name=pool
        )
    elif before != wanted:
        await client.update_work_queue(existing.id, concurrency_limit=limit)
    return describe_change(f"work queue {pool}/{name}", before, wanted)


async def _create_automation(
    client: PrefectClient, automation: AutomationCore, mark: str | None
) -> str:
    # With its defaults: PrefectClient.update_automation leaves out what is unset.
    wanted = AutomationCore.model_validate(plain_automation(automation))
    if mark:
        wanted.tags.append(mark)
    existing = await client.read_automations_by_name(automation.name)
    before = plain_automation(existing[0]) if existing else {}
    if not existing:
        await client.create_automation(wanted)
    elif before != plain_automation(wanted):
        await client.update_automation(existing[0].id, wanted)
    return describe_change(f"automation {automation.name}", before, plain_automation(wanted))


def plain_automation(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation says, without what the server adds."""
    return automation.model_dump(include=set(AutomationCore.model_fields) - {"owner_resource"})


def describe_change(what: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Say in a line what a deploy did with a thing, of which `before` is empty if it is new."""
    if not before:
        return f"created: {what}"
    fields = [field for field in after if after[field] != before[field]]
    return f"changed: {what}: {', '.join(fields)}" if fields else f"unchanged: {what}"
