"""`child` and `parent_flow`, with parents that run in-process and stubs for the children."""

import asyncio
import datetime as dt
import inspect
import pickle
from typing import Annotated, Any, assert_type
from uuid import uuid4

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.serializers import JSONSerializer
from pydantic import BaseModel, Field, ValidationError

import deployments
from deployments import (
    ChildError,
    ChildFailed,
    ChildNotDeployed,
    ChildResultUnavailable,
    RunInfo,
    child,
    parent_flow,
)
from deployments.testing import Stubs
from flows.airport_delays import AirportDelays, airport_delays
from flows.delay_report import DelayReport, delay_report
from flows.flight_delays import flight_delays

pytestmark = pytest.mark.anyio


class Size(BaseModel):
    width: int
    made: dt.date


@flow
def measure(thing: str, count: Annotated[int, Field(ge=1)] = 1, wait: float = 0) -> Size:
    raise NotImplementedError(f"{thing} {count} {wait}")


@flow
def lengths(durations: list[dt.timedelta]) -> dict[int, dt.timedelta]:
    raise NotImplementedError(str(durations))


async def children_of(parent: FlowRun) -> list[FlowRun]:
    async with get_client() as client:
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id])
            )
        )


def test_the_public_face_is_sorted_and_complete() -> None:
    assert deployments.__all__ == [
        "ChildCancelled",
        "ChildCrashed",
        "ChildError",
        "ChildFailed",
        "ChildNotDeployed",
        "ChildResultUnavailable",
        "ChildRun",
        "ChildTimedOut",
        "RunInfo",
        "child",
        "parent_flow",
        "raise_failures",
    ]


async def test_a_parent_gets_its_childrens_results(stubs: Stubs) -> None:
    stubs.runs(
        airport_delays,
        lambda airport, month, data_dir: AirportDelays(
            airport=airport,
            month=month,
            flights=2,
            cancelled=1,
            mean_dep_delay=7.0,
            share_delayed=0.0,
            worst_carrier=None,
        ),
    )
    stubs.runs(delay_report, lambda delays: {**EMPTY_REPORT, "ranking": delays})

    report = await flight_delays(["AAA", "BBB"], month=2)

    assert_type(report, DelayReport)
    assert [delays.airport for delays in report.ranking] == ["AAA", "BBB"]
    calls = stubs.calls
    assert [name for name, _ in calls] == ["airport-delays", "airport-delays", "delay-report"]
    assert ("airport-delays", {"airport": "AAA", "month": 2, "data_dir": "data/flights"}) in calls


EMPTY_REPORT = {
    "month": 2,
    "ranking": [],
    "flights": 0,
    "cancelled": 0,
    "mean_dep_delay": None,
    "share_delayed": None,
}


async def test_values_come_back_as_annotated(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> tuple[Size, dict[int, dt.timedelta], Any]:
        return (
            await child(measure)("box"),
            await child(lengths)([dt.timedelta(minutes=2)]),
            await child("elsewhere/prod", returns=list[Size])(thing="any"),
        )

    stubs.returns(measure, {"width": "3", "made": "2013-01-31"})
    stubs.runs(lengths, lambda durations: {len(durations): durations[0]})
    stubs.returns("elsewhere", [Size(width=1, made=dt.date(2013, 2, 1))])

    size, by_count, elsewhere = await parent()
    assert_type(size, Size)

    assert size == Size(width=3, made=dt.date(2013, 1, 31))
    assert by_count == {1: dt.timedelta(minutes=2)}
    assert elsewhere == [Size(width=1, made=dt.date(2013, 2, 1))]


async def test_a_failed_child_is_an_exception_with_its_name_url_message_and_cause(
    stubs: Stubs,
) -> None:
    caught: list[ChildFailed] = []

    @parent_flow
    async def parent() -> None:
        try:
            await child(measure)("box")
        except ChildFailed as error:
            caught.append(error)
            raise

    stubs.raises(measure, KeyError("no box"))
    state: Any = await parent(return_state=True)

    (error,) = caught
    assert error.run is not None
    assert error.url is not None
    assert str(error.run.id) in error.url
    assert "measure" in str(error)
    assert "no box" in str(error)
    assert isinstance(error.__cause__, KeyError)
    assert state.is_failed()
    assert "ChildFailed" in state.message
    assert "no box" in state.message


async def test_failures_can_be_tolerated_with_gather(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> list[Any]:
        calls = (child(measure)(thing) for thing in ("good", "bad"))
        return [type(r).__name__ for r in await asyncio.gather(*calls, return_exceptions=True)]

    def one(thing: str) -> dict[str, Any]:
        if thing == "bad":
            raise ValueError(thing)
        return {"width": 1, "made": "2013-01-01"}

    stubs.runs(measure, one)
    assert await parent() == ["Size", "ChildFailed"]


async def test_a_result_of_another_type_is_refused(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> Size:
        return await child(measure)("box")

    stubs.returns(measure, {"width": "wide", "made": "2013-01-31"})
    with pytest.raises(ChildResultUnavailable, match="width"):
        await parent()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((), {}), TypeError, "measure: missing a required argument: 'thing'"),
        ((("box",), {"colour": 1}), TypeError, "measure: .*unexpected keyword argument 'colour'"),
        ((("box",), {"count": 0}), ValidationError, "measure\ncount\n"),
        ((("box",), {"count": "many"}), ValidationError, "measure\ncount\n"),
        ((("box",), {"wait": float("nan")}), ValueError, "measure: .* can't be passed as JSON"),
        ((("x" * 600_000,), {}), ValueError, "measure: the parameters have 600,0.. bytes"),
    ],
)
async def test_a_wrong_call_is_refused_before_anything_is_created(
    prefect_server: object, arguments: Any, error: type[Exception], message: str
) -> None:
    runs: list[FlowRun] = []

    @parent_flow
    async def parent() -> None:
        from prefect.context import FlowRunContext

        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        runs.append(context.flow_run)
        await child(measure)(*arguments[0], **arguments[1])

    with pytest.raises(error, match=message):
        await parent()
    assert await children_of(runs[0]) == []


