"""A flow that cleans up where a parent can't: prefect.yaml runs it when one has ended."""

import asyncio
import time
from uuid import UUID

from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from deployments.runtime import ALIVE, UNFINISHED, cancel_children, read_children

LOOK_SECONDS = 5.0


@flow(flow_run_name="cancel the children of {parent}")
async def cancel_orphans(parent: str, grace_seconds: float = 60) -> list[str]:
    """Cancel the children of a parent that are still alive, and name them.

    Args:
        parent: The id of the parent's flow run; or its resource id, as events have it.
        grace_seconds: How long their workers may take to end them. A worker that died with the
            parent never does: then they are set to Cancelled.
    """
    async with get_client() as client:
        parent_id = UUID(parent.removeprefix("prefect.flow-run."))
        return sorted(await _cancel_orphans(client, parent_id, grace_seconds))


async def _cancel_orphans(client: PrefectClient, parent_id: UUID, grace_seconds: float) -> set[str]:
    if await _is_retried(client, parent_id):
        return set()
    names = {run.name for run in await cancel_children(client, parent_id)}
    deadline = time.monotonic() + grace_seconds
    while left := await read_children(client, parent_id, UNFINISHED):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(LOOK_SECONDS)
    for run in left:
        await client.set_flow_run_state(run.id, Cancelled(message="No worker ended it in time"))
        names |= {run.name} | await _cancel_orphans(client, run.id, grace_seconds)
    return names


async def _is_retried(client: PrefectClient, parent_id: UUID) -> bool:
    """Tell whether somebody retried the parent meanwhile, which goes on with its children."""
    try:
        run = await client.read_flow_run(parent_id)
    except ObjectNotFound:  # deleted: nobody knows which were its children
        return False
    return run.state_type in ALIVE
