"""Stands in for a worker: completes the runs of the pool `simulated` through the API.

What a parent of hundreds of children costs shows without hundreds of processes.

python -m benchmarks.simulated_worker AT_ONCE
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.results import ResultStore
from prefect.states import Cancelled, Completed, Running

from benchmarks.flows import one


async def main(at_once: int) -> None:
    """Complete runs, so many at once, until somebody ends this process."""
    turn = asyncio.Semaphore(at_once)
    store = await ResultStore(persist_result=True).aupdate_for_flow(one)
    result = store.create_result_record(1)
    await store.apersist_result_record(result)
    async with get_client() as client:

        async def complete(run_id: UUID) -> None:
            async with turn:
                states: list[State[Any]] = [Running(), Completed(data=result)]
                for state in states:
                    answer = await client.set_flow_run_state(run_id, state)
                    if answer.status != SetStateStatus.ACCEPT:  # it is cancelled
                        await client.set_flow_run_state(run_id, Cancelled())
                        break

        print("ready", flush=True)
        while True:
            soon = datetime.now(UTC) + timedelta(seconds=1)
            runs = await client.get_scheduled_flow_runs_for_work_pool(
                "simulated", scheduled_before=soon
            )
            await asyncio.gather(*(complete(run.flow_run.id) for run in runs))
            if not runs:
                await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
