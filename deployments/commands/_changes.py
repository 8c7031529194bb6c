"""What a server has otherwise than prefect.yaml says, and what `prefect deploy` would change there.

Build steps are not run for it: a field that takes their output is known when they have run.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.objects import WorkPool as DeployedWorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.collections import deep_merge
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type
from pydantic import TypeAdapter

from deployments.commands._manifest import ROOT, Deployment, Manifest, WorkPool

# Our deploys leave it on deployments; `marks_of` are those of automations, queues and pools.
LABEL = "deployments.project"
# What is compared below. Any other field is sent again with each deploy.
COMPARED = {
    "name",
    "entrypoint",
    "description",
    "version",
    "tags",
    "parameters",
    "work_pool",
    "paused",
    "concurrency_limit",
    "enforce_parameter_schema",
    "schedules",
    "triggers",
    "build",
    "push",
    "pull",
}
SHELL = "prefect.deployments.steps.run_shell_script"


@dataclass(frozen=True)
class Change:
    """What a deploy would do with one thing.

    Attributes:
        what: Its kind and name.
        created: It is not there.
        fields: Which of its fields differ.
        later: Which of its fields are known only when it is deployed.
    """

    what: str
    created: bool = False
    fields: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """It is certain that there is nothing to do."""
        return not (self.created or self.fields or self.later)

    def __str__(self) -> str:
        """Say so in a line."""
        if self.created:
            return f"created: {self.what}"
        later = f"known when deployed: {', '.join(self.later)}" if self.later else ""
        if self.fields:
            return (
                f"changed: {self.what}: {'; '.join(filter(None, [', '.join(self.fields), later]))}"
            )
        return f"unchanged: {self.what}{f' ({later})' if later else ''}"


def mark_of(project: str) -> str:
    """Return what our deploys leave on automations (a tag), queues and pools (a description)."""
    return f"From prefect.yaml of {project}."


async def find_definition_changes(
    client: PrefectClient, manifest: Manifest
) -> AsyncIterator[Change]:
    """Yield a change for each work pool, work queue and automation."""
    for name, pool in manifest.definitions.work_pools.items():
        try:
            there = await client.read_work_pool(name)
        except ObjectNotFound:
            yield Change(f"work pool {name}", created=True)
            for queue_name in pool.queues:
                yield Change(f"work queue {name}/{queue_name}", created=True)
            continue
        # A deploy can't change the type: `check --server` says what to do.
        differs = await find_other_template(pool, there) is not None
        yield Change(f"work pool {name}", fields=("base job template",) if differs else ())
        for queue_name, queue in pool.queues.items():
            what = f"work queue {name}/{queue_name}"
            try:
                found = await client.read_work_queue_by_name(queue_name, work_pool_name=name)
            except ObjectNotFound:
                yield Change(what, created=True)
                continue
            differs = found.concurrency_limit != queue.concurrency_limit
            yield Change(what, fields=("concurrency limit",) if differs else ())
    for automation in marked_automations(manifest):
        what = f"automation {automation.name}"
        existing = await client.read_automations_by_name(automation.name)
        if not existing:
            yield Change(what, created=True)
            continue
        before, after = plain_automation(existing[0]), plain_automation(automation)
        yield Change(what, fields=tuple(key for key in after if after[key] != before.get(key)))


async def find_changes(
    client: PrefectClient, manifest: Manifest, env: Mapping[str, str]
) -> list[Change]:
    """Return what a deploy would do, without doing it.

    Raises:
        ValueError: A flow can't be imported.
    """
    changes = [change async for change in find_definition_changes(client, manifest)]
    for each in manifest.deployments:
        flow = each.load_flow()
        changes.append(await find_deployment_change(client, manifest, each, flow, env))
    return changes


async def find_other_template(pool: WorkPool, there: DeployedWorkPool) -> dict[str, Any] | None:
    """Return the base job template that a work pool is to have, where it has another one."""
    if not pool.base_job_template or there.type != pool.type:
        return None
    wanted = await make_template(pool)
    return None if wanted == there.base_job_template else wanted


async def make_template(pool: WorkPool) -> dict[str, Any]:
    """Return Prefect's own base job template, with what a work pool declares laid over it."""
    default = await get_default_base_job_template_for_infrastructure_type(pool.type)
    return deep_merge(default or {}, pool.base_job_template)


