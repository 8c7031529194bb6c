"""Why children do not get on: never wait in silence."""

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterId,
)
from prefect.client.schemas.objects import FlowRun, StateType, Worker

UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]

# What waits for less is not worth a word.
WAIT_SECONDS = 5.0
# A worker that was stopped stays ONLINE until it missed some heartbeats: we take one, and a half,
# since it sends them with jitter. The interval is Prefect's own where a worker does not tell it.
MISSED = 1.5
HEARTBEAT_SECONDS = 30


async def explain_waiting(client: PrefectClient, runs: Iterable[FlowRun]) -> AsyncIterator[str]:
    """Yield one line for each reason why runs wait, with what to do.

    Those that run, or only just came, are not told of.
    """
    by_queue: dict[tuple[str, UUID], list[FlowRun]] = defaultdict(list)
    by_pool: dict[str, list[FlowRun]] = defaultdict(list)
    by_state: dict[StateType | None, list[FlowRun]] = defaultdict(list)
    unserved: list[FlowRun] = []
    for run in runs:
        if _waited(run) < WAIT_SECONDS:
            continue
        by_state[run.state_type].append(run)
        if run.state_type == StateType.SCHEDULED and run.work_pool_name and run.work_queue_id:
            by_queue[run.work_pool_name, run.work_queue_id].append(run)
        elif run.state_type == StateType.SCHEDULED and run.deployment_id:
            unserved.append(run)
        elif run.state_type == StateType.PENDING:
            by_pool[run.work_pool_name or "?"].append(run)
    for (pool_name, queue_id), waiting in by_queue.items():
        yield f"{_unstarted(waiting)}: {await _reason(client, pool_name, queue_id, waiting)}"
    if unserved:
        yield (
            f"{_unstarted(unserved)}: no work pool is on the deployment, and nobody serves it: "
            "declare its `work_pool` in prefect.yaml, and `make deploy`"
        )
    for pool_name, pending in by_pool.items():
        if await online_workers(client, pool_name):
            yield f"{_unstarted(pending)}: being started by a worker"
        else:
            yield f"{_unstarted(pending)}: being started, but {_no_worker(pool_name)}"
    if paused := by_state[StateType.PAUSED]:
        yield f"{_names(paused)}: paused or suspended: resume in the UI, or cancel"
    cancelling = by_state[StateType.CANCELLING]
    if starting := [run for run in cancelling if run.start_time is None]:
        yield f"{_names(starting)}: being cancelled; a worker may still start it, in vain"
    if ending := [run for run in cancelling if run.start_time is not None]:
        yield f"{_names(ending)}: being cancelled, by a worker or in the end by the server"


async def _reason(
    client: PrefectClient, pool_name: str, queue_id: UUID, waiting: list[FlowRun]
) -> str:
    pool = await client.read_work_pool(pool_name)
    queue = await client.read_work_queue(queue_id)
    if pool.is_paused:
        return f"work pool {pool_name} is paused: `prefect work-pool resume {pool_name}`"
    if queue.is_paused:
        return (
            f"work queue {queue.name} of pool {pool_name} is paused: "
            f"`prefect work-queue resume {queue.name} --pool {pool_name}`"
        )
    workers = await online_workers(client, pool_name)
    if not workers:
        return _no_worker(pool_name)
    in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool_name]))
    in_queue = WorkQueueFilter(id=WorkQueueFilterId(any_=[queue_id]))
    if await _is_full(client, pool.concurrency_limit, work_pool_filter=in_pool):
        return f"work pool {pool_name} runs {pool.concurrency_limit} at once, its limit"
    if await _is_full(client, queue.concurrency_limit, work_queue_filter=in_queue):
        return f"work queue {queue.name} runs {queue.concurrency_limit} at once, its limit"
    if any(run.state_name == "AwaitingConcurrencySlot" for run in waiting):
        return "the concurrency limit of the deployment is reached"
    heard = min(_silence(worker) for worker in workers)
    return f"a worker is online, last heard of {heard:.0f} s ago, and has not taken it yet"


def _no_worker(pool_name: str) -> str:
    return (
        f"no worker is online for work pool {pool_name}: `prefect worker start --pool {pool_name}`"
    )


async def online_workers(client: PrefectClient, pool_name: str) -> list[Worker]:
    """Return the workers of the pool that are online, and not silent for too long."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return [
        worker
        for worker in await client.read_workers_for_work_pool(pool_name, online)
        if _silence(worker) < MISSED * (worker.heartbeat_interval_seconds or HEARTBEAT_SECONDS)
    ]


def _silence(worker: Worker) -> float:
    """Return for how many seconds nothing was heard of a worker."""
    return _since(worker.last_heartbeat_time) if worker.last_heartbeat_time else math.inf


async def _is_full(client: PrefectClient, limit: int | None, **where: Any) -> bool:
    if limit is None:
        return False
    under_way = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)))
    return await client.count_flow_runs(flow_run_filter=under_way, **where) >= limit


def _names(runs: list[FlowRun]) -> str:
    names = sorted(run.name for run in runs)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _unstarted(runs: list[FlowRun]) -> str:
    return f"{_names(runs)} not started for {max(map(_waited, runs)):.0f} s"


def _waited(run: FlowRun) -> float:
    """Return for how many seconds a run has been waiting where it is now."""
    assert run.state is not None  # noqa: S101 - one that waits has a state
    if run.state_type == StateType.SCHEDULED and run.start_time is None:
        # Not since its state: Late and AwaitingConcurrencySlot are told again and again.
        return run.estimated_start_time_delta.total_seconds()
    return _since(run.state.timestamp)


def _since(moment: datetime) -> float:
    return max((datetime.now(UTC) - moment).total_seconds(), 0)
