"""A server with basic authentication: clients, worker, parent, children and events have it."""

import asyncio
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prefect import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)
from rich.console import Console

from deployments.servers import (
    TemporaryServer,
    explain,
    require_server,
    temporary_server,
    temporary_worker,
)
from tests.engine.faults.conftest import deploy_faults, start
from tests.engine.waiting import ended, outcome

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PASSWORD = "admin:of-a-test"  # noqa: S105


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TemporaryServer]:
    """A server that asks for a password, and what its users need."""
    own = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD}
    with (
        temporary_server(tmp_path, own=own) as server,
        temporary_settings(
            {
                PREFECT_API_URL: server.api_url,
                PREFECT_API_AUTH_STRING: PASSWORD,
                PREFECT_HOME: server.home,
            }
        ),
    ):
        yield replace(server, env={**server.env, "PREFECT_API_AUTH_STRING": PASSWORD})


async def test_a_parent_and_its_children_run(server: TemporaryServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        await asyncio.to_thread(urllib.request.urlopen, f"{server.api_url}/admin/version")
    with temporary_settings({PREFECT_API_AUTH_STRING: "admin:wrong"}):
        async with get_client() as client:
            with pytest.raises(httpx.HTTPError) as refused:
                await require_server(client, Console())
        assert await explain(refused.value) == (
            f"{server.api_url}/ refuses us (401): set PREFECT_API_AUTH_STRING in .env, or correct "
            "it there"
        )
    await deploy_faults(server)
    debugging = replace(server, env={**server.env, "PREFECT_LOGGING_LEVEL": "DEBUG"})
    with temporary_worker(debugging, "engine-tests-local"):
        parent = await start("family", steps=[{"name": "a"}, {"name": "bb"}])
        async with get_client() as client:
            parent = await ended(client, parent)
            assert parent.state is not None
            assert parent.state.is_completed(), parent.state
            assert await parent.state.aresult() == [1, 2]
            assert await outcome(client, parent) == [("a", "Completed"), ("bb", "Completed")]
            # Nor has its watcher failed to subscribe to events, which it would say at this level.
            of_parent = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[parent.id]))
            logs = await client.read_logs(log_filter=of_parent)
            assert any(log.level <= logging.DEBUG for log in logs)
            assert [log.message for log in logs if "events" in log.message] == []
