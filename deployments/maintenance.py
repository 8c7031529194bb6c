"""A flow that cleans up where a parent can't: prefect.yaml runs it when one has ended."""

import contextlib
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from deployments.runs import ALIVE, UNFINISHED, cancel_children, read_children, wait_until_cancelled


@flow(flow_run_name="cancel the children of {parent}")
async def cancel_orphans(parent: str) -> list[str]:
    """Cancel the children of a parent that are still alive, and name them.

    Args:
        parent: The id of the parent's flow run; or its resource id, as events have it.
    """
    async with get_client() as client:
        parent_id = UUID(parent.removeprefix("prefect.flow-run."))
        return sorted(await _cancel_orphans(client, parent_id))


async def _cancel_orphans(client: PrefectClient, parent_id: UUID) -> set[str]:
    with contextlib.suppress(ObjectNotFound):  # deleted: nobody knows which were its children
        if (await client.read_flow_run(parent_id)).state_type in ALIVE:
            return set()  # somebody retried it meanwhile: it goes on with its children
    runs = await cancel_children(client, parent_id)
    names = {run.name for run in runs}
    # A child may itself be a parent whose worker is gone, too.
    for run in await read_children(client, [parent_id], UNFINISHED):
        names |= await _cancel_orphans(client, run.id)
    await wait_until_cancelled(client, parent_id, runs, get_run_logger())
    return names
