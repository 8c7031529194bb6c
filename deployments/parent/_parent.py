"""Parent flows: their children are cancelled when they end, however they end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

import anyio
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from deployments.parent._loop import Loop
from deployments.parent._parent_run import ParentRun, current_parent
from deployments.runs import cancel_children, name_all, wait_until_cancelled, will_restart

P = ParamSpec("P")
R = TypeVar("R")


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
        if await will_restart(client, flow_run.model_copy(update={"state": state})):
            return  # it goes on with its children
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
        # That of its `timeout_seconds`: Prefect cancels by a scope of anyio (`timeout_async`).
        deadline = anyio.current_effective_deadline()
        flow_run = context.flow_run
        with contextlib.closing(Loop()) as loop:
            beginning = ParentRun.begin(loop, flow_run, deadline, give_up_after, page)
            parent = await loop.run(beginning)
            token = current_parent.set(parent)
            try:
                result = await fn(*args, **kwargs)
            except BaseException as error:
                await parent.end(error)
                raise
            finally:
                current_parent.reset(token)
            await parent.end()
            return result

    return run
