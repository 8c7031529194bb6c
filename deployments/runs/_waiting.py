"""Why runs do not get on: never wait in silence."""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    WorkerFilter,
    WorkPoolFilter,
    WorkQueueFilter,
)
from prefect.client.schemas.objects import FlowRun, StateType, Worker
from prefect.logging import get_logger

from deployments.runs._restart import is_durable, will_restart

# When it first says why runs wait, and how rarely it says so later.
EXPLAIN_SECONDS = 10.0
EXPLAIN_MAX_SECONDS = 600.0
# What waits for less is not worth a word.
WAIT_SECONDS = 5.0
# A worker that was stopped stays ONLINE until it missed some heartbeats: we take one, and a half,
# since it sends them with jitter. The interval is Prefect's own where a worker does not tell it.
MISSED = 1.5
HEARTBEAT_SECONDS = 30

ONLINE = WorkerFilter.model_validate({"status": {"any_": ["ONLINE"]}})
UNDER_WAY = FlowRunFilter.model_validate(
    {"state": {"type": {"any_": [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]}}}
)

logger = get_logger("deployments")


async def explain_waiting(
    client: PrefectClient,
    read_runs: Callable[[], Awaitable[Iterable[FlowRun]]],
    warn: Callable[[str], object],
) -> None:
    """Say why runs wait, after a while and then ever more rarely, for ever.

    `read_runs` returns the runs as they are then, and `warn` gets a line for each reason.
    """
    pause = EXPLAIN_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause = min(3 * pause, EXPLAIN_MAX_SECONDS)
        try:
            async for line in find_reasons(client, await read_runs()):
                warn(line)
        except Exception as error:  # noqa: BLE001 - only a service to the reader
            logger.debug("Could not tell why runs wait: %r", error)


async def find_reasons(client: PrefectClient, runs: Iterable[FlowRun]) -> AsyncIterator[str]:
    """Yield one line for each reason why runs wait, with what to do.

    Those that run, or only just came, are not told of.
    """
    alike = defaultdict[Any, list[FlowRun]](list)
    for run in runs:
        # A plain subflow is in its parent's process, and waits for nobody else.
        if run.deployment_id and _waited(run) >= WAIT_SECONDS:
            started = run.start_time is not None
            place = run.work_pool_name, run.work_queue_id
            alike[run.state_type, started, is_durable(run), *place].append(run)
    for (state, started, durable, pool_name, queue_id), waiting in alike.items():
        match state:
            case StateType.SCHEDULED if pool_name and queue_id:
                reason = await _why_not_taken(client, pool_name, queue_id, waiting)
            case StateType.SCHEDULED:
                reason = (
                    "no work pool is on the deployment, and nobody serves it: declare its "
                    "`work_pool` in prefect.yaml, and `make deploy`"
                )
            case StateType.PENDING if pool_name and not await online_workers(client, pool_name):
                reason = f"being started, but {_no_worker(pool_name)}"
            case StateType.PENDING:
                reason = "being started by a worker"
            case StateType.PAUSED:
                reason = "paused or suspended: resume in the UI, or cancel"
            case StateType.CRASHED if durable and await will_restart(client, waiting[0]):
                reason = "crashed, and to be restarted by cancel-orphans, which has not run yet"
            case StateType.CANCELLING if not started:
                reason = "being cancelled; a worker may still start it, in vain"
            case StateType.CANCELLING:
                reason = "being cancelled, by a worker or in the end by the server"
            case _:
                continue
        names = sorted(run.name for run in waiting)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if state in (StateType.SCHEDULED, StateType.PENDING):
            more += f" not started for {max(map(_waited, waiting)):.0f} s"
        yield f"{', '.join(names[:3])}{more}: {reason}"


async def _why_not_taken(
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
    in_pool = WorkPoolFilter.model_validate({"name": {"any_": [pool_name]}})
    if await _is_full(client, pool.concurrency_limit, work_pool_filter=in_pool):
        return f"work pool {pool_name} runs {pool.concurrency_limit} at once, its limit"
    in_queue = WorkQueueFilter.model_validate({"id": {"any_": [queue_id]}})
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
    return [
        worker
        for worker in await client.read_workers_for_work_pool(pool_name, ONLINE)
        if _silence(worker) < MISSED * (worker.heartbeat_interval_seconds or HEARTBEAT_SECONDS)
    ]


async def _is_full(client: PrefectClient, limit: int | None, **where: Any) -> bool:
    if limit is None:
        return False
    return await client.count_flow_runs(flow_run_filter=UNDER_WAY, **where) >= limit


def _silence(worker: Worker) -> float:
    """Return for how many seconds nothing was heard of a worker."""
    return _since(worker.last_heartbeat_time) if worker.last_heartbeat_time else math.inf


def _waited(run: FlowRun) -> float:
    """Return for how many seconds a run has been waiting where it is now."""
    if run.state_type == StateType.SCHEDULED:
        # Not since its state: Late and AwaitingConcurrencySlot are told again and again.
        if run.start_time is None:
            return run.estimated_start_time_delta.total_seconds()
        if run.next_scheduled_start_time:  # of a restart, or a retry, which may be due later
            return _since(run.next_scheduled_start_time)
    if run.state is None:
        return 0
    # A worker takes a run some seconds before it is due (PREFECT_WORKER_PREFETCH_SECONDS).
    due = run.state.state_details.scheduled_time or run.state.timestamp
    return _since(max(due, run.state.timestamp))


def _since(moment: datetime) -> float:
    return max((datetime.now(UTC) - moment).total_seconds(), 0)
