"""What a parent's page says about its children, as Markdown."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.utilities.urls import url_for

# The label of a nested parent's run that tells the one above how its children are.
LABEL = "deployments.children"

# So many children the table has, and so many characters a message: Prefect's first UI breaks no
# lines in a table.
SHOWN = 50
MESSAGE_LENGTH = 100
# What Prefect puts before the message of each exception.
PREFIX = "Flow run encountered an exception: "

FAILURES = [StateType.FAILED, StateType.CRASHED]
# In this order, each of them the longest first. What fails has others cancelled, so it is before.
ORDER = [
    *FAILURES,
    StateType.CANCELLED,
    StateType.CANCELLING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.COMPLETED,
    StateType.PENDING,
    StateType.SCHEDULED,
]

# What can be syntax within a line.
SYNTAX = re.compile(r"[\\`*_\[\]|~<&]")


@dataclass(frozen=True)
class Row:
    """One child of a parent.

    Attributes:
        run: The child's run.
        used_again: How a run of an earlier attempt of the parent is used again.
    """

    run: FlowRun
    used_again: str = ""

    @property
    def type(self) -> StateType:
        """The type of the run's state."""
        return self.run.state.type if self.run.state else StateType.SCHEDULED

    @property
    def state(self) -> str:
        """The name of the run's state."""
        return (self.run.state and self.run.state.name) or "Scheduled"

    @property
    def ended(self) -> datetime | None:
        """When the run ended."""
        state = self.run.state
        return state.timestamp if state and state.is_final() else None


def percentage(rows: Collection[Row]) -> float:
    """Return how many of them have ended, in percent."""
    return round(100 * _count_ended(rows) / len(rows), 1)


def sum_up(rows: Collection[Row]) -> str:
    """Say how many of them have ended, and how many are in each state."""
    return f"{_count_ended(rows)} of {len(rows)} ended: {_count(rows)}"


def tabulate(rows: Collection[Row]) -> str:
    """Put them into a table: failures first, then the longest; of many, the first of these.

    It is the same as long as no child has changed: what runs is told since when, not how long.
    """
    lines = [f"**{escape(sum_up(rows))}**", ""]
    if used_again := Counter(row.used_again for row in rows if row.used_again):
        counted = ", ".join(f"{number} {how}" for how, number in used_again.items())
        lines += [f"Of an earlier attempt: {counted}.", ""]
    lines += ["| child | state | waited | ran | message |", "|---|---|---:|---:|---|"]
    ordered = sorted(rows, key=_order)
    lines += [_line(row) for row in ordered[:SHOWN]]
    if left := ordered[SHOWN:]:
        lines += ["", f"And {len(left)} more: {escape(_count(left))}."]
    return "\n".join(lines)


def _count_ended(rows: Iterable[Row]) -> int:
    return sum(row.ended is not None for row in rows)


def _count(rows: Iterable[Row]) -> str:
    states = Counter((ORDER.index(row.type), row.state) for row in rows)
    return ", ".join(f"{number} {state}" for (_, state), number in sorted(states.items()))


def _order(row: Row) -> tuple[int, float, float, str]:
    place = 0 if row.type in FAILURES else ORDER.index(row.type)
    if row.ended:
        return place, -row.run.total_run_time.total_seconds(), 0, row.run.name
    since = row.run.start_time or row.run.expected_start_time
    return place, 0, since.timestamp() if since else 0, row.run.name


def _line(row: Row) -> str:
    name, url = escape(row.run.name), url_for(row.run)
    state = escape(row.state)
    if row.used_again:
        state += f", {row.used_again}"
    if children := row.run.labels.get(LABEL):
        state += f" ({escape(str(children))})"
    if row.run.run_count > 1 and not row.used_again:
        state += f", attempt {row.run.run_count}"
    message = ""
    tells = row.ended or row.state == "AwaitingRetry"
    if row.run.state and tells and row.type != StateType.COMPLETED:
        message = (row.run.state.message or "").removeprefix(PREFIX)
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    cells = [f"[{name}]({url})" if url else name, state, *_times(row), escape(message)]
    return f"| {' | '.join(cells)} |"


def _times(row: Row) -> tuple[str, str]:
    """Return how long a child waited to start, and how long it ran."""
    run = row.run
    expected, start = run.expected_start_time, run.start_time or row.ended
    waited = ran = ""
    if expected and not start:
        waited = _since(expected)
    elif expected and start and start >= expected:  # or it was retried
        waited = _write(start - expected)
    if row.ended:
        ran = _write(run.total_run_time)
    elif run.start_time and row.type != StateType.SCHEDULED:
        ran = _since(run.start_time)
    return waited, ran


def _write(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _since(moment: datetime) -> str:
    return f"since {moment:%m-%d %H:%M}"


def escape(text: str) -> str:
    """Return a text as it stands in Markdown, in one line: no part of it is syntax."""
    # Not as entities: Prefect's first UI shows these as they are written.
    return SYNTAX.sub(r"\\\g<0>", " ".join(text.split()))
