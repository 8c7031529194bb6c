"""What is said of runs that wait, and of which."""

from collections.abc import AsyncIterator

import pytest
from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import FlowRun

from deployments.runs._waiting import find_reasons
from tests.engine.waiting import wait_for

pytestmark = pytest.mark.anyio


@flow
def idle() -> None:
    raise NotImplementedError


@pytest.fixture
async def client(prefect_server: object) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


async def start(client: PrefectClient, pool: str | None) -> FlowRun:
    """Start a run of a deployment in a work pool, or in none."""
    if pool:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
    deployment = await client.create_deployment(
        await client.create_flow(idle), pool or "unserved", work_pool_name=pool
    )
    return await client.create_flow_run_from_deployment(deployment, name="it")


async def tell(client: PrefectClient, run: FlowRun) -> str:
    run = await client.read_flow_run(run.id)
    return "\n".join([line async for line in find_reasons(client, [run])])


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        ("idle", "no worker is online for work pool idle: `prefect worker start --pool idle`"),
        (
            None,
            "no work pool is on the deployment, and nobody serves it: declare its `work_pool` in "
            "prefect.yaml, and `make deploy`",
        ),
    ],
)
async def test_a_run_that_only_just_came_is_not_told_of(
    client: PrefectClient, pool: str | None, reason: str
) -> None:
    run = await start(client, pool)
    assert await tell(client, run) == ""

    async def told() -> str:
        return await tell(client, run)

    line = await wait_for(told, "it is told")
    seconds = line.removeprefix("it not started for ").removesuffix(f" s: {reason}")
    assert int(seconds) >= 5


async def test_a_worker_that_stopped_is_not_online_for_long(client: PrefectClient) -> None:
    """Prefect calls it ONLINE until it has missed three heartbeats, and some more seconds."""
    run = await start(client, "stopped")

    async def says(text: str) -> bool:
        return text in await tell(client, run)

    await wait_for(lambda: says("no worker is online"), "it is told")
    await client.send_worker_heartbeat("stopped", "gone", heartbeat_interval_seconds=2)
    assert "a worker is online, last heard of 0 s ago, and has not" in await tell(client, run)
    await wait_for(lambda: says("no worker is online"), "the worker is known to be gone")
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    assert await client.read_workers_for_work_pool("stopped", online)
