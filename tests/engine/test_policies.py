"""The policies of deployments/docs/policies.md, run as they stand there."""

import ast
import asyncio
import inspect
import re
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect import flow

from deployments import ChildFailed, child, parent_flow, raise_failures
from deployments.project import ROOT
from deployments.testing import Stubs

pytestmark = pytest.mark.anyio

POLICIES = (ROOT / "deployments" / "docs" / "policies.md").read_text()
TABLE = POLICIES[POLICIES.index("| you want | you write |") :].split("\n\n")[0]
SNIPPETS = re.findall(
    r"^\| [^|]+ \| `((?:raise_failures\()?await [^`]+|async with [^`]+)` \|", TABLE, re.MULTILINE
)


@flow
def f(name: str = "good") -> str:
    raise NotImplementedError(name)


def stubbed(name: str = "good") -> str:
    if name == "bad":
        raise ValueError(name)
    return name


async def run(snippet: str, names: list[str]) -> Any:
    """Run a snippet in a parent, and return what it gives."""
    code = compile(
        snippet,
        "policies.md",
        "exec" if snippet.startswith("async with") else "eval",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )

    @parent_flow
    async def parent() -> Any:
        before = asyncio.all_tasks()
        calls = [child(f)(name) for name in names]
        scope = {
            "asyncio": asyncio,
            "datetime": datetime,
            "timedelta": timedelta,
            "UTC": UTC,
            "raise_failures": raise_failures,
            "child": child,
            "f": f,
            "calls": calls,
            "slots": asyncio.Semaphore(3),
        }
        try:
            given = eval(code, scope)  # noqa: S307 - our own page
            return await given if isinstance(given, Awaitable) else given
        finally:
            for call in calls:
                if inspect.getcoroutinestate(call) == inspect.CORO_CREATED:
                    call.close()
            losers = asyncio.all_tasks() - before - {asyncio.current_task()}
            for loser in losers:
                loser.cancel()
            await asyncio.gather(*losers, return_exceptions=True)

    return await parent()


def test_the_table_has_a_snippet_in_every_row_but_resume() -> None:
    assert len(SNIPPETS) == len(TABLE.splitlines()) - 3 == 10


@pytest.mark.parametrize("snippet", SNIPPETS)
async def test_the_snippet_runs(stubs: Stubs, snippet: str) -> None:
    stubs.runs(f, stubbed)
    await run(snippet, ["good", "good"])
    assert all(name == "f" for name, _ in stubs.calls)
    assert len(stubs.calls) >= 1


async def test_failures_do_what_the_table_says(stubs: Stubs) -> None:
    stubs.runs(f, stubbed)
    _, tolerate, reasons, group, *_ = SNIPPETS

    good, bad = await run(tolerate, ["good", "bad"])
    assert good == "good"
    assert isinstance(bad, ChildFailed)
    with pytest.raises(ExceptionGroup, match="1 of 2 children failed: f"):
        await run(reasons, ["good", "bad"])
    with pytest.raises(ExceptionGroup) as error:
        await run(group, ["good", "bad"])
    assert isinstance(error.value.exceptions[0], ChildFailed)
