"""The children of the benchmark, and the parents that it cancels."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.deployments import arun_deployment

from deployments import child, parent_flow


@flow(persist_result=True)
async def one(number: int) -> int:
    """Do as little as a flow can. Async, since else a `gather` of subflows runs one at a time."""
    return number


@flow
async def sleep(seconds: float) -> None:
    """Run for some time."""
    await asyncio.sleep(seconds)


@flow
async def plain_sleepers(count: int, seconds: float) -> None:
    """Wait for children as most people do."""
    parameters = {"seconds": seconds}
    await asyncio.gather(
        *(arun_deployment("sleep/plain", parameters=parameters) for _ in range(count))
    )


@parent_flow
async def thousands(count: int, of_children: str) -> int:
    """Add up what many children return."""
    call = child(one, deployment=of_children)
    return sum(await asyncio.gather(*map(call, range(count))))


@parent_flow
async def ours_sleepers(count: int, seconds: float) -> None:
    """Wait for children as this template does."""
    await asyncio.gather(*(child(sleep)(seconds) for _ in range(count)))
