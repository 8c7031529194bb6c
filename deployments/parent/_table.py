"""What a parent's page says about its children, as Markdown."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
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


@dataclass(frozen=True, slots=True)
class Row:
    """One child of a parent, as its page tells it: thousands of whole runs would take much memory.

    Attributes:
        type: The type of the run's state.
        state: The name of the run's state.
        ended: Whether the run has ended.
        used_again: How a run of an earlier attempt of the parent is used again.
        order: Where it stands among the others.
        line: Its line of the table.
    """

    type: StateType
    state: str
    ended: bool
    used_again: str
    order: tuple[int, float, float, str]
    line: str

    @classmethod
    def of(cls, run: FlowRun, used_again: str = "") -> Self:
        """Return the row of a run."""
        type_ = run.state.type if run.state else StateType.SCHEDULED
        state = (run.state and run.state.name) or "Scheduled"
        ended = type_ in TERMINAL_STATES
        place = 0 if type_ in FAILURES else ORDER.index(type_)
        since = run.start_time or run.expected_start_time
        ran = -run.total_run_time.total_seconds() if ended else 0
        order = (place, ran, since.timestamp() if since and not ended else 0, run.name)
        return cls(type_, state, ended, used_again, order, _line(run, state, ended, used_again))


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
    ordered = sorted(rows, key=lambda row: row.order)
    lines += [row.line for row in ordered[:SHOWN]]
    if left := ordered[SHOWN:]:
        lines += ["", f"And {len(left)} more: {escape(_count(left))}."]
    return "\n".join(lines)


def _count_ended(rows: Iterable[Row]) -> int:
    return sum(row.ended for row in rows)


def _count(rows: Iterable[Row]) -> str:
    states = Counter((ORDER.index(row.type), row.state) for row in rows)
    return ", ".join(f"{number} {state}" for (_, state), number in sorted(states.items()))


def _line(run: FlowRun, state: str, ended: bool, used_again: str) -> str:
    name, url = escape(run.name), url_for(run)
    told = escape(state)
    if used_again:
        told += f", {used_again}"
    if children := run.labels.get(LABEL):
        told += f" ({escape(str(children))})"
    if run.run_count > 1 and not used_again:
        told += f", attempt {run.run_count}"
    message = ""
    tells = ended or state == "AwaitingRetry"
    if run.state and tells and not run.state.is_completed():
        message = (run.state.message or "").removeprefix(PREFIX)
    if len(message) > MESSAGE_LENGTH:
        message = f"{message[:MESSAGE_LENGTH]} …"
    cells = [f"[{name}]({url})" if url else name, told, *_times(run, ended), escape(message)]
    return f"| {' | '.join(cells)} |"


def _times(run: FlowRun, ended: bool) -> tuple[str, str]:
    """Return how long a child waited to start, and how long it ran."""
    expected: datetime | None = run.expected_start_time
    start: datetime | None = run.start_time
    if run.state and ended:
        start = start or run.state.timestamp
    waited = ran = ""
    if expected and not start:
        due = expected > datetime.now(UTC)  # it is to start later, and waits for nobody
        waited = f"due {_write_moment(expected)}" if due else _since(expected)
    elif expected and start and start >= expected:  # or it was retried
        waited = _write(start - expected)
    if ended:
        ran = _write(run.total_run_time)
    elif run.start_time and run.state_type != StateType.SCHEDULED:
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
    return f"since {_write_moment(moment)}"


def _write_moment(moment: datetime) -> str:
    return f"{moment:%m-%d %H:%M}"


def escape(text: str) -> str:
    """Return a text as it stands in Markdown, in one line: no part of it is syntax."""
    # Not as entities: Prefect's first UI shows these as they are written.
    return SYNTAX.sub(r"\\\g<0>", " ".join(text.split()))
