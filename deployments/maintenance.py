"""A flow that cleans up where a parent can't: prefect.yaml runs it when one has crashed."""

from uuid import UUID

from prefect import flow, get_client

from deployments._orphans import cancel_children


@flow(flow_run_name="cancel the children of {parent}")
async def cancel_orphans(parent: str) -> list[str]:
    """Cancel the children of a parent that are still alive, and name them.

    Args:
        parent: The id of the parent's flow run; or its resource id, as events have it.
    """
    parent_id = UUID(parent.removeprefix("prefect.flow-run."))
    async with get_client() as client:
        runs = await cancel_children(client, parent_id)
    return sorted(run.name for run in runs)
