"""Calling a child: from its flow and parameters to its run and its result."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload
from uuid import UUID

from prefect.flows import Flow
from typing_extensions import TypeForm

from deployments.parent._call import Call
from deployments.parent._child_run import ChildRun
from deployments.parent._errors import ChildTimedOut
from deployments.parent._parent import ParentRun
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

# Flows that stand in for children in tests, by flow name: see `deployments.testing`.
stand_ins: dict[str, Flow[..., Coroutine[Any, Any, Any]]] = {}


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
        name: Of the run. By default the flow's own `flow_run_name`, which Prefect also
            prefers when the run starts.
        tags: For the run, besides the deployment's.
        job_variables: For the run, over the deployment's.
        timeout: Seconds from the call after which the result is not waited for any more:
            `ChildTimedOut` is raised, and the run cancelled.
        key: The identity of the call when its parent is retried, where the child's
            parameters and job variables are not. Each call of a deployment has its own.
        leave_running: Never cancel the run, neither when the caller is cancelled nor when the
            parent ends; it gets the tag `leave-running`. For `.submit()` and forget. Where the
            parent is *cancelled*, Prefect's server still does (`monitor_subflow_runs`).

    Raises:
        TypeError: The target is neither a flow nor a name; `returns` with a flow, or `deployment`
            with a name; or an option is of another type.
        ValueError: The name is not `flow-name/deployment-name`, the timeout not positive, or an
            option can't be passed as JSON: half of a surrogate pair, for one.
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
    if leave_running:
        tags = [*tags, LEAVE_RUNNING]
    options: dict[str, Any] = {
        "tags": tuple(to_json_option(f"{where}: tags", [*tags])),
        "job_variables": job_variables and to_json_option(f"{where}: job_variables", job_variables),
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
        return Child(flow_name, deployment, None, Returns(returns), timeout, options)
    if returns is not Any:
        raise TypeError(f"child({target.name}): the flow's own annotation tells what it returns")
    if target.isgenerator:
        raise TypeError(f"child({target.name}): what a flow yields has no result: return a list")
    return Child(target.name, deployment, target, Returns.of(target), timeout, options)


@dataclass(eq=False, repr=False)
class Child(Generic[P, R]):
    """A child deployment, called as its flow is. Made by `child`."""

    _flow_name: str
    _deployment_name: str | None
    _flow: Flow[..., Any] | None
    _returns: Returns[R]
    _timeout: float | None
    _options: dict[str, Any]

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
        try:
            async with asyncio.timeout(self._timeout) as limit:
                return await self._submit(args, kwargs, limit.when())
        except TimeoutError:
            if not limit.expired():
                raise
            raise ChildTimedOut(
                f"{self._flow_name} was not created within {self._timeout:g} s: raise `timeout`, "
                "or see whether the Prefect server answers"
            ) from None

    async def _submit(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float | None
    ) -> ChildRun[R]:
        parent = ParentRun.current()
        prepared = self._prepare(args, kwargs)
        here = asyncio.get_running_loop()  # its clock, for the deadline, is that of every loop
        starting = self._start(parent, *prepared, deadline, here)
        return await parent.loop.run(starting, ChildRun._abandon)

    async def _start(
        self,
        parent: ParentRun,
        inputs: dict[str, Any],
        parameters: dict[str, Any],
        run_name: str | None,
        deadline: float | None,
        callers: asyncio.AbstractEventLoop,
    ) -> ChildRun[R]:
        name = f"{self._flow_name}/{self._deployment_name or await parent.deployment_name()}"
        options: dict[str, Any] = {"name": run_name} | self._options
        call = Call(deployment=name, parameters=parameters, inputs=inputs, **options)
        key = parent.keys.claim(call)  # before any await: identical calls are told apart by order
        again = None
        if stand_in := stand_ins.get(self._flow_name):
            running = self._run_stand_in(stand_in, parameters, call.name)
            run_id = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(running, callers))
            flow_run = await parent.client.read_flow_run(run_id)
        else:
            flow_run = await parent.submitter.submit(call, key)
            if flow_run.state and flow_run.state.is_completed():  # by an earlier attempt
                again = functools.partial(parent.submitter.resubmit, call, flow_run)
        return ChildRun(
            name,
            flow_run,
            self._returns,
            parent.loop,
            parent.watcher,
            parent.canceller,
            self._timeout,
            deadline,
            again,
        )

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], str | None]:
        """Return the arguments as given, as JSON data, and the run's name."""
        if self._flow is None:
            if args:
                raise TypeError(f"{self._flow_name}: a child called by name takes keywords only")
            return kwargs, to_json_untyped(self._flow_name, kwargs), None
        inputs = bind(self._flow, args, kwargs)
        arguments = validate(self._flow, inputs)
        # Named as Prefect will name it when it starts: until then, it would have a random name.
        name, named = None, self._flow.flow_run_name
        if isinstance(named, str):
            name = named.format(**with_defaults(self._flow, arguments))
            to_json_option(f"{self._flow.name}: flow_run_name", name)
        return inputs, to_json(self._flow, inputs, arguments), name

    async def _run_stand_in(
        self,
        stand_in: Flow[..., Coroutine[Any, Any, Any]],
        parameters: dict[str, Any],
        run_name: str | None,
    ) -> UUID:
        if self._flow is not None:  # as the child would get them
            parameters = validate(self._flow, parameters)
        if run_name is not None:
            stand_in = stand_in.with_options(flow_run_name=lambda: run_name)
        state = await stand_in(**parameters, return_state=True)
        run_id: UUID = state.state_details.flow_run_id
        return run_id


def _no_flow(target: Any) -> str:
    """Return why something can't be called as a child."""
    if inspect.isroutine(target):
        return f"child({target.__name__}): a function is not a flow: put @flow on it"
    if inspect.iscoroutine(target):
        target.close()  # or Python warns that it was never awaited
    kind = type(target).__name__
    return f"child() takes the flow itself, not its result, a {kind}: child(f)(x), not child(f(x))"
