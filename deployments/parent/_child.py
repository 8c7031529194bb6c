"""Calling a child: from its flow and parameters to its run and its result."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from prefect.flows import Flow
from typing_extensions import TypeForm

from deployments.parent._call import Call
from deployments.parent._child_run import ChildRun
from deployments.parent._errors import ChildTimedOut
from deployments.parent._parent_run import ParentRun
from deployments.runs import LEAVE_RUNNING
from deployments.values import (
    Returns,
    bind,
    to_json,
    to_json_option,
    to_json_untyped,
    validate,
    with_defaults,
)

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class AnyFlow(Protocol[P, R_co]):
    """A flow, for type checkers: they differ in the type of what an `async def` returns.

    For mypy it is a `Coroutine`, for editors a `CoroutineType`, and `Flow` takes no subtype.
    """

    @property
    def fn(self) -> Callable[P, R_co]:
        """The function."""
        ...

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Do what a task, for one, can't do."""
        ...


class Options(TypedDict, total=False):
    """What `child` takes for every kind of target; it tells what each of them means."""

    name: str | None
    tags: Iterable[str]
    job_variables: dict[str, Any] | None
    work_queue_name: str | None
    scheduled_time: datetime | None
    timeout: float | None
    key: str | None
    leave_running: bool


@overload
def child(
    target: AnyFlow[P, Coroutine[Any, Any, R]],
    *,
    deployment: str | None = ...,
    **options: Unpack[Options],
) -> Child[P, R]: ...
@overload
def child(
    target: AnyFlow[P, R], *, deployment: str | None = ..., **options: Unpack[Options]
) -> Child[P, R]: ...
@overload
def child(target: str, *, returns: TypeForm[R], **options: Unpack[Options]) -> Child[..., R]: ...
@overload
def child(target: str, **options: Unpack[Options]) -> Child[..., Any]: ...
def child(
    target: Any,
    *,
    returns: Any = Any,
    deployment: str | None = None,
    name: str | None = None,
    tags: Iterable[str] = (),
    job_variables: dict[str, Any] | None = None,
    work_queue_name: str | None = None,
    scheduled_time: datetime | None = None,
    timeout: float | None = None,
    key: str | None = None,
    leave_running: bool = False,
) -> Child[..., Any]:
    """Return a flow as something to call that runs as its deployment.

    Args:
        target: The flow; or `flow-name/deployment-name`, for one whose code is elsewhere.
        returns: With a name: the type of the result. A flow's own annotation tells it.
        deployment: With a flow: the name of its deployment. By default that of the parent,
            or `local` where the parent runs by hand.
        name: The run's name. By default the flow's own `flow_run_name`, which Prefect also
            prefers when the run starts.
        tags: The run's tags, besides the deployment's.
        job_variables: The run's job variables, over the deployment's.
        work_queue_name: The work queue of the run, in the deployment's work pool. By default the
            deployment's.
        scheduled_time: When the run is to start, with a time zone. By default at once.
        timeout: Seconds from the call, or from a later `scheduled_time`, after which the result
            is not waited for any more: `ChildTimedOut` is raised, and the run cancelled.
        key: The identity of the call when its parent is retried, where the child's
            parameters and job variables are not. Each call of a deployment has its own.
        leave_running: Never cancel the run, neither when the caller is cancelled nor when the
            parent ends; it gets the tag `leave-running`. For `.submit()` and forget. Where the
            parent is *cancelled*, Prefect's server still does, within the hour that prefect.toml
            says (`monitor_subflow_runs`).

    Raises:
        TypeError: The target is neither a flow nor a name; `returns` with a flow, or `deployment`
            with a name; or an option is of another type.
        ValueError: The name is not `flow-name/deployment-name`, the timeout not positive, the
            scheduled time without a time zone, or an option can't be passed as JSON: half of a
            surrogate pair, for one.
    """
    if not isinstance(target, Flow | str):
        raise TypeError(_no_flow(target))
    where = f"child({target if isinstance(target, str) else target.name})"
    if timeout is not None and timeout <= 0:
        raise ValueError(f"{where}: timeout must be positive, not {timeout:g} seconds")
    if isinstance(tags, str):
        raise TypeError(f"{where}: tags must be several, not a text: [{tags!r}]")
    if not isinstance(job_variables, dict | None):
        raise TypeError(f"{where}: job_variables must be a dict, not {job_variables!r}")
    if not isinstance(scheduled_time, datetime | None):
        raise TypeError(f"{where}: scheduled_time must be a datetime, not {scheduled_time!r}")
    if scheduled_time is not None and scheduled_time.tzinfo is None:
        raise ValueError(
            f"{where}: scheduled_time has no time zone: datetime.now(UTC) + timedelta(hours=1)"
        )
    if leave_running:
        tags = [*tags, LEAVE_RUNNING]
    options: dict[str, Any] = {
        "tags": tuple(to_json_option(f"{where}: tags", [*tags])),
        "job_variables": job_variables and to_json_option(f"{where}: job_variables", job_variables),
        "work_queue_name": work_queue_name
        and to_json_option(f"{where}: work_queue_name", work_queue_name),
        "scheduled_time": scheduled_time,
        "timeout": timeout,
        "key": key,
    }
    if name is not None:
        options["name"] = to_json_option(f"{where}: name", name)
    if isinstance(target, str):
        if deployment is not None:
            raise TypeError(f"child({target!r}): the deployment is already in the name")
        flow_name, slash, deployment = target.partition("/")
        if not (flow_name and slash and deployment):
            raise ValueError(f"child({target!r}): the name must be 'flow-name/deployment-name'")
        return Child(flow_name, deployment, None, Returns(returns), options)
    if returns is not Any:
        raise TypeError(f"child({target.name}): the flow's own annotation tells what it returns")
    if target.isgenerator:
        raise TypeError(f"child({target.name}): what a flow yields has no result: return a list")
    return Child(target.name, deployment, target, Returns.of(target), options)


