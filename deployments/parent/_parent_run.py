"""What a run of a parent holds while its children run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakKeyDictionary

import anyio
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import TaskRunContext
from prefect.exceptions import Pause
from prefect.logging.loggers import flow_run_logger

from deployments.parent._call import Call
from deployments.parent._errors import WHICH_LIMIT, ChildError
from deployments.parent._fence import end_if_replaced, keep_looking
from deployments.parent._loop import Loop
from deployments.parent._page import Page
from deployments.parent._submit import Submitter
from deployments.parent._undo import Canceller
from deployments.parent._watch import Watcher
from deployments.runs import (
    ALIVE,
    PatientClient,
    cancel_children,
    get_eager_client,
    is_durable,
    name_all,
    wait_until_cancelled,
)

# A parent that is run by hand calls the deployments of this name.
BY_HAND = "local"
# So many calls of an event loop are about to have a run: those behind them take up less memory.
STARTING = 100
# In a container, the variable that has the name of its image (docker/Dockerfile).
IMAGE = "DEPLOYMENTS_IMAGE"

current_parent: ContextVar[ParentRun | None] = ContextVar("parent_run", default=None)


class ParentRun:
    """One attempt of a parent's run, and what its children share.

    Args:
        loop: The children's loop. It is made on it, and lives there.
        flow_run: The parent's run.
        deadline: When the parent is cancelled by its own `timeout_seconds`, in anyio's time.
        give_up_after: Seconds without any answer of the server after which waiting fails.
        page: Whether to publish what is known of the children.
    """

    def __init__(
        self, loop: Loop, flow_run: FlowRun, deadline: float, give_up_after: float, page: bool
    ) -> None:
        self.loop = loop
        self._flow_run = flow_run
        self._logger = flow_run_logger(flow_run)
        self._clients = contextlib.AsyncExitStack()
        # The one waits for the children, and ends them; the other is for all else.
        self._client = get_client()
        self._server = server = PatientClient(
            get_eager_client(),
            give_up_after,
            lambda message: ChildError(f"{message}: {WHICH_LIMIT}"),
        )
        self._durable = is_durable(flow_run)
        self._canceller = Canceller(server, deadline, self._durable)
        self._page = Page(server, flow_run, self._logger)
        publish = self._page.add if page else lambda run, used_again: None
        self._submitter = Submitter(server, flow_run.id, self._logger, self._canceller, publish)
        self._watcher = Watcher(self._client, self._logger, give_up_after)
        # A key is made of the parent's run, what is called, and which of several identical calls
        # it is. With the number of the run, how often the call ran, it is the idempotency key.
        self._calls: Counter[str] = Counter()
        # By the loop that calls: a semaphore serves only one.
        self._starting = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]()
        self._deployment_name: str | None = None
        self.storages: dict[Any, Any] = {}
        self._looking: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()

    @classmethod
    async def begin(cls, *args: Any) -> Self:
        """Return the parent run of these arguments, with its clients."""
        parent = cls(*args)
        await parent._clients.enter_async_context(parent._client)
        await parent._clients.enter_async_context(parent._server.client)
        if parent._durable:
            looking = keep_looking(parent._client, parent._flow_run, parent._logger)
            parent._looking = asyncio.create_task(looking)  # until its loop ends
        return parent

    @staticmethod
    def current() -> ParentRun:
        """Return the parent run that the caller is in.

        Raises:
            RuntimeError: There is none, or the caller is a task that can't await.
        """
        parent, context = current_parent.get(), TaskRunContext.get()
        if parent is None or (context is not None and not context.task.isasync):
            raise RuntimeError(
                "a child can only be called inside a flow made by @parent_flow, or in a task of "
                "it that is an `async def`, and awaits the child"
            )
        return parent

    async def start(self, call: Call) -> FlowRun:
        """Return the run of a call, on any loop.

        Raises:
            ValueError: The key is that of an earlier call.
            ChildNotDeployed: The deployment does not exist.
            ChildError: The server refused the run.
        """
        caller = asyncio.get_running_loop()
        async with self._starting.setdefault(caller, asyncio.Semaphore(STARTING)):
            return await self.loop.run(self._start(call), self._abandon)

    async def _start(self, call: Call) -> FlowRun:
        if call.deployment_name is None:
            async with self._reading:
                if self._deployment_name is None:
                    self._deployment_name = await self._server.ask(self._read_deployment_name)
            call.deployment_name, call.image = self._deployment_name, os.environ.get(IMAGE)
        digest = call.digest()
        self._calls[digest] += 1  # before any other await: identical calls differ by their order
        if call.key is not None and self._calls[digest] > 1:
            raise ValueError(
                f"{call.deployment}: key {call.key!r} is that of an earlier call: give each "
                "call its own"
            )
        run = await self.submit(call, f"{self._flow_run.id}:{digest}:{self._calls[digest]}")
        self._watcher.watch(run)
        return run

    async def submit(self, call: Call, key: str) -> FlowRun:
        """Return the run of a call, whose key finds that of an earlier attempt."""
        return await self._submitter.submit(call, key)

    async def wait(self, run: FlowRun, deadline: float | None) -> State[Any]:
        """Return the final state of a run; it is abandoned if the caller does not wait for it.

        Raises:
            TimeoutError: It was not final in time.
            ChildError: The server fell silent, or the run was deleted.
        """
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._watcher.watch(run))
        except (TimeoutError, asyncio.CancelledError):
            self._abandon(run)
            raise

    async def replace(self, call: Call, run: FlowRun, error: ChildError) -> FlowRun | None:
        """Return another run of a call, if the one without a result is of an earlier attempt."""
        replacement = await self._submitter.replace(call, run, error)
        if replacement is not None:
            if replacement.id == run.id:
                self._watcher.forget(run.id)
            self._watcher.watch(replacement)
        return replacement

    def _abandon(self, run: FlowRun) -> None:
        if not self._watcher.watch(run).done():
            self._canceller.abandon(run)

    async def cancel(self, run: FlowRun) -> None:
        """Ask for a run's cancellation, on any loop."""
        if not self._watcher.watch(run).done():
            await self.loop.run(self._canceller.cancel(run.id))

    async def _read_deployment_name(self, client: PrefectClient) -> str:
        """Return the name of the deployment that this parent runs as, or runs inside of."""
        run = self._flow_run
        while run.deployment_id is None:
            if run.parent_task_run_id is None:
                return BY_HAND
            # A plain subflow: the flow that called it may itself be one.
            task_run = await client.read_task_run(run.parent_task_run_id)
            assert task_run.flow_run_id is not None  # noqa: S101 - that of the calling flow
            run = await client.read_flow_run(task_run.flow_run_id)
        return (await client.read_deployment(run.deployment_id)).name

    async def end(self, error: BaseException | None = None) -> None:
        """Cancel the children that are still alive, unless this run will go on with them."""
        # Shielded: Prefect's timeout of a flow (anyio's) cancels again at every await.
        with anyio.CancelScope(shield=True):
            await self.loop.run(self._end(error))

    async def _end(self, error: BaseException | None) -> None:
        try:
            if error is not None and not self._has_time(error):
                self._canceller.told.set()
            self._submitter.close()
            await self._watcher.close()
            await self._canceller.finish()
            if self._durable:
                await end_if_replaced(self._client, self._flow_run, self._logger)
            if not await self._goes_on(error):
                await self._cancel_children(error)
        except Exception as problem:  # noqa: BLE001 - why the parent ended matters more
            self._logger.warning("The parent has ended, its children may run on: %r", problem)
        finally:
            await self._page.finish()
            await self._clients.aclose()

    async def _goes_on(self, error: BaseException | None) -> bool:
        """Tell whether this run is suspended, or is to run once more.

        By the server (RetryFailedFlows); or, where its process was told to end, by a restart.
        """
        if isinstance(error, Pause):
            return True
        if error is None or not (self._has_time(error) or self._durable):
            return False
        run = await self._client.read_flow_run(self._flow_run.id)
        if not self._has_time(error):
            return run.state_type in ALIVE  # else it is being cancelled
        return run.run_count <= (run.empirical_policy.retries or 0)

    async def _cancel_children(self, error: BaseException | None) -> None:
        runs = await cancel_children(self._client, self._flow_run.id)
        if runs:
            self._logger.warning("The parent has ended: cancelled %s", name_all(runs))
        # A parent that is cancelled is killed after 30 s (`CancellationManager.cancel`): its hook
        # waits instead.
        if error is None or self._has_time(error):
            await wait_until_cancelled(self._client, self._flow_run.id, runs, self._logger)

    def _has_time(self, error: BaseException) -> bool:
        """Tell whether this run ends by itself: it failed, or its `timeout_seconds` are over."""
        return isinstance(error, Exception) or self._canceller.time_is_up()
