"""What notices lost runs: the same in every project, so prefect.yaml says no more than how soon.

It finds runs by their work pool and queue, which no other project has, and no deploy takes away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect.automations import AutomationCore
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Crashed, Scheduled

from deployments.parent import is_parent
from deployments.project import Deployment, Manifest, WorkQueue

# Of its own, or a run of `cancel_orphans` that fails would start the next one.
QUEUE = "cancel-orphans"
OF_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}


def with_safety_net(manifest: Manifest) -> Manifest:
    """Return a manifest with two automations more, and a deployment for each pool with parents.

    The automations mark runs as crashed: where a whole machine dies, nobody on it can say so, but
    the server notices the silence; and a worker that dies while it starts a run leaves it Pending.
    The deployments cancel the children of a parent that ended without its process: it crashed
    together with its worker, was cancelled while it was suspended, or was resumed too late, which
    is Failed.

    Raises:
        ValueError: A flow can't be imported.
    """
    whole, pools, deployments = manifest.whole, {}, []
    # Of the part that is deployed, what is built already.
    entries = {entry.full_name: entry for entry in (*whole.deployments, *manifest.deployments)}
    parents = [entry for entry in entries.values() if is_parent(entry.load_flow())]
    for name, pool in manifest.definitions.work_pools.items():
        pools[name] = pool
        if own := [parent for parent in parents if parent.work_pool.name == name]:
            queues = pool.queues | {QUEUE: WorkQueue()}
            pools[name] = pool.model_copy(update={"queues": queues})
            deployments.append(_cancel_orphans(name, own))
    definitions = manifest.definitions.model_copy(
        update={
            "work_pools": pools,
            "automations": [*_mark_as_crashed(whole), *manifest.definitions.automations],
        }
    )
    deployments = [*manifest.deployments, *deployments]
    return manifest.model_copy(update={"definitions": definitions, "deployments": deployments})


def state_of_lost(run: FlowRun, message: str) -> State[Any]:
    """Return the state of a run that is not final, and whose process was ended from outside.

    What cleans up begins anew.
    """
    if run.work_queue_name == QUEUE:
        return Scheduled(message=message)
    cancelling = run.state is not None and run.state.is_cancelling()
    return Cancelled(message=message) if cancelling else Crashed(message=message)


def _mark_as_crashed(manifest: Manifest) -> list[AutomationCore]:
    after = manifest.definitions.crashed_after
    silent, pending = after.silent, after.pending
    beats = ("Running", "Retrying", "heartbeat")
    ends = ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed", "Suspended", "AwaitingRetry")
    return [
        _mark(
            manifest,
            "mark silent runs as crashed",
            {"after": _events(*beats), "expect": _events("heartbeat", *ends), "within": silent},
            f"No heartbeat for {silent} s. Its process died, hangs (and may go on), or lacks "
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
        ),
        _mark(
            manifest,
            "mark runs that don't start as crashed",
            {
                "after": _events("Pending", "Submitting", "InfrastructurePending"),
                "expect": _events("*"),
                "within": pending,
            },
            f"Not started within {pending} seconds since a worker took it",
        ),
    ]


def _mark(manifest: Manifest, name: str, trigger: dict[str, Any], message: str) -> AutomationCore:
    trigger = trigger | {
        "type": "event",
        "posture": "Proactive",
        "match": OF_RUNS,
        "match_related": _related("work-pool", manifest.definitions.work_pools),
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
    }
    action = {"type": "change-flow-run-state", "state": "CRASHED", "message": message}
    return AutomationCore.model_validate(
        {"name": f"{manifest.name}: {name}", "trigger": trigger, "actions": [action]}
    )


def _cancel_orphans(pool: str, parents: list[Deployment]) -> Deployment:
    """Return the deployment that runs where some parents do, once one of them has ended so."""
    declared = parents[0].declared
    trigger = {
        "type": "event",
        "expect": _events("Crashed", "Cancelled", "Failed"),
        "match": OF_RUNS,
        "match_related": [
            _related("work-pool", [pool]),
            _related("work-queue", {parent.work_pool.work_queue_name for parent in parents}),
        ],
        "parameters": {"parent": "{{ event.resource.id }}"},
    }
    steps = {step: declared[step] for step in ("build", "push", "pull") if step in declared}
    return Deployment.model_validate(
        steps
        | {
            "name": pool,
            "entrypoint": "deployments/maintenance.py:cancel_orphans",
            "work_pool": declared["work_pool"] | {"work_queue_name": QUEUE},
            "triggers": [trigger],
        }
    )


def _events(*names: str) -> list[str]:
    return [f"prefect.flow-run.{name}" for name in names]


def _related(role: str, names: Iterable[str]) -> dict[str, Any]:
    return {"prefect.resource.role": role, "prefect.resource.name": sorted(names)}
