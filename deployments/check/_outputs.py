"""The outputs of steps that prefect.yaml names: Prefect leaves a name alone that it can't find."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.check._blocks import STEPS, find_placeholder_places
from deployments.project import Deployment, Manifest

# Placeholders of Prefect's own: blocks and variables, and what a worker knows of the run.
OTHERS = {"prefect", "ctx"}


def check_outputs(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    """Yield which step outputs a deployment names, though it has no such step."""
    steps = {kind: deployment.declared.get(kind, getattr(manifest, kind)) or [] for kind in STEPS}
    ids = OTHERS | {
        str(step["id"])
        for each in steps.values()
        for named in each
        for step in named.values()
        if isinstance(step, dict) and "id" in step
    }
    used = {**steps, "work_pool": deployment.declared.get("work_pool")}
    for place, name in find_placeholder_places(used):
        step, dot, _ = name.partition(".")
        if dot and step not in ids:
            yield f"{place}: {{{{ {name} }}}} would stay as it is: no step has the id {step}"
