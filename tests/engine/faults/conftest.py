import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import arun_deployment
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import parent_flow
from deployments.deploy import deploy_manifest
from deployments.project import Manifest
from deployments.servers import TemporaryServer
from tests.engine.faults.proxy import FaultyProxy

FAULTS = Path(__file__).with_name("prefect.yaml")


@pytest.fixture(scope="session")
def faults(prefect_server: TemporaryServer, worker: None) -> None:
    """Deploy the flows that go wrong."""
    asyncio.run(deploy_faults(prefect_server))


async def deploy_faults(
    server: TemporaryServer, *names: str, silent: int = 3600, pending: int = 600
) -> None:
    """Deploy the flows that go wrong, by default all of them, else deployments of these names.

    Tests that let a run be Running without a process want it so for a while.
    """
    manifest = Manifest.load(FAULTS)
    if names:
        manifest = manifest.named(*names)
    after = manifest.definitions.crashed_after
    after.silent, after.pending = silent, pending  # also fewer than people may declare
    await deploy_manifest(manifest, server.env)


@pytest.fixture
async def client(faults: None) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


@pytest.fixture
def proxy(faults: None, prefect_server: TemporaryServer) -> Iterator[FaultyProxy]:
    """Put a proxy between the test's own process and the server."""
    proxy = FaultyProxy(prefect_server.api_url)
    with proxy.serve(), temporary_settings({PREFECT_API_URL: proxy.url}):
        yield proxy
        # Or later tests would send theirs to a proxy that is gone (`PrefectEventsClient` keeps it).
        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


class InProcess:
    """A parent that runs in the test's own process, with the run that it has."""

    def __init__(self) -> None:
        self.run: FlowRun | None = None

    async def __call__(self, code: Callable[[], Awaitable[Any]], **options: Any) -> Any:
        """Run code as the body of a parent flow."""

        async def body() -> Any:
            context = FlowRunContext.get()
            assert context is not None
            self.run = context.flow_run
            return await code()

        return await parent_flow(name="in-process", **options)(body)()


@pytest.fixture
def in_process(faults: None) -> InProcess:
    return InProcess()


async def start(name: str, **parameters: Any) -> FlowRun:
    """Start a deployed parent."""
    return await arun_deployment(f"{name}/local", parameters=parameters, timeout=0)


def pid_of(run: FlowRun) -> int:
    """Return the process id of a run of a process worker."""
    assert run.infrastructure_pid is not None
    return int(run.infrastructure_pid.rpartition(":")[2])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
