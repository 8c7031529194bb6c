"""A run and all runs below it: read in few requests, and drawn so that they fit on a terminal."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.styled import Styled
from rich.table import Column, Table

from deployments.runs import read_all, read_everything

# With more runs below it than this, a bar and counts take the place of their rows.
ROWS = 20
# So many failures are named; the others are counted.
NAMED = 10
MESSAGE_CHARACTERS = 200
COLORS: dict[StateType | None, str] = {
    StateType.COMPLETED: "green",
    StateType.RUNNING: "blue",
    StateType.FAILED: "red",
    StateType.CRASHED: "red",
}


@dataclass
class Tree:
    """A run, its children, and theirs.

    Attributes:
        root: The run.
        below: All runs below it, a parent before its children.
    """

    root: FlowRun
    below: list[FlowRun] = field(default_factory=list)
    # A child knows the task run that stands for it in its parent; that knows the parent.
    _parents: dict[UUID | None, UUID | None] = field(default_factory=dict)

    async def read(self, client: PrefectClient) -> None:
        """Read all of it again; what is below a run that is new here comes the next time.

        Raises:
            ObjectNotFound: The run was deleted.
        """
        self.root = await client.read_flow_run(self.root.id)
        above = [self.root.id, *(run.id for run in self.below if run.start_time)]
        children = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": above}})
        below = await read_all(client, children)
        if unknown := {run.parent_task_run_id for run in below} - self._parents.keys():
            tasks = TaskRunFilter.model_validate({"id": {"any_": [*unknown]}})
            read = functools.partial(client.read_task_runs, task_run_filter=tasks)
            for task_run in await read_everything(read):
                self._parents[task_run.id] = task_run.flow_run_id
        self.below = sorted(below, key=lambda run: str(run.created))

    def rows(self) -> list[tuple[int, FlowRun]]:
        """Return the depth and the run of each, after the one that it is below."""
        runs = list(self.below)  # the picture is drawn in another thread than it is read
        paths: dict[UUID | None, tuple[int, ...]] = {self.root.id: ()}
        for number, run in enumerate(runs):
            parent = self._parents.get(run.parent_task_run_id)
            paths[run.id] = (*paths.get(parent, ()), number)
        ordered = sorted([self.root, *runs], key=lambda run: paths[run.id])
        return [(len(paths[run.id]), run) for run in ordered]


def draw(tree: Tree) -> RenderableType:
    """Return a row for each run, or a bar and counts where they are too many; then failures."""
    below = tree.below
    many = len(below) > ROWS
    table = Table("run", "state", Column("seconds", justify="right"), box=None, pad_edge=False)
    for depth, run in [(0, tree.root)] if many else tree.rows():
        indent = "  " * depth + "└ " if depth else ""
        color = COLORS.get(run.state_type, "default")
        seconds = ""
        if run.start_time:
            ran = (run.end_time or datetime.now(UTC)) - run.start_time
            seconds = f"{ran.total_seconds():.1f}"
        table.add_row(indent + run.name, Styled(str(run.state_name), color), seconds)
    parts: list[RenderableType] = [table]
    if many:
        ended = sum(run.state is not None and run.state.is_final() for run in below)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=len(below), completed=ended, width=30),
            f"{ended} of {len(below)} children have ended",
        )
        counts = Counter(run.state_name for run in below).most_common()
        parts += [bar, ", ".join(f"{count} {name}" for name, count in counts)]
    failures = (StateType.FAILED, StateType.CRASHED)
    failed = [run for run in below if run.state_type in failures]
    for run in failed[:NAMED]:
        message = " ".join(((run.state and run.state.message) or "").split())
        line = f"{run.name} {run.state_name}: {message[:MESSAGE_CHARACTERS]}"
        parts.append(Styled(line, "red"))
    if len(failed) > NAMED:
        parts.append(Styled(f"and {len(failed) - NAMED} more failed", "red"))
    return Group(*parts)
