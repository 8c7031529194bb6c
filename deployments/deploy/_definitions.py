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
from prefect.utilities.templating import apply_values
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from deployments.project import ROOT, Manifest, WorkPool, WorkQueue

T = TypeVar("T")
Report = Callable[[str], object]


async def create_definitions(
    client: PrefectClient, manifest: Manifest, report: Report = lambda _: None
) -> None:
    """Create work pools, queues and automations, or change what differs, and report each."""
    mark = mark_of(manifest.name)
    for pool_name, pool in manifest.definitions.work_pools.items():
        template = await _template_of(manifest, pool_name, pool)
        report(await _create_pool(client, pool_name, pool, template, mark))
        for name, queue in pool.queues.items():
            report(await _create_queue(client, pool_name, name, queue, mark))
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


async def _create_pool(
    client: PrefectClient, name: str, pool: WorkPool, template: dict[str, Any], mark: str
) -> str:
    existing = await find(client.read_work_pool(name))
    if existing is None:
        wanted = WorkPoolCreate(
            name=name, type=pool.type, base_job_template=template, description=mark
        )
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(wanted)
            return f"created: work pool {name}"
        existing = await client.read_work_pool(name)  # a worker was faster
    # A deploy can't change the type: `check --server` says what to do.
    declared = pool.model_fields_set & {"base_job_template", "job_variables"}
    changed = existing.type == pool.type and existing.base_job_template != template
    if not (declared and changed):
        return f"unchanged: work pool {name}"
    await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return f"changed: work pool {name}: base job template"


async def _template_of(manifest: Manifest, name: str, pool: WorkPool) -> dict[str, Any]:
    """Return a pool's base job template, with its job variables as defaults."""
    default = await get_default_base_job_template_for_infrastructure_type(pool.type)
    template = deep_merge(default or {}, pool.base_job_template)
    variables = template.get("variables", {}).get("properties", {})
    given = pool.job_variables.model_dump(exclude_unset=True)
    if unknown := sorted(given.keys() - variables.keys()):
        raise RuntimeError(
            f"prefect.yaml: definitions.work_pools.{name}.job_variables: a work pool of type "
            f"{pool.type} has no {', '.join(unknown)}, only {', '.join(sorted(variables))}"
        )
    if pool.type == "process" and given.get("working_dir"):
        given["working_dir"] = str(ROOT / given["working_dir"])  # known here, and not in git
    resolved: Any = apply_values(given, {"stack": manifest.stack}, remove_notset=False)
    for variable, value in resolved.items():
        variables[variable] = variables[variable] | {"default": value}
    return template


async def _create_queue(
    client: PrefectClient, pool: str, name: str, queue: WorkQueue, mark: str
) -> str:
    existing = await find(client.read_work_queue_by_name(name, work_pool_name=pool))
    wanted: dict[str, Any] = {"concurrency_limit": queue.concurrency_limit}
    if queue.priority is not None:  # else the server numbers it
        wanted["priority"] = queue.priority
    before = existing.model_dump(include=set(wanted)) if existing else {}
    if existing is None:
        await client.create_work_queue(name, description=mark, work_pool_name=pool, **wanted)
    elif before != wanted:
        await client.update_work_queue(existing.id, **wanted)
    return describe_change(f"work queue {pool}/{name}", before, wanted)


async def _create_automation(client: PrefectClient, automation: AutomationCore, mark: str) -> str:
    # With its defaults: PrefectClient.update_automation leaves out what is unset.
    wanted = AutomationCore.model_validate(plain_automation(automation))
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
