"""A parent's own page: what its children do, as artifacts of its run."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging.loggers import LoggingAdapter

from deployments.parent._table import LABEL, Row, escape, percentage, sum_up, tabulate
from deployments.runs import PatientClient, read_pages

# What one request has to wait for the next: waiting costs 0.1 requests a second at most.
REQUEST_SECONDS = 10.0
# How long a parent that has ended waits for its page, where the server does not answer.
END_SECONDS = 10.0

KINDS = ("progress", "markdown")
# Tells our artifacts from others of the same run.
MARK = {"of": "children"}


class Page:
    """Publish a parent's children: how many have ended, and a table of them.

    Two artifacts without a key, so that they are on the run's own page alone, updated in place:
    a retried parent goes on with those of its earlier attempts. A nested parent also labels its
    run, for the page of the one above, which reads its children anyway.

    A parent does not fail for its page, and waits for it at most `END_SECONDS`.

    Args:
        server: The server to ask.
        flow_run: The parent's run.
        logger: The logger of the parent's run.
    """

    def __init__(self, server: PatientClient, flow_run: FlowRun, logger: LoggingAdapter) -> None:
        self._server = server
        self._flow_run = flow_run
        self._logger = logger
        self._rows: dict[UUID, Row] = {}
        self._artifacts: dict[str, UUID] = {}
        # Whether others may exist: of an earlier attempt, or of a request that failed.
        self._unsure = flow_run.run_count > 1
        self._published: dict[str, Any] = {}
        self._requests = 0
        self._updating = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def add(self, run: FlowRun, used_again: str) -> None:
        """Add a child, and how it is used again where an earlier attempt made it."""
        self._rows[run.id] = Row.of(run, used_again)
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up())

    async def finish(self) -> None:
        """Publish how the children ended."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(END_SECONDS):
                async with self._updating:  # what is under way may just create an artifact
                    self._task.cancel()
                await self._server.ask(self._update)
        except Exception as error:  # noqa: BLE001 - only a service to the reader
            self._logger.warning("The page of this run does not tell how it ended: %r", error)
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_up(self) -> None:
        pause = REQUEST_SECONDS
        while True:
            await asyncio.sleep(pause)
            before = self._requests
            try:
                async with self._updating:
                    await self._update(self._server.client)
            except Exception as error:  # noqa: BLE001 - the next one may succeed
                self._logger.debug("Could not update the page of this run: %r", error)
            pause = max(self._requests - before, 1) * REQUEST_SECONDS

    async def _update(self, client: PrefectClient) -> None:
        # One that fell silent is called crashed, and may go on.
        open_ended = [
            run_id
            for run_id, row in self._rows.items()
            if not row.ended or row.type == StateType.CRASHED
        ]
        async for runs in read_pages(client, open_ended):
            self._requests += 1
            for run in runs:
                self._rows[run.id] = Row.of(run, self._rows[run.id].used_again)
        if self._unsure:
            self._requests += 1
            self._artifacts = await self._find_artifacts(client)
        self._unsure = len(self._artifacts) < len(KINDS)
        rows = list(self._rows.values())
        progress = percentage(rows)
        await self._publish(client, "progress", progress, progress, "Children that have ended")
        table, summary = tabulate(rows), sum_up(rows)
        dated = table
        if progress < 100:
            dated += f"\n\nAs of {datetime.now(UTC):%Y-%m-%d %H:%M:%S}. Times are in UTC."
        await self._publish(client, "markdown", table, dated, escape(summary))
        self._unsure = False
        if self._flow_run.parent_task_run_id:
            await self._label(client, summary)

    async def _publish(
        self, client: PrefectClient, kind: str, content: Any, data: Any, description: str
    ) -> None:
        """Create or update the artifact of a kind, unless its content is still the same."""
        if self._published.get(kind) == content:
            return
        self._requests += 1
        if kind in self._artifacts:
            update = ArtifactUpdate(data=data, description=description)
            await client.update_artifact(self._artifacts[kind], update)
        else:
            artifact = ArtifactCreate(
                type=kind,
                description=description,
                data=data,
                metadata_=MARK,
                flow_run_id=self._flow_run.id,
            )
            self._artifacts[kind] = (await client.create_artifact(artifact)).id
        self._published[kind] = content

    async def _find_artifacts(self, client: PrefectClient) -> dict[str, UUID]:
        """Return the artifacts that exist, by kind."""
        ours = {
            "flow_run_id": {"any_": [self._flow_run.id]},
            "key": {"exists_": False},
            "type": {"any_": [*KINDS]},
        }
        artifacts = await client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(ours))
        return {f"{found.type}": found.id for found in artifacts if found.metadata_ == MARK}

    async def _label(self, client: PrefectClient, content: str) -> None:
        if self._published.get(LABEL) != content:
            self._requests += 1
            await client.update_flow_run_labels(self._flow_run.id, {LABEL: content})
            self._published[LABEL] = content