@dataclass(eq=False, repr=False)
class Child(Generic[P, R]):
    """A child deployment, called as its flow is. Made by `child`."""

    flow_name: str
    deployment_name: str | None
    flow: Flow[..., Any] | None
    returns: Returns[R]
    options: dict[str, Any]

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the deployment, and return its result.

        Cancelling the call cancels the run.

        Raises:
            TypeError, ValueError: The arguments don't fit the flow; nothing was created.
                A pydantic `ValidationError` is a `ValueError`.
            ChildError: There is no result; the subclass says why.
        """
        run = await self.submit(*args, **kwargs)
        return await run.result()

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> ChildRun[R]:
        """Start the deployment without waiting for it.

        Raises:
            TypeError, ValueError: The arguments don't fit the flow, would arrive as others, or
                the key is that of an earlier call; nothing was created.
            ChildNotDeployed: The deployment does not exist.
            ChildTimedOut: It could not be created in time.
        """
        parent = ParentRun.current()
        call = self._prepare(args, kwargs)
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                flow_run = await parent.start(call)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ChildTimedOut(
                f"{self.flow_name} was not created within {call.timeout:g} s: raise `timeout`, "
                "or see whether the Prefect server answers"
            ) from None
        return ChildRun(parent, call, flow_run, self.returns)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        made_at = time.monotonic()
        name = None
        if self.flow is None:
            if args:
                raise TypeError(f"{self.flow_name}: a child called by name takes keywords only")
            inputs, parameters = kwargs, to_json_untyped(self.flow_name, kwargs)
        else:
            inputs = bind(self.flow, args, kwargs)
            arguments = validate(self.flow, inputs)
            # Named as Prefect will name it when it starts: until then, it would have a random name.
            if isinstance(self.flow.flow_run_name, str):
                name = self.flow.flow_run_name.format(**with_defaults(self.flow, arguments))
                to_json_option(f"{self.flow_name}: flow_run_name", name)
            parameters = to_json(self.flow, inputs, arguments)
        return Call(
            flow_name=self.flow_name,
            deployment_name=self.deployment_name,
            parameters=parameters,
            inputs=inputs,
            made_at=made_at,
            **{"name": name} | self.options,
        )


def _no_flow(target: Any) -> str:
    """Return why something can't be called as a child."""
    if inspect.isroutine(target):
        return f"child({target.__name__}): a function is not a flow: put @flow on it"
    if inspect.iscoroutine(target):
        target.close()  # or Python warns that it was never awaited
    kind = type(target).__name__
    return f"child() takes the flow itself, not its result, a {kind}: child(f)(x), not child(f(x))"
