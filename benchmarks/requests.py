"""What each kind of request for a child takes of the server, with all that it sets off there.

python -m benchmarks.requests [--database URL] [--redis HOST]
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from uuid import UUID, uuid4

from cyclopts import App
from prefect import Task, flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.runtime import flow_run
from prefect.states import Completed, Pending, Running, Scheduled, to_state_create
from rich.console import Console
from rich.table import Table

from benchmarks.cost import cpu_seconds, wait_for_rest
from benchmarks.fan_out import SETTINGS, bench_on, server_env
from benchmarks.report import name_of, save
from deployments.runs import cancel_runs

CHILDREN = 100
TOGETHER = 20
PARTS = ("server", "postgres", "redis")

Request = Callable[[list[UUID]], Awaitable[Any]]

app = App(help=__doc__)


class Costs:
    """Send requests one after the other, and keep what each kind took."""

    def __init__(self, server: int) -> None:
        self._server = server
        self.milliseconds: dict[str, dict[str, float]] = {}

    async def measure(self, kind: str, runs: list[UUID], at_once: int, request: Request) -> None:
        """Send requests for runs, so many with each, and keep the CPU time of each request."""
        await asyncio.to_thread(wait_for_rest, self._server)
        before = cpu_seconds(0, self._server)
        parts = [runs[start : start + at_once] for start in range(0, len(runs), at_once)]
        for part in parts:
            await request(part)
        await asyncio.to_thread(wait_for_rest, self._server)
        after = cpu_seconds(0, self._server)
        self.milliseconds[kind] = {
            part: 1000 * (after[part] - before[part]) / len(parts) for part in PARTS
        }


async def measure_all(costs: Costs, client: PrefectClient, parent_id: UUID) -> None:
    """Measure what a child is made of: what its parent asks for, its worker, and its process."""
    deployment = await client.read_deployment_by_name("one/nobody")
    runs: list[UUID] = [uuid4() for _ in range(CHILDREN)]
    tasks: list[UUID] = []

    async def create_task_run(_: Iterable[UUID]) -> None:
        task = Task[[], None](name="one", fn=lambda: None)
        made = await client.create_task_run(
            task, flow_run_id=parent_id, dynamic_key=f"{uuid4()}", state=Pending()
        )
        tasks.append(made.id)

    async def create(together: list[UUID]) -> None:
        state = to_state_create(Scheduled()).model_dump(mode="json", exclude_unset=True)
        body = [
            {"parameters": {"number": 1}, "parent_task_run_id": f"{tasks.pop()}", "state": state}
            for _ in together
        ]
        path: Any = "/deployments/{id}/create_flow_run/bulk"
        await client.request("POST", path, path_params={"id": deployment.id}, json=body)

    async def read(together: list[UUID]) -> None:
        found = FlowRunFilter.model_validate({"id": {"any_": together}})
        await client.read_flow_runs(flow_run_filter=found)

    def setting(state: Callable[[], Any]) -> Request:
        async def set_state(one: list[UUID]) -> None:
            await client.set_flow_run_state(one[0], state())

        return set_state

    await costs.measure("create a task run", runs, 1, create_task_run)
    await costs.measure(f"create {TOGETHER} runs together", runs, TOGETHER, create)
    children = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [parent_id]}})
    runs = [run.id for run in await client.read_flow_runs(flow_run_filter=children)]
    await costs.measure("read a run", runs, 1, read)
    await costs.measure(f"read {TOGETHER} runs", runs, TOGETHER, read)
    await costs.measure("call a run Pending", runs, 1, setting(Pending))
    await costs.measure("call a run Running", runs, 1, setting(Running))
    await costs.measure("call a run Completed", runs, 1, setting(Completed))
    for _ in runs:
        await create_task_run([])
    await create(runs)
    scheduled = FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}})
    runs = [run.id for run in await client.read_flow_runs(flow_run_filter=scheduled)]
    half = len(runs) // 2
    await costs.measure("cancel a run", runs[:half], 1, lambda one: cancel_runs(client, one))
    await costs.measure(
        f"cancel {half} runs", runs[half:], half, lambda all_: cancel_runs(client, all_)
    )


@app.default
def main(*, database: str | None = None, redis: str | None = None) -> None:
    """Measure, print a table, and write the figures beside this file."""
    with bench_on(server_env(database, redis), SETTINGS) as running:
        costs = Costs(running.server.process.pid)

        @flow(name="requests")
        async def parent() -> None:
            async with get_client() as client:
                await measure_all(costs, client, UUID(flow_run.id))

        asyncio.run(parent())
    save(costs.milliseconds, f"requests-{name_of(database, redis)}")
    table = Table("milliseconds of CPU time", *PARTS)
    for kind, cost in costs.milliseconds.items():
        table.add_row(kind, *(f"{cost[part]:.0f}" for part in PARTS))
    Console().print(table)


if __name__ == "__main__":
    app()
