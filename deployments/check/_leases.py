"""Where a server keeps who holds which concurrency limit."""

from __future__ import annotations

from collections.abc import AsyncIterator

from httpx import HTTPStatusError
from prefect.client.orchestration import PrefectClient

from deployments.project import Manifest

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"


async def check_leases(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield a line if a restart of the server would end runs, since they hold a limit."""
    limited = [each for each in manifest.deployments if each.declared.get("concurrency_limit")]
    if not limited:
        return
    try:
        settings = (await client.request("GET", "/admin/settings")).json()
    except HTTPStatusError:  # Prefect Cloud has no such route
        return
    if settings["server"]["concurrency"]["lease_storage"] == IN_MEMORY:
        yield (
            f"the server keeps concurrency limits in its memory: when it is restarted, runs of "
            f"{limited[0].name} crash. Start it where prefect.toml is, or with its lease_storage"
        )
