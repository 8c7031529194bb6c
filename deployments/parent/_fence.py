"""An attempt of a durable run ends where another one has taken its place.

It was taken for dead: its machine was asleep, or its network cut. Prefect's server would take all
that it does from then on, also after the end of the other attempt.
"""

import asyncio
import contextlib
import os
import threading

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging.handlers import APILogHandler
from prefect.logging.loggers import LoggingAdapter

LOOK_SECONDS = 30.0
# The thread that does so in a run that started warm (`_warm_process.py`).
FENCE = "deployments.fence"
# Of a run that is under way, they are those of a crash and of what comes after it.
TAKEN = (StateType.CRASHED, StateType.SCHEDULED, StateType.PENDING)


async def keep_looking(client: PrefectClient, flow_run: FlowRun, logger: LoggingAdapter) -> None:
    """End this process once another attempt has taken its place, for ever."""
    while FENCE not in [thread.name for thread in threading.enumerate()]:
        await asyncio.sleep(LOOK_SECONDS)
        with contextlib.suppress(Exception):  # the next look may succeed
            await end_if_replaced(client, flow_run, logger)


async def end_if_replaced(client: PrefectClient, flow_run: FlowRun, logger: LoggingAdapter) -> None:
    """End this process if another attempt has taken its place.

    Args:
        client: The client to ask with.
        flow_run: The run, as this attempt has begun it.
        logger: The logger of the run.
    """
    run = await client.read_flow_run(flow_run.id)
    if run.run_count > flow_run.run_count or run.state_type in TAKEN:
        logger.warning("This attempt was taken for dead, and ends: another one goes on")
        await APILogHandler.aflush()
        # With status 0: at another its worker would call the other attempt Crashed.
        os._exit(0)