def marked_automations(manifest: Manifest) -> list[AutomationCore]:
    """Return the automations as they are to be on the server."""
    mark = [mark_of(manifest.name)] if manifest.name else []
    return [
        each.model_copy(update={"tags": [*each.tags, *mark]})
        for each in manifest.definitions.automations
    ]


async def find_deployment_change(
    client: PrefectClient,
    manifest: Manifest,
    deployment: Deployment,
    flow: Flow[..., Any],
    env: Mapping[str, str],
) -> Change:
    """Return what a deploy would do with one deployment.

    Args:
        client: Of the server.
        manifest: That declares it.
        deployment: To be looked up.
        flow: Of the deployment.
        env: The environment of `prefect deploy`.
    """
    name = f"{flow.name}/{deployment.name}"
    there = await read_state(client, name)
    if there is None:
        return Change(f"deployment {name}", created=True)
    expected, later = _expect(manifest, deployment, flow, env)
    differs = [
        field
        for field, value in expected.items()
        if field not in ("schedules", "triggers") and value != there[field]
    ]
    if "schedules" in expected and not _same_schedules(expected["schedules"], there["schedules"]):
        differs.append("schedules")
    if "triggers" in expected:
        wanted = _automations(expected["triggers"], there["id"])
        extra = [each for each in there["triggers"] if each not in wanted]
        own = re.compile(re.escape(deployment.name) + r"__automation_\d+")  # Prefect's names
        if any(each not in there["triggers"] for each in wanted) or any(
            own.fullmatch(each["name"]) for each in extra
        ):
            differs.append("triggers")
        elif extra:  # a trigger with a name of its own, or somebody's automation: nothing tells
            later.append("triggers")
    if manifest.name and there["labels"].get(LABEL) != manifest.name:
        differs.append("label")
    return Change(f"deployment {name}", fields=tuple(differs), later=tuple(later))


async def read_state(client: PrefectClient, name: str) -> dict[str, Any] | None:
    """Return what a deployment is on the server, in the words of `Change`; None if it is not."""
    try:
        there = await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None
    return await _state_of(client, there)


async def _state_of(client: PrefectClient, there: DeploymentResponse) -> dict[str, Any]:
    related = await client.read_resource_related_automations(f"prefect.deployment.{there.id}")
    limit, options = there.global_concurrency_limit, there.concurrency_options
    return {
        "id": there.id,
        "labels": there.labels,
        "entrypoint": there.entrypoint,
        "description": there.description,
        "version": there.version,
        "tags": sorted(there.tags),
        "parameters": there.parameters,
        "parameter schema": there.parameter_openapi_schema,
        "enforce_parameter_schema": there.enforce_parameter_schema,
        "work pool": there.work_pool_name,
        "work queue": there.work_queue_name,
        "job variables": there.job_variables,
        "pull steps": there.pull_steps or [],
        "paused": there.paused,
        "concurrency limit": [limit.limit if limit else None, _plain_options(options)],
        "schedules": there.schedules,
        "triggers": _sorted(related),
    }


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """Return which fields of a deployment differ between two of its states."""
    # Prefect sets the anchor of an interval to the time of the deploy, where none is declared.
    plain = [
        state
        | {
            "schedules": sorted(
                repr(sorted((_plain_schedule(each) | {"anchor_date": None}).items()))
                for each in state["schedules"]
            )
        }
        for state in (before, after)
    ]
    return tuple(
        "label" if field == "labels" else field
        for field in after
        if plain[0][field] != plain[1][field]
    )


