"""Parent flows: what a run of one holds while its children run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, ParamSpec, Self, TypeVar, overload

import anyio
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Pause
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from deployments.parent._call import Keys
from deployments.parent._errors import ChildError
from deployments.parent._loop import Loop
from deployments.parent._page import Page
from deployments.parent._submit import Submitter
from deployments.parent._undo import Canceller
from deployments.parent._watch import Watcher
from deployments.runs import (
    PatientClient,
    cancel_children,
    get_eager_client,
    name_all,
    wait_until_cancelled,
)

P = ParamSpec("P")
R = TypeVar("R")

# A parent that is run by hand calls the deployments of this name.
BY_HAND = "local"

_current: ContextVar[ParentRun | None] = ContextVar("parent_run", default=None)


class ParentRun:
    """One attempt of a parent's run, and what its children share.

    It lives on the children's loop, where all is to be awaited but `end`.

    Args:
        loop: The children's loop.
        clients: Ends the clients.
        client: The client to wait for the children with, and to end them.
        server: The server for all else.
        flow_run: The parent's run.
        deadline: When the parent is cancelled by its own `timeout_seconds`, in anyio's time.
        page: Publish what is known of the children.
    """

    def __init__(
        self,
        loop: Loop,
        clients: contextlib.AsyncExitStack,
        client: PrefectClient,
        server: PatientClient,
        flow_run: FlowRun,
        deadline: float,
        page: bool,
    ) -> None:
        self.loop = loop
        self.client = client
        self.flow_run = flow_run
        self.logger = flow_run_logger(flow_run)
        self.keys = Keys(flow_run.id)
        self.canceller = Canceller(server, deadline)
        self._page = Page(server, flow_run, self.logger)
        tell = self._page.add if page else lambda run, again: None
        self.submitter = Submitter(server, flow_run.id, self.logger, self.canceller, tell)
        self.watcher = Watcher(client, self.logger, server.give_up_after)
        self._clients = clients
        self._server = server
        self._deployment_name: asyncio.Future[str] | None = None

    @classmethod
    async def begin(
        cls, loop: Loop, flow_run: FlowRun, deadline: float, give_up_after: float, page: bool
    ) -> Self:
        """Return that of a flow run, with its clients."""
        clients = contextlib.AsyncExitStack()
        client = await clients.enter_async_context(get_client())
        eager = await clients.enter_async_context(get_eager_client())
        server = PatientClient(eager, give_up_after, ChildError)
        return cls(loop, clients, client, server, flow_run, deadline, page)

    @staticmethod
    def current() -> ParentRun:
        """Return the parent run that the caller is in.

        Raises:
            RuntimeError: There is none, or the caller is a task that can't await.
        """
        parent, context = _current.get(), TaskRunContext.get()
        if parent is None or (context is not None and not context.task.isasync):
            raise RuntimeError(
                "a child can only be called inside a flow made by @parent_flow, or in a task of "
                "it that is an `async def`, and awaits the child"
            )
        return parent

    async def deployment_name(self) -> str:
        """Return the name of the deployment that this parent runs as, or runs inside of."""
        if self._deployment_name is None:
            reading = self._server.ask(self._read_deployment_name)
            self._deployment_name = asyncio.ensure_future(reading)
        try:
            return await asyncio.shield(self._deployment_name)
        except ChildError:
            self._deployment_name = None
            raise

    async def _read_deployment_name(self, client: PrefectClient) -> str:
        run = self.flow_run
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
            self.submitter.close()
            await self.watcher.close()
            await self.canceller.finish()
            if not await self._goes_on(error):
                await self._cancel_children(error)
        except Exception as problem:  # noqa: BLE001 - why the parent ended matters more
            self.logger.warning("The parent has ended, its children may run on: %r", problem)
        finally:
            await self._page.finish()
            await self._clients.aclose()

    async def _cancel_children(self, error: BaseException | None) -> None:
        runs = await cancel_children(self.client, self.flow_run.id)
        if runs:
            self.logger.warning("The parent has ended: cancelled %s", name_all(runs))
        # A parent that is cancelled is killed after 30 s (`CancellationManager.cancel`): its hook
        # waits instead.
        if error is None or self._has_time(error):
            await wait_until_cancelled(self.client, self.flow_run.id, runs, self.logger)

    def _has_time(self, error: BaseException) -> bool:
        """Tell whether this run ends by itself: it failed, or its `timeout_seconds` are over."""
        return isinstance(error, Exception) or self.canceller.time_is_up()

    async def _goes_on(self, error: BaseException | None) -> bool:
        """Tell whether this run is suspended, or the server will retry it (RetryFailedFlows)."""
        if isinstance(error, Pause):
            return True
        if error is None or not self._has_time(error):
            return False
        run = await self.client.read_flow_run(self.flow_run.id)
        return run.run_count <= (run.empirical_policy.retries or 0)


@overload
def parent_flow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Flow[P, Coroutine[Any, Any, R]]: ...
@overload
def parent_flow(
    *, give_up_after: float = ..., page: bool = ..., **options: Any
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, Coroutine[Any, Any, R]]]: ...
def parent_flow(
    fn: Any = None, /, *, give_up_after: float = 600, page: bool = True, **options: Any
) -> Any:
    """Make an async function a flow that can call children with `child`.

    It is a `prefect.flow` that cancels its children when it ends, however it ends: they never
    outlive it. When it is only suspended, or will be retried after an exception or a timeout,
    they go on.

    Args:
        fn: The async function.
        give_up_after: Seconds without any answer of the Prefect server after which the
            parent stops waiting for its children and fails.
        page: Publish on the run's page, under *Artifacts*, how many children have ended, and a
            table of them: kept up to date while they run, with at most one request in 10 s.
        **options: Those of `prefect.flow`.

    Raises:
        TypeError: The function is not async.
    """
    if fn is None:
        return functools.partial(parent_flow, give_up_after=give_up_after, page=page, **options)
    if not asyncio.iscoroutinefunction(fn):
        raise TypeError(f"{fn.__qualname__} must be an `async def` to await its children")
    parent: Flow[..., Any] = flow(fn, **options)
    # After the flow is made: its version, name and parameters come from the function itself.
    parent.fn = _with_children(fn, give_up_after, page)
    return _make_parent(parent)


class ParentFlow(Flow[P, R]):
    """A flow whose children are cancelled when it crashes or is cancelled."""

    def with_options(self, **options: Any) -> ParentFlow[P, R]:
        """Do what `Flow.with_options` does, for a parent."""
        return _make_parent(super().with_options(**options))


def _make_parent(flow: Flow[P, R]) -> ParentFlow[P, R]:
    flow.__class__ = ParentFlow  # `Flow.with_options` makes a `Flow`, with the hooks it is given
    assert isinstance(flow, ParentFlow)  # noqa: S101 - for type checkers
    for hooks in ("on_crashed_hooks", "on_cancellation_hooks"):
        others = [hook for hook in getattr(flow, hooks) if hook is not cancel_children_hook]
        setattr(flow, hooks, [*others, cancel_children_hook])
    return flow


async def cancel_children_hook(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the children of a parent that crashed or was cancelled.

    Prefect runs it on the worker's side, after the parent's own process is gone.
    """
    logger = flow_run_logger(flow_run, flow)
    async with get_client() as client:
        runs = await cancel_children(client, flow_run.id)
        if runs:
            logger.warning("This parent is %s: cancelled %s", state.name, name_all(runs))
        # After the hooks of a crash, a worker calls the run Crashed again, whatever it is by then
        # (`BaseWorker._submit_run_and_capture_errors`): `cancel_orphans` waits instead.
        if state.is_cancelling():
            await wait_until_cancelled(client, flow_run.id, runs, logger)


def is_parent(flow: Flow[..., Any]) -> bool:
    """Tell whether a flow was made by `parent_flow`."""
    return isinstance(flow, ParentFlow)


def _with_children(
    fn: Callable[P, Coroutine[Any, Any, R]], give_up_after: float, page: bool
) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(fn)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise RuntimeError(f"call {fn.__qualname__} as a flow, not its function")
        # Of the flow's `timeout_seconds`: Prefect cancels by a scope of anyio (`timeout_async`).
        deadline = anyio.current_effective_deadline()
        flow_run = context.flow_run
        with contextlib.closing(Loop()) as loop:
            beginning = ParentRun.begin(loop, flow_run, deadline, give_up_after, page)
            parent = await loop.run(beginning)
            token = _current.set(parent)
            try:
                result = await fn(*args, **kwargs)
            except BaseException as error:
                await parent.end(error)
                raise
            finally:
                _current.reset(token)
            await parent.end()
            return result

    return run
