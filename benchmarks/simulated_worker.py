"""Stands in for a worker: completes the runs of the pool `simulated` through the API.

What a parent of hundreds of children costs shows without hundreds of processes.

python -m benchmarks.simulated_worker
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import get_client
from prefect.results import ResultStore
from prefect.states import Completed, Running

from benchmarks.flows import one

BATCH = 20


async def main() -> None:
    """Complete runs one after another, until somebody ends this process."""
    store = await ResultStore(persist_result=True).aupdate_for_flow(one)
    result = store.create_result_record(1)
    await store.apersist_result_record(result)
    async with get_client() as client:
        print("ready", flush=True)
        while True:
            soon = datetime.now(UTC) + timedelta(seconds=1)
            runs = await client.get_scheduled_flow_runs_for_work_pool(
                "simulated", scheduled_before=soon
            )
            for run in runs[:BATCH]:
                await client.set_flow_run_state(run.flow_run.id, Running())
                await client.set_flow_run_state(run.flow_run.id, Completed(data=result))
            if not runs:
                await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(main())
