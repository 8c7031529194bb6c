"""A run and all runs below it, read in few requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterId,
)
from prefect.client.schemas.objects import FlowRun

from deployments.runs import read_all

# No more than a server returns at once (PREFECT_API_DEFAULT_LIMIT).
PAGE = 200


@dataclass
class Tree:
    """A run, its children, and theirs.

    Attributes:
        root: The run.
        below: All runs below it.
    """

    root: FlowRun
    below: list[FlowRun] = field(default_factory=list)
    # A child knows the task run that stands for it in its parent; that knows the parent.
    _parents: dict[UUID, UUID] = field(default_factory=dict)

    async def read(self, client: PrefectClient) -> bool:
        """Read all of it again.

        What a run that is new here has below it comes with the next reading.

        Returns:
            Whether anything is different.

        Raises:
            ObjectNotFound: The run was deleted.
        """
        before = self._states()
        root = await client.read_flow_run(self.root.id)
        above = [root.id, *(run.id for run in self.below if run.start_time)]
        below = await read_all(
            client, FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=above))
        )
        await self._read_parents(client, below)
        self.root = root
        self.below = sorted(below, key=lambda run: str(run.expected_start_time))
        return self._states() != before

    def walk(self) -> Iterator[tuple[int, FlowRun]]:
        """Yield the depth and the run of each below the root, after the one that it is below."""
        children: dict[UUID, list[FlowRun]] = {}
        for run in self.below:
            children.setdefault(self._parents.get(_task(run), self.root.id), []).append(run)
        left = [(1, run) for run in reversed(children.get(self.root.id, []))]
        while left:
            depth, run = left.pop()
            yield depth, run
            left += [(depth + 1, child) for child in reversed(children.get(run.id, []))]

    async def _read_parents(self, client: PrefectClient, runs: list[FlowRun]) -> None:
        unknown = [task for run in runs if (task := _task(run)) not in self._parents]
        for start in range(0, len(unknown), PAGE):
            some = TaskRunFilter(id=TaskRunFilterId(any_=unknown[start : start + PAGE]))
            for task_run in await client.read_task_runs(task_run_filter=some):
                if task_run.flow_run_id:
                    self._parents[task_run.id] = task_run.flow_run_id

    def _states(self) -> dict[UUID, UUID | None]:
        return {run.id: run.state_id for run in [self.root, *self.below]}


def _task(run: FlowRun) -> UUID:
    assert run.parent_task_run_id is not None  # noqa: S101 - it was found as a child
    return run.parent_task_run_id
