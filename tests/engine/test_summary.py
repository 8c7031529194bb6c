"""What a parent's page says, from the runs of its children alone."""

import itertools
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from markdown_it import MarkdownIt
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_UI_URL, temporary_settings

from deployments.parent._table import LABEL, Row, percentage, sum_up, tabulate

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def ui() -> Iterator[None]:
    with temporary_settings({PREFECT_UI_URL: "http://ui"}):
        yield


def row(
    name: str,
    state: str = "Completed",
    ran: float = 1,
    message: str | None = None,
    used_again: str = "",
    state_name: str | None = None,
    due: datetime = NOON - timedelta(seconds=2),
    **fields: Any,
) -> Row:
    """Return a child that waited 2 s; a state that Prefect has no type of is Scheduled."""
    type_ = StateType(state.upper()) if state.upper() in set(StateType) else StateType.SCHEDULED
    started = type_ not in (StateType.SCHEDULED, StateType.PENDING)
    run = FlowRun(
        flow_id=uuid4(),
        name=name,
        state=State(type=type_, name=state_name or state, message=message, timestamp=NOON),
        expected_start_time=due,
        start_time=NOON if started else None,
        total_run_time=timedelta(seconds=ran),
        **fields,
    )
    return Row.of(run, used_again)


def cells(text: str) -> list[list[str]]:
    """Return the lines of the table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line[2:-2].split(" | ") for line in lines[1:]]


def names(text: str) -> list[str]:
    return [line[0].partition("]")[0].strip("[") for line in cells(text)]


def test_states_are_counted() -> None:
    rows = [row("a"), row("b", "Failed"), row("c", "Running"), row("d", "Late"), row("e")]
    assert sum_up(rows) == "3 of 5 ended: 1 Failed, 1 Running, 2 Completed, 1 Late"
    assert percentage(rows) == 60


def test_failures_are_first_then_the_longest() -> None:
    rows = [
        row("short", ran=1),
        row("long", ran=90),
        row("waits", "Scheduled"),
        row("cancelled", "Cancelled", ran=5),
        row("crashed", "Crashed", ran=3),
        row("failed", "Failed", ran=2),
        row("runs", "Running"),
    ]
    order = ["crashed", "failed", "cancelled", "runs", "long", "short", "waits"]
    assert names(tabulate(rows)) == order


def test_many_are_shortened_and_what_is_left_out_is_counted() -> None:
    rows = [*(row(f"{n}", ran=n) for n in range(300)), *(row("bad", "Failed") for _ in range(20))]
    text = tabulate(rows)
    assert names(text) == [*["bad"] * 20, *(f"{n}" for n in range(299, 269, -1))]
    assert text.endswith("And 270 more: 270 Completed.")


def test_times() -> None:
    rows = [row("a", ran=3661), row("b", ran=61), row("c", "Running"), row("d", "Scheduled")]
    assert [line[2:4] for line in cells(tabulate(rows))] == [
        ["2.0 s", "since 01-31 12:00"],
        ["2.0 s", "1 h 1 min"],
        ["2.0 s", "1 min 1 s"],
        ["since 01-31 11:59", ""],
    ]


def test_a_child_that_starts_later_is_due() -> None:
    later = row("later", "Scheduled", due=datetime(2999, 12, 31, 6, tzinfo=UTC))
    assert cells(tabulate([later]))[0][2:4] == ["due 12-31 06:00", ""]


def test_messages_are_of_failures_alone_and_shortened() -> None:
    rows = [
        row("bad", "Failed", message="Flow run encountered an exception: ValueError: " + "x" * 500),
        row("good", message="All states completed."),
    ]
    bad, good = cells(tabulate(rows))
    assert bad[4] == f"ValueError: {'x' * 88} …"
    assert good[4] == ""


def read_cells(text: str) -> list[str]:
    """Return what a reader sees in the cells of the table: it has to be text and links alone."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    seen = []
    for before, token in itertools.pairwise(tokens):
        if before.type in ("th_open", "td_open"):
            parts = token.children or []
            assert {part.type for part in parts} <= {"text", "link_open", "link_close"}, parts
            seen.append("".join(part.content for part in parts))
    return seen


@pytest.mark.parametrize(
    "text",
    [
        "a | b",
        "two\r\n lines",
        "<b>x</b> <!-- y --> 1 < 2",
        "&lt; &#60; you & me",
        "`code` *x* **y** ~~z~~",
        "[x](http://y) ![x](y) <http://z>",
        "a_b.csv _c_ __init__.py ___d___",
        "\\| \\\\|",
        "it ends so \\",
        "| --- | # 1. - > +",
        "[x]: y",
        string.punctuation,
        *("".join(pair) for pair in itertools.permutations("\\`*_[]|~<&!", 2)),
    ],
)
def test_no_text_is_syntax(text: str) -> None:
    child = row(text, "Failed", message=text, labels={LABEL: text}, state_name=text)
    seen = read_cells(tabulate([child]))
    assert seen[0:5] == ["child", "state", "waited", "ran", "message"]
    plain = " ".join(text.split())
    assert seen[5:] == [plain, f"{plain} ({plain})", "2.0 s", "1.0 s", plain]


def test_no_state_is_syntax_in_the_sums() -> None:
    rows = [row(f"{n}", state_name=f"__{n}__") for n in range(51)]
    tokens = MarkdownIt("commonmark").enable("table").parse(tabulate(rows))
    sums = [token.children or [] for token in tokens if token.type == "inline"]
    assert "1 __0__, 1 __10__, 1 __11__" in "".join(part.content for part in sums[0])
    assert [part.type for part in sums[-1]] == ["text"]
    assert sums[-1][0].content.startswith("And 1 more: 1 __")


def test_a_nested_parent_shows_its_own_counts() -> None:
    text = tabulate([row("nested", "Running", labels={LABEL: "1 of 2 ended: 1 Failed, 1 Running"})])
    assert cells(text)[0][1] == "Running (1 of 2 ended: 1 Failed, 1 Running)"


def test_children_that_are_used_again_are_told() -> None:
    text = tabulate(
        [row("a", used_again="used again"), row("b", used_again="used again"), row("c")]
    )
    assert "Of an earlier attempt: 2 used again." in text
    assert [line[1] for line in cells(text)] == ["Completed, used again"] * 2 + ["Completed"]
