"""Whether what prefect.yaml has against lost runs would notice those of a deployment.

That is the automations that mark runs as crashed, for all, and the triggers of the deployments of
`deployments.maintenance`, for parents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prefect.client.schemas.objects import StateType
from prefect.events import ChangeFlowRunState, Resource

from deployments.maintenance import cancel_orphans
from deployments.parent import is_parent
from deployments.project import Deployment, Manifest, Trigger

ID, NAME, ROLE = (f"prefect.resource.{label}" for label in ("id", "name", "role"))
TAG = "prefect.tag."


def check_noticed(
    manifest: Manifest, deployments: Mapping[str, Deployment], name: str
) -> Iterator[str]:
    """Yield what keeps runs of one of the deployments from being noticed when they are lost."""
    cleaning = [other for other in deployments if other.split("/")[0] == cancel_orphans.name]
    if name in cleaning:
        return
    deployment = deployments[name]
    pool = deployment.work_pool.name
    # What the server relates an event of a run to, as far as it is known before.
    resources = [Resource({ID: f"{TAG}{tag}", ROLE: "tag"}) for tag in deployment.tags]
    resources.append(Resource({ID: "prefect.work-pool", NAME: pool, ROLE: "work-pool"}))
    lacking: set[str] = set()
    for trigger in _crash_triggers(manifest):
        lacking |= _lacking_tags(trigger, resources) or set()
    triggers = [trigger for other in cleaning for trigger in deployments[other].triggers or []]
    if not is_parent(deployment.load_flow()):
        triggers = []
    for event in sorted({event for trigger in triggers for event in trigger.expect}):
        found = [
            _lacking_tags(trigger, resources) for trigger in triggers if event in trigger.expect
        ]
        near = [tags for tags in found if tags is not None]
        if near:
            lacking |= min(near, key=len)
        else:
            yield (
                f"no trigger of {', '.join(cleaning)} is for {event} of its runs in work pool "
                f"{pool}: add one to the deployment in that pool"
            )
    if lacking:
        yield (
            f"tags: lacks {', '.join(sorted(lacking))}, by which the automations and triggers of "
            "prefect.yaml find its runs: add it"
        )


def _crash_triggers(manifest: Manifest) -> Iterator[Trigger]:
    for automation in manifest.definitions.automations:
        for action in automation.actions:
            if isinstance(action, ChangeFlowRunState) and action.state == StateType.CRASHED:
                yield Trigger.model_validate(automation.trigger.model_dump())


def _lacking_tags(trigger: Trigger, resources: list[Resource]) -> set[str] | None:
    """Return the tags that runs lack for a trigger to find them; None if it is for others."""
    lacking = set()
    for specification in trigger.match_related:
        if not specification.includes(resources):
            ids = specification.get(ID) or []
            tags = [value.removeprefix(TAG) for value in ids if value.startswith(TAG)]
            lacking.add(" or ".join(tags))
    return None if "" in lacking else lacking
