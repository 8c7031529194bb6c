"""The event loop of a parent's children, apart from those of who waits for them."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """Run coroutines on an event loop in a thread of its own, for callers on any other loop.

    So a child can be called in a task that Prefect runs in another thread, with a loop of its
    own; and its parent may wait for that by Prefect's `future.result()`, which stands still.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._ended = asyncio.Event()
        # A call from another thread comes before the end, or is refused.
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._live, name="children", daemon=True).start()

    def close(self) -> None:
        """Cancel what still runs, and what comes later."""
        with self._lock:
            self._closed = True
            self._loop.call_soon_threadsafe(self._ended.set)

    def _live(self) -> None:
        with self._runner:
            self._runner.run(self._ended.wait())

    async def run(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """Wait for a coroutine, which runs in the caller's context; cancelling this cancels it.

        Args:
            work: The coroutine.
            undo: What to do about its result where the caller is cancelled just before it has it.
        """
        task: asyncio.Task[T] | None = None

        async def start() -> T:
            nonlocal task
            task = asyncio.current_task()
            return await work

        async def cancel() -> None:
            assert task is not None  # noqa: S101 - it was started before this
            if not task.cancel() and undo and not task.cancelled() and not task.exception():
                undo(task.result())

        try:
            done = asyncio.wrap_future(self._start(start()))
        except asyncio.CancelledError:
            work.close()  # or Python warns that it was never awaited
            raise
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            ending: list[asyncio.Future[Any]] = [done, asyncio.wrap_future(self._start(cancel()))]
            await asyncio.wait(ending)
            raise

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise asyncio.CancelledError("the parent has ended")
            return asyncio.run_coroutine_threadsafe(work, self._loop)
