"""What there is to say about a parent's children, as Markdown."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.utilities.urls import url_for

# The label of a nested parent's run that tells the one above what is to say about its children.
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
        name: Of the run.
        url: The run's page in the Prefect UI, where it is known.
        type: Of the state.
        state: Its name.
        message: Its message.
        expected: When it was to start.
        started: When it did.
        ended: When it ended.
        ran: For how long, in all attempts.
        children: What a nested parent says about its own children.
        again: How a run of an earlier attempt of the parent is used again.
    """

    name: str
    url: str | None
    type: StateType
    state: str
    message: str
    expected: datetime | None
    started: datetime | None
    ended: datetime | None
    ran: timedelta
    children: str
    again: str

    @classmethod
    def of(cls, run: FlowRun, again: str = "") -> Self:
        """Return what there is to say about a run."""
        state = run.state
        return cls(
            name=run.name,
            url=url_for(run),
            type=state.type if state else StateType.SCHEDULED,
            state=(state.name if state else None) or "Scheduled",
            message=(state.message if state else None) or "",
            expected=run.expected_start_time,
            started=run.start_time,
            ended=state.timestamp if state and state.is_final() else None,
            ran=run.total_run_time,
            children=str(run.labels.get(LABEL, "")),
            again=again,
        )


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
    if again := Counter(row.again for row in rows if row.again):
        told = ", ".join(f"{number} {how}" for how, number in again.items())
        lines += [f"Of an earlier attempt: {told}.", ""]
    lines += ["| child | state | waited | ran | message |", "|---|---|---:|---:|---|"]
    ordered = sorted(rows, key=_order)
    lines += [_line(row) for row in ordered[:SHOWN]]
    if left := ordered[SHOWN:]:
        lines += ["", f"And {len(left)} more: {escape(_count(left))}."]
    return "\n".join(lines)


def _count_ended(rows: Iterable[Row]) -> int:
    return sum(row.ended is not None for row in rows)


def _count(rows: Collection[Row]) -> str:
    states = Counter(
        (ORDER.index(row.type), row.state) for row in sorted(rows, key=lambda row: row.state)
    )
    return ", ".join(f"{number} {state}" for (_, state), number in sorted(states.items()))


def _order(row: Row) -> tuple[int, float, float, str]:
    since = row.started or row.expected
    place = 0 if row.type in FAILURES else ORDER.index(row.type)
    started = since.timestamp() if since and not row.ended else 0
    return place, -row.ran.total_seconds() if row.ended else 0, started, row.name


def _line(row: Row) -> str:
    name = escape(row.name)
    state = escape(row.state)
    if row.again:
        state += f", {row.again}"
    if row.children:
        state += f" ({escape(row.children)})"
    failed = row.ended and row.type != StateType.COMPLETED
    message = row.message.removeprefix(PREFIX) if failed else ""
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    cells = [f"[{name}]({row.url})" if row.url else name, state, *_times(row), escape(message)]
    return f"| {' | '.join(cells)} |"


def _times(row: Row) -> tuple[str, str]:
    """Return how long it waited to start, and how long it ran."""
    start = row.started or row.ended
    if row.expected is None or (start and start < row.expected):  # the latter: it was retried
        waited = ""
    else:
        waited = _write(start - row.expected) if start else _since(row.expected)
    if row.ended:
        return waited, _write(row.ran)
    running = row.started and row.type != StateType.SCHEDULED
    return waited, _since(row.started) if row.started and running else ""


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