async def test_a_child_that_is_not_deployed_says_what_to_do(deployed: object) -> None:
    @parent_flow
    async def parent(deployment: str | None = None) -> Any:
        if deployment is None:
            return await child(measure)("box")
        return await child(airport_delays, deployment=deployment)("EWR", 1)

    with pytest.raises(ChildNotDeployed, match=r"measure/local is not deployed .*prefect deploy"):
        await parent()
    with pytest.raises(ChildNotDeployed, match=r"\(there is airport-delays/local\)"):
        await parent("moon")


DAY = dt.date(2013, 1, 1)


async def sleep(seconds: float) -> None:
    raise NotImplementedError


class Plain:
    """A class that pydantic does not know."""


@flow(flow_run_name="{first}")
def odd(first: int, /, rest: Plain | None = None) -> Plain:
    raise NotImplementedError(f"{first} {rest}")


async def test_odd_signatures_and_types_work(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> Any:
        return await child(odd)(1)

    stubs.returns(odd, None)
    with pytest.raises(ChildResultUnavailable, match="instance of Plain"):
        await parent()
    assert stubs.calls == [("odd", {"first": 1})]


async def test_a_key_names_one_call(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> None:
        await child(measure, key="the box")("box")
        await child(measure, key="the box", deployment="other")("box")
        await child(measure, key="the box")("chest")

    stubs.returns(measure, {"width": 1, "made": DAY})
    with pytest.raises(ValueError, match="measure/local: key 'the box' is that of an earlier call"):
        await parent()
    assert [parameters["thing"] for _, parameters in stubs.calls] == ["box", "box"]


@pytest.mark.parametrize("kind", [ChildError, *ChildError.__subclasses__()])
def test_errors_can_be_taken_to_another_process(kind: type[ChildError]) -> None:
    run = RunInfo(id=uuid4(), name="n", deployment="f/d", url="http://ui")
    error = kind("why", run=run)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), again.run, again.url) == (kind, "why", run, "http://ui")
    # Prefect's has an exception's type and message: that is how a parent's failure is stored.
    again = JSONSerializer().loads(JSONSerializer().dumps(error))
    assert (type(again), str(again), again.run) == (kind, "why", None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: child("name-only"), ValueError, "must be 'flow-name/deployment-name'"),
        (lambda: child(measure, returns=int), TypeError, "the flow's own annotation"),  # type: ignore[call-overload]
        (lambda: child(measure, timeout=0), ValueError, "timeout must be positive, not 0 seconds"),
        (lambda: child("a/b", deployment="c"), TypeError, "already in the name"),  # type: ignore[call-overload]
        (lambda: child(Size(width=1, made=DAY)), TypeError, r"not its result, a Size: child\(f\)"),  # type: ignore[call-overload]
        (lambda: child(sleep), TypeError, r"child\(sleep\): a function is not a flow: put @flow"),  # type: ignore[call-overload]
        (lambda: child(measure, tags="gpu"), TypeError, r"child\(measure\): .*: \['gpu'\]"),
        (lambda: child("a/b", job_variables=[]), TypeError, r"child\(a/b\): .* a dict, not \[\]"),  # type: ignore[call-overload]
        (
            lambda: child(measure, job_variables={"env": {"A": object()}}),
            ValueError,
            r"child\(measure\): job_variables can't be passed as JSON: .*object",
        ),
    ],
)
def test_wrong_options_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_coroutine_of_an_async_flow_is_closed() -> None:
    called = sleep(1)
    with pytest.raises(TypeError, match="the flow itself, not its result, a coroutine"):
        child(called)  # type: ignore[call-overload]
    assert inspect.getcoroutinestate(called) == inspect.CORO_CLOSED


async def test_a_child_needs_a_parent_flow() -> None:
    with pytest.raises(RuntimeError, match="inside a flow made by @parent_flow"):
        await child(measure)("box")


def test_a_parent_must_be_async() -> None:
    with pytest.raises(TypeError, match="must be an `async def`"):

        @parent_flow  # type: ignore[arg-type]
        def parent() -> None: ...


def test_a_parent_flow_is_a_flow_with_the_functions_own_face() -> None:
    assert flight_delays.name == "flight-delays"
    assert set(flight_delays.parameters.properties) == {"airports", "month", "data_dir"}

    @parent_flow(name="other", retries=2)
    async def parent(x: int) -> int:
        return x

    assert (parent.name, parent.retries) == ("other", 2)
