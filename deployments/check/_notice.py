"""Whether what prefect.yaml has against lost runs would notice those of a deployment.

That is the triggers of the deployments of `deployments.maintenance`, for parents, and the
automations that mark runs as crashed, for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import StateType
from prefect.events import ChangeFlowRunState, Resource, ResourceSpecification
from prefect.flows import Flow

from deployments import maintenance
from deployments.parent import is_parent
from deployments.project import Definitions, Deployment, Manifest, Trigger

ID, NAME, ROLE = (f"prefect.resource.{label}" for label in ("id", "name", "role"))
TAG = "prefect.tag."

Flows = Mapping[str, tuple[Deployment, Flow[..., Any]]]


def is_maintenance(flow: Flow[..., Any]) -> bool:
    """Tell whether a flow is one of `deployments.maintenance`, under whatever module name."""
    source = inspect.unwrap(flow.fn).__code__.co_filename
    return Path(source).resolve() == Path(maintenance.__file__).resolve()


def check_noticed(definitions: Definitions, flows: Flows, name: str) -> Iterator[str]:
    """Yield what keeps runs of a deployment from being noticed when they are lost.

    Args:
        definitions: Those with the automations.
        flows: All deployments, by `flow-name/deployment-name`, with their flows.
        name: Of the deployment.
    """
    deployment, flow = flows[name]
    if is_maintenance(flow):
        return
    resources = list(_resources(name, deployment))
    lacking = set()
    for part in _crash_triggers(definitions):
        missing = _missing(part, resources)
        if all(map(_tags, missing)):  # else it is for others
            lacking |= {tags for each in missing if (tags := _tags(each))}
    by_event: dict[str, list[list[ResourceSpecification]]] = {}
    if is_parent(flow):
        for part in _maintenance_triggers(flows):
            for event in part.expect or {"any event"}:
                by_event.setdefault(event, []).append(_missing(part, resources))
    for event, missings in sorted(by_event.items()):
        near = [missing for missing in missings if all(map(_tags, missing))]
        if not near:
            yield (
                f"no trigger of {_names(flows)} is for {event} of its runs in work pool "
                f"{deployment.work_pool.name}: add one to the deployment in that pool"
            )
        elif all(near):
            lacking |= {tags for each in min(near, key=len) if (tags := _tags(each))}
    if lacking:
        yield (
            f"tags: lacks {', '.join(sorted(lacking))}, by which the automations and triggers of "
            "prefect.yaml find its runs: add it"
        )


def check_automations(manifest: Manifest) -> Iterator[str]:
    """Yield the automations that another project on the server could replace by its own."""
    for automation in manifest.definitions.automations:
        if manifest.name and not automation.name.startswith(f"{manifest.name}: "):
            yield (
                f"definitions.automations: {automation.name!r} must begin with the name of the "
                f"project, '{manifest.name}: ', or another project's could replace it"
            )


def check_pools(definitions: Definitions, flows: Flows) -> Iterator[str]:
    """Yield the work pools that are looked for, but not declared."""
    for where, parts in (
        ("definitions.automations", _crash_triggers(definitions)),
        (f"triggers of {_names(flows)}", _maintenance_triggers(flows)),
    ):
        looked_for = {
            pool
            for part in parts
            for each in part.match_related
            if each.get(ROLE) == ["work-pool"]
            for pool in each.get(NAME) or ()
            if not pool.startswith("!") and not pool.endswith("*")
        }
        for pool in sorted(looked_for - definitions.work_pools.keys()):
            yield (
                f"{where}: look for runs of work pool {pool}, which is not in "
                "definitions.work_pools: name one that is"
            )


def _crash_triggers(definitions: Definitions) -> Iterator[Trigger]:
    for automation in definitions.automations:
        if any(
            isinstance(action, ChangeFlowRunState) and action.state == StateType.CRASHED
            for action in automation.actions
        ):
            yield from _parts([Trigger.model_validate(automation.trigger.model_dump())])


def _maintenance_triggers(flows: Flows) -> Iterator[Trigger]:
    for deployment, flow in flows.values():
        if is_maintenance(flow):
            yield from _parts(deployment.triggers or [])


def _parts(triggers: Iterable[Trigger]) -> Iterator[Trigger]:
    for trigger in triggers:
        if trigger.triggers:
            yield from _parts(trigger.triggers)
        else:
            yield trigger


def _names(flows: Flows) -> str:
    return ", ".join(name for name, (_, flow) in flows.items() if is_maintenance(flow))


def _missing(trigger: Trigger, resources: list[Resource]) -> list[ResourceSpecification]:
    return [each for each in trigger.match_related if not each.includes(resources)]


def _tags(specification: ResourceSpecification) -> str:
    """Return the tags that are looked for, if it is tags."""
    ids = specification.get(ID) or []
    tags = [each.removeprefix(TAG) for each in ids if each.startswith(TAG)]
    return " or ".join(tags)


def _resources(name: str, deployment: Deployment) -> Iterator[Resource]:
    """Yield what the server relates an event of a run to, as far as it is known before."""
    for tag in deployment.tags:
        yield Resource({ID: f"{TAG}{tag}", ROLE: "tag"})
    for role, value in (
        ("flow", name.split("/")[0]),
        ("deployment", deployment.name),
        ("work-pool", deployment.work_pool.name),
        ("work-queue", deployment.work_pool.work_queue_name),
    ):
        yield Resource({ID: f"prefect.{role}.{value}", NAME: value, ROLE: role})
