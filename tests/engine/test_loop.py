"""The loop that a parent's children are waited for on: called, cancelled and ended from others."""

import asyncio
import contextlib
import threading
from contextvars import ContextVar

import pytest

from deployments.parent._loop import Loop

pytestmark = pytest.mark.anyio

number = ContextVar("number", default=0)


async def test_work_has_its_callers_context_and_another_loop() -> None:
    async def work() -> tuple[int, asyncio.AbstractEventLoop]:
        return number.get(), asyncio.get_running_loop()

    number.set(3)
    with contextlib.closing(Loop()) as loop:
        there, other = await loop.run(work())
    assert there == 3
    assert other is not asyncio.get_running_loop()


async def test_what_is_cancelled_has_ended_when_its_caller_goes_on() -> None:
    started, ended = threading.Event(), threading.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            ended.set()

    with contextlib.closing(Loop()) as loop:
        caller = asyncio.ensure_future(loop.run(work()))
        await asyncio.to_thread(started.wait)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()


async def test_what_ended_just_before_its_caller_was_cancelled_is_undone() -> None:
    ended = threading.Event()
    undone: list[int] = []

    async def work() -> int:
        ended.set()
        return 1

    with contextlib.closing(Loop()) as loop:
        caller = asyncio.ensure_future(loop.run(work(), undone.append))
        await asyncio.sleep(0)
        ended.wait()  # this loop stands still, and can't know
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert undone == [1]


async def test_its_end_cancels_what_is_there_and_what_comes() -> None:
    with contextlib.closing(Loop()) as loop:
        waiting = asyncio.ensure_future(loop.run(asyncio.Event().wait()))
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(asyncio.CancelledError, match="the parent has ended"):
        await loop.run(asyncio.sleep(0))
