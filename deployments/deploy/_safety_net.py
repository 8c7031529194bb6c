"""What notices lost runs: the same in every project, so prefect.yaml says no more than how soon.

It finds runs by their work pool and queue, which no other project has, and no deploy takes away;
and by the tag of those that are restarted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect.automations import AutomationCore
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Crashed, Scheduled

from deployments.parent import is_parent
from deployments.project import Deployment, Manifest, WorkQueue
from deployments.runs import DURABLE

# Of its own, or a run of `cancel_orphans` that fails would start the next one.
QUEUE = "cancel-orphans"
# Seconds after which a run of it that was lost runs again: not at once, since it may be lost again.
AGAIN = 30
TAG = f"prefect.tag.{DURABLE}"
OF_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}


def with_safety_net(manifest: Manifest) -> Manifest:
    """Return a manifest with some automations more, and a deployment for each pool that needs it.

    Two mark runs as crashed: where a whole machine dies, nobody on it can say so, but the server
    notices the silence; and a worker that dies while it starts a run leaves it Pending.
    The deployments restart durable runs, and cancel the children of a parent that ended without
    its process: it crashed together with its worker, was cancelled while it was suspended, or was
    resumed too late, which is Failed. What is lost of their own runs, an automation runs again.

    Raises:
        ValueError: A flow can't be imported.
    """
    whole, pools, deployments = manifest.whole, {}, []
    # Of the part that is deployed, what is built already.
    entries = {entry.full_name: entry for entry in (*whole.deployments, *manifest.deployments)}
    parents = [entry for entry in entries.values() if is_parent(entry.load_flow())]
    durable = [entry for entry in entries.values() if DURABLE in entry.tags]
    for name, pool in manifest.definitions.work_pools.items():
        pools[name] = pool
        own = [parent for parent in parents if parent.work_pool.name == name]
        if others := own or [entry for entry in durable if entry.work_pool.name == name]:
            queues = pool.queues | {QUEUE: WorkQueue()}
            pools[name] = pool.model_copy(update={"queues": queues})
            deployments.append(_cancel_orphans(name, own, others[0]))
    definitions = manifest.definitions.model_copy(
        update={
            "work_pools": pools,
            "automations": [
                *_mark_as_crashed(whole),
                _run_again(whole),
                *manifest.definitions.automations,
            ],
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
    action = {"state": "CRASHED", "message": message}
    return _change_state(manifest, name, trigger, action)


def _run_again(manifest: Manifest) -> AutomationCore:
    """Return what runs lost runs of `cancel_orphans` again: nobody else cleans up after them."""
    trigger = {"after": _events("Crashed"), "expect": _events("*"), "within": AGAIN}
    action = {"state": "SCHEDULED", "name": "AwaitingRetry"}
    own = _related("work-queue", [QUEUE])
    return _change_state(manifest, "clean up again", trigger, action, own)


def _change_state(
    manifest: Manifest, name: str, trigger: dict[str, Any], action: dict[str, Any], *related: Any
) -> AutomationCore:
    trigger = trigger | {
        "type": "event",
        "posture": "Proactive",
        "match": OF_RUNS,
        "match_related": [_related("work-pool", manifest.definitions.work_pools), *related],
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
    }
    actions = [{"type": "change-flow-run-state", **action}]
    return AutomationCore.model_validate(
        {"name": f"{manifest.name}: {name}", "trigger": trigger, "actions": actions}
    )


def _cancel_orphans(pool: str, parents: list[Deployment], other: Deployment) -> Deployment:
    """Return the deployment that cleans up, and runs where another one does.

    It does so once a parent has ended so, or a durable run is Crashed.
    """
    in_pool = _related("work-pool", [pool])
    queues = {parent.work_pool.work_queue_name for parent in parents}
    # Of a durable parent, one run for both: an expression with `!` is for other names.
    durable = [in_pool, {"prefect.resource.role": "tag", "prefect.resource.id": TAG}]
    durable += [_related("work-queue", [f"!{queue}"]) for queue in queues]
    triggers = [_trigger(_events("Crashed"), durable)]
    if parents:
        left = _events("Crashed", "Cancelled", "Failed")
        triggers.append(_trigger(left, [in_pool, _related("work-queue", queues)]))
    declared = other.declared
    steps = {step: declared[step] for step in ("build", "push", "pull") if step in declared}
    return Deployment.model_validate(
        steps
        | {
            "name": pool,
            "entrypoint": "deployments/maintenance.py:cancel_orphans",
            "work_pool": declared["work_pool"] | {"work_queue_name": QUEUE},
            "triggers": triggers,
        }
    )


def _trigger(events: list[str], related: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "event",
        "expect": events,
        "match": OF_RUNS,
        "match_related": related,
        "parameters": {"parent": "{{ event.resource.id }}"},
    }


def _events(*names: str) -> list[str]:
    return [f"prefect.flow-run.{name}" for name in names]


def _related(role: str, names: Iterable[str]) -> dict[str, Any]:
    return {"prefect.resource.role": role, "prefect.resource.name": sorted(names)}
