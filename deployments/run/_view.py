"""A run and all runs below it, as a picture that fits on a terminal."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from prefect.client.schemas.objects import FlowRun, StateType
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.styled import Styled
from rich.table import Table

from deployments.run._tree import Tree

# With more children than this, a bar and counts take the place of their rows.
ROWS = 20
# So many failures are named; the others are counted.
NAMED = 10
MESSAGE_CHARACTERS = 200
COLORS = {"COMPLETED": "green", "RUNNING": "blue", "FAILED": "red", "CRASHED": "red"}
FAILURES = (StateType.FAILED, StateType.CRASHED)


def draw(tree: Tree) -> RenderableType:
    """Return a row for each run, or a bar and counts where they are too many; then failures."""
    many = len(tree.below) > ROWS
    parts: list[RenderableType] = [_table([(0, tree.root), *([] if many else tree.walk())])]
    if many:
        parts += _count(tree.below)
    failed = [run for run in tree.below if run.state_type in FAILURES]
    for run in failed[:NAMED]:
        message = " ".join(((run.state and run.state.message) or "").split())
        line = f"{run.name} {run.state_name}: {message[:MESSAGE_CHARACTERS]}"
        parts.append(Styled(line, "red"))
    if len(failed) > NAMED:
        parts.append(Styled(f"and {len(failed) - NAMED} more failed", "red"))
    return Group(*parts)


def _table(rows: list[tuple[int, FlowRun]]) -> Table:
    table = Table("run", "state", "seconds", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for depth, run in rows:
        indent = "  " * depth + "└ " if depth else ""
        color = COLORS.get(run.state_type.value if run.state_type else "", "default")
        seconds = "" if run.start_time is None else f"{_run_seconds(run):.1f}"
        table.add_row(indent + run.name, Styled(str(run.state_name), color), seconds)
    return table


def _run_seconds(run: FlowRun) -> float:
    assert run.start_time is not None  # noqa: S101 - asked of started runs only
    return ((run.end_time or datetime.now(UTC)) - run.start_time).total_seconds()


def _count(runs: list[FlowRun]) -> list[RenderableType]:
    ended = sum(run.state is not None and run.state.is_final() for run in runs)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=len(runs), completed=ended, width=30),
        f"{ended} of {len(runs)} children have ended",
    )
    counts = Counter(run.state_name for run in runs).most_common()
    return [bar, ", ".join(f"{count} {name}" for name, count in counts)]
