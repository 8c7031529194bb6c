"""What a deploy changed on a server: each thing as it was before, and as it is after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse

# A job variable that our deploys add, and no work pool knows. Any deploy replaces all of them, so
# what has it was deployed by us last. `mark_of` is what automations, queues and pools have.
PROJECT = "deployments_project"


@dataclass(frozen=True)
class Change:
    """What a deploy did with one thing.

    Attributes:
        what: Its kind and name.
        created: It was not there.
        fields: Which of its fields changed.
    """

    what: str
    created: bool = False
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say so in a line."""
        if self.created:
            return f"created: {self.what}"
        if self.fields:
            return f"changed: {self.what}: {', '.join(self.fields)}"
        return f"unchanged: {self.what}"


def mark_of(project: str) -> str:
    """Return what our deploys leave on automations (a tag), queues and pools (a description)."""
    return f"From prefect.yaml of {project}."


async def read_fields(
    client: PrefectClient, there: DeploymentResponse, anchored: set[str]
) -> dict[str, Any]:
    """Return what a deployment is on the server, in the words of `Change`.

    Args:
        client: Of the server.
        there: The deployment.
        anchored: The slugs of schedules whose `anchor_date` is declared. Prefect sets that of the
            others anew with each deploy.
    """
    related = await client.read_resource_related_automations(f"prefect.deployment.{there.id}")
    limit, options = there.global_concurrency_limit, there.concurrency_options
    schedules = []
    for each in there.schedules:
        plain = timing(each) | each.model_dump(include={"active", "parameters", "slug"})
        if each.slug in anchored:
            plain |= each.schedule.model_dump(include={"anchor_date"})
        schedules.append(plain)
    return {
        "entrypoint": there.entrypoint,
        "description": there.description,
        "version": there.version,
        "tags": there.tags,
        "parameters": there.parameters,
        "parameter schema": there.parameter_openapi_schema,
        "enforce_parameter_schema": there.enforce_parameter_schema,
        "work pool": there.work_pool_name,
        "work queue": there.work_queue_name,
        "job variables": there.job_variables,
        "pull steps": there.pull_steps,
        "paused": there.paused,
        "concurrency limit": (limit and limit.limit, options and options.model_dump()),
        "schedules": _sorted(schedules),
        "triggers": _sorted(plain_automation(each) for each in related),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the fields that differ."""
    return tuple(field for field in after if after[field] != before.get(field))


def timing(schedule: DeploymentSchedule) -> dict[str, Any]:
    """Return when a schedule starts runs."""
    return schedule.schedule.model_dump(exclude={"anchor_date"})


def plain_automation(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation says, without what the server adds."""
    fields = set(AutomationCore.model_fields) - {"owner_resource"}
    return automation.model_dump(include=fields)


def _sorted(several: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(several, key=repr)
