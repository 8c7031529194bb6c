"""The children of the benchmark, and the parents that it cancels."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.deployments import arun_deployment

from deployments import child, parent_flow


@flow(persist_result=True)
def one(number: int) -> int:
    """Do as little as a flow can."""
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
async def ours_sleepers(count: int, seconds: float) -> None:
    """Wait for children as this template does."""
    await asyncio.gather(*(child(sleep)(seconds) for _ in range(count)))
