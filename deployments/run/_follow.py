"""Following a run on the server in use until it is final."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from rich.console import Console
from rich.live import Live

from deployments.run._tree import Tree
from deployments.run._view import draw
from deployments.runs import cancel_run, confirm_cancelled, explain_waiting, is_passing

T = TypeVar("T")

# The pause between two reads, longer for each run, and again as long as nothing changes.
READ_SECONDS = 0.5
READ_SECONDS_PER_RUN = 0.02
READ_MAX_SECONDS = 5.0
# When it first says why runs have not started, and how rarely it says so later.
EXPLAIN_SECONDS = 10.0
EXPLAIN_MAX_SECONDS = 600.0
# What an answer of the server may take, and how long it may be away: then it says so, or gives up.
ANSWER_SECONDS = 30.0
SILENCE_SECONDS = 2.0
GIVE_UP_SECONDS = 600.0


async def follow(tree: Tree, console: Console, *, cancel: bool = False) -> FlowRun:
    """Show a run and all runs below it until it is final.

    On a terminal the picture is live; elsewhere it is printed once, in the end.

    Args:
        tree: Of the run; it is read again and again.
        console: For the picture, and for lines on what it waits for.
        cancel: Cancel the run first.

    Returns:
        The run as it ended.

    Raises:
        RuntimeError: The run was deleted, or the server did not answer for `GIVE_UP_SECONDS`.
    """
    try:
        async with get_client() as client:
            with Live(console=console, get_renderable=lambda: draw(tree)):
                if cancel:
                    await _ask(console, lambda: cancel_run(client, tree.root.id))
                explaining = asyncio.create_task(_explain(client, tree, console))
                try:
                    await _watch(client, tree, console)
                finally:
                    explaining.cancel()
    except ObjectNotFound:
        raise RuntimeError(f"the run {tree.root.name} was deleted") from None
    finally:
        if not console.is_terminal:
            console.line()  # elsewhere `Live` leaves the last line open
    return tree.root


async def _watch(client: PrefectClient, tree: Tree, console: Console) -> None:
    """Read a tree again and again, until its root is final."""
    pause = READ_SECONDS
    while True:
        changed = await _ask(console, lambda: tree.read(client))
        if tree.root.state is not None and tree.root.state.is_final():
            await _ask(console, lambda: tree.read(client))  # children that ended with it
            return
        await _ask(console, lambda: confirm_cancelled(client, [tree.root]))  # nobody else may do so
        shortest = READ_SECONDS + READ_SECONDS_PER_RUN * len(tree.below)
        pause = min(shortest if changed else 1.5 * pause, READ_MAX_SECONDS)
        await asyncio.sleep(pause)


async def _explain(client: PrefectClient, tree: Tree, console: Console) -> None:
    """Say why runs have not started, after a while and then ever more rarely."""
    pause = EXPLAIN_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause = min(3 * pause, EXPLAIN_MAX_SECONDS)
        with contextlib.suppress(Exception):  # only a service to the reader
            async for line in explain_waiting(client, [tree.root, *tree.below]):
                _say(console, line)


async def _ask(console: Console, request: Callable[[], Awaitable[T]]) -> T:
    """Repeat a request until the server answers it, and say so when that takes long."""
    started = time.monotonic()
    say_after = SILENCE_SECONDS
    while True:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await request()
        except Exception as error:
            if not (isinstance(error, TimeoutError) or is_passing(error)):
                raise
            silence = time.monotonic() - started
            told = f"the Prefect server has not answered for {silence:.0f} s: {error!r}"
            if silence > GIVE_UP_SECONDS:
                raise RuntimeError(told) from None
        if silence > say_after:
            say_after *= 3
            _say(console, told)
        await asyncio.sleep(SILENCE_SECONDS)


def _say(console: Console, line: str) -> None:
    console.print(line, style="yellow", soft_wrap=True)