def _expect(
    manifest: Manifest, deployment: Deployment, flow: Flow[..., Any], env: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that `prefect deploy` would send, and those that are not known yet.

    As prefect.cli.deploy._core does. What differs from it only costs a deploy that changes nothing.
    """
    declared: Any = deepcopy(deployment.declared)
    pull = declared.get("pull", manifest.pull)
    triggers = [
        {"name": f"{deployment.name}__automation_{number}"} | spec
        for number, spec in enumerate(declared.pop("triggers", None) or [], start=1)
    ]
    declared = apply_values(declared, dict(env), remove_notset=False)
    pool = declared.get("work_pool") or {}
    limit = declared.get("concurrency_limit")
    if isinstance(limit, dict):
        options = {key: limit.get(key) for key in ("collision_strategy", "grace_period_seconds")}
        limits = [limit.get("limit"), {key: value for key, value in options.items() if value}]
    else:
        limits = [limit, {}]
    fields = {
        "entrypoint": declared.get("entrypoint"),
        "description": declared.get("description") or flow.description,
        "version": declared.get("version"),
        "tags": sorted(declared.get("tags") or []),
        "parameters": declared.get("parameters") or {},
        "parameter schema": json.loads(parameter_schema(flow).model_dump_json(exclude_unset=True)),
        "enforce_parameter_schema": declared.get("enforce_parameter_schema", True),
        "work pool": pool.get("name"),
        "work queue": pool.get("work_queue_name") or "default",
        "job variables": pool.get("job_variables") or {},
        "pull steps": pull or [],
        "concurrency limit": limits,
        "triggers": triggers,
    }
    for optional in ("paused", "schedules"):
        if declared.get(optional) is not None:
            fields[optional] = declared[optional]
    build = declared.get("build", manifest.build)
    outputs = _known_outputs(build or [])
    later = sorted(set(declared) - COMPARED)
    expected: dict[str, Any] = {}
    for field, value in fields.items():
        filled: Any = apply_values(value, outputs, remove_notset=False, skip_prefixes=["ctx."])
        names = {each.name.split(".")[0] for each in find_placeholders(filled)}
        literal = field in ("pull steps", "triggers", "parameter schema")
        unknown = (
            names & step_ids(build, declared.get("push", manifest.push))
            if literal
            else (names - {"ctx"})
        )
        if unknown or (field == "version" and not value) or (field == "schedules" and not value):
            later.append(field)
        else:
            expected[field] = filled
    return expected, later


def step_ids(*steps: list[dict[str, Any]] | None) -> set[str]:
    """Return the ids of build, push or pull steps: their outputs begin with these."""
    return {
        str(step["id"])
        for each in steps
        for named in each or []
        for step in named.values()
        if isinstance(step, dict) and "id" in step
    }


def _known_outputs(build: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the outputs that are known without running anything: those of a mere `pwd`."""
    return {
        step["id"]: {"stdout": str(ROOT)}
        for named in build
        for kind, step in named.items()
        if kind == SHELL and step["script"] == "pwd" and "id" in step and "directory" not in step
    }


def _same_schedules(declared: list[dict[str, Any]], there: list[DeploymentSchedule]) -> bool:
    left = [_plain_schedule(each) for each in there]
    for each in declared:
        wanted = {"active": True, "parameters": {}, "slug": None, "timezone": "UTC"} | each
        if "interval" in wanted:
            interval = wanted["interval"]
            wanted["interval"] = TypeAdapter(timedelta).validate_python(interval)
        same = [
            found for found in left if all(found.get(key) == value for key, value in wanted.items())
        ]
        if not same:
            return False
        left.remove(same[0])
    return not left


def _plain_schedule(there: DeploymentSchedule) -> dict[str, Any]:
    plain = there.schedule.model_dump()
    plain["timezone"] = plain.get("timezone") or "UTC"
    more = {"active": there.active, "parameters": there.parameters or {}, "slug": there.slug}
    return plain | more


def _plain_options(options: Any) -> dict[str, Any]:
    return options.model_dump(mode="json", exclude_unset=True, exclude_none=True) if options else {}


def _automations(triggers: list[dict[str, Any]], deployment_id: Any) -> list[dict[str, Any]]:
    made = []
    for spec in triggers:
        trigger: Any = TypeAdapter(DeploymentTriggerTypes).validate_python(spec)
        trigger.set_deployment_id(deployment_id)
        made.append(trigger.as_automation())
    return _sorted(made)


def _sorted(automations: list[Any]) -> list[dict[str, Any]]:
    return sorted(map(plain_automation, automations), key=lambda each: str(each["name"]))


def plain_automation(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation says, without what the server adds."""
    fields = set(AutomationCore.model_fields) - {"owner_resource"}
    return automation.model_dump(include=fields)
