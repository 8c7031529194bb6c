"""What a deploy changed on a server: each thing as it was before, and as it is after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.responses import DeploymentResponse

from deployments.deploy._schedules import plain_schedules

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
    client: PrefectClient, there: DeploymentResponse | None, declared: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what a deployment is on the server, in the words of `Change`.

    Args:
        client: The client of the server.
        there: The deployment; None if there is none.
        declared: Its schedules, as prefect.yaml has them.
    """
    if there is None:
        return {}
    related = await client.read_resource_related_automations(f"prefect.deployment.{there.id}")
    limit, options = there.global_concurrency_limit, there.concurrency_options
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
        "schedules": plain_schedules(there.schedules, declared),
        "triggers": sorted(map(plain_automation, related), key=repr),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the fields that differ."""
    return tuple(field for field in after if after[field] != before.get(field))


def plain_automation(automation: AutomationCore) -> dict[str, Any]:
    """Return what an automation says, without what the server adds."""
    fields = set(AutomationCore.model_fields) - {"owner_resource"}
    return automation.model_dump(include=fields)
