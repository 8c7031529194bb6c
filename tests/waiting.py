"""Waiting for something on a server, and looking at what is there."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun

T = TypeVar("T")


async def wait_for(
    predicate: Callable[[], Awaitable[T | None]], what: str, seconds: float = 120
) -> T:
    """Return what the predicate returns as soon as it is true, or fail after some time."""
    deadline = time.monotonic() + seconds
    while not (value := await predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain until {what}")
        await asyncio.sleep(0.2)
    return value


async def children_of(client: PrefectClient, parent: FlowRun) -> list[FlowRun]:
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id])
        )
    )


async def read_graph(client: PrefectClient, parent: FlowRun) -> dict[UUID, set[UUID]]:
    """Return the runs in the parent's run graph, each with those that have an arrow to it."""
    response = await client.request(
        "GET", "/flow_runs/{id}/graph-v2", path_params={"id": parent.id}
    )
    return {
        UUID(node_id): {UUID(arrow["id"]) for arrow in node["parents"]}
        for node_id, node in response.json()["nodes"]
    }
