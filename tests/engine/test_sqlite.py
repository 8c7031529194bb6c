"""The server of `make dev`, `make demo` and the tests, on SQLite."""

import asyncio

import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.types import KeyValueLabels

from tests.engine.words import measure

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("prefect_server")]


async def test_requests_take_turns() -> None:
    """None is refused since another one wrote what it had read, as a worker's labels were."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        async with get_client() as client:
            runs = [await client.create_flow_run(measure) for _ in range(20)]
            labels: KeyValueLabels = {"taken.by": "a worker"}
            await asyncio.gather(
                *(client.update_flow_run_labels(run.id, labels) for run in runs for _ in range(3))
            )
            found = await asyncio.gather(*(client.read_flow_run(run.id) for run in runs))
    assert {run.labels["taken.by"] for run in found} == {"a worker"}


async def test_a_request_does_not_wait_for_itself() -> None:
    """To pause a work queue, the server opens a session within another one."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="turns", type="process"))
        queue = await client.create_work_queue(name="paused", work_pool_name="turns")
        async with asyncio.timeout(20):
            await client.update_work_queue(queue.id, is_paused=True)
        assert (await client.read_work_queue(queue.id)).is_paused
