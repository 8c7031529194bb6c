"""`child` and `parent_flow`, with parents that run in-process and stubs for the children."""

import asyncio
import datetime as dt
import inspect
import pickle
from typing import Annotated, Any, assert_type
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_client, task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, TaskRun
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
from deployments.parent import is_parent
from deployments.testing import Stubs
from tests.engine.words import Size, Sizes, add_up, measure, measure_all

pytestmark = pytest.mark.anyio


class Box(BaseModel):
    width: int
    made: dt.date


@flow
def pack(thing: str, count: Annotated[int, Field(ge=1)] = 1, wait: float = 0) -> Box:
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
    stubs.runs(measure, lambda word, times, hold: Size(word=word, length=times))
    stubs.runs(add_up, lambda sizes: {"sizes": sizes, "total": 0})

    sizes = await measure_all(["aaa", "bbb"], times=2)

    assert_type(sizes, Sizes)
    assert sizes.sizes == [Size(word="aaa", length=2), Size(word="bbb", length=2)]
    calls = stubs.calls
    assert [name for name, _ in calls] == ["measure", "measure", "add-up"]
    assert ("measure", {"word": "aaa", "times": 2, "hold": None}) in calls


async def test_values_come_back_as_annotated(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> tuple[Box, dict[int, dt.timedelta], Any]:
        return (
            await child(pack)("box"),
            await child(lengths)([dt.timedelta(minutes=2)]),
            await child("elsewhere/prod", returns=list[Box])(thing="any"),
        )

    stubs.returns(pack, {"width": 3, "made": "2013-01-31"})
    stubs.runs(lengths, lambda durations: {len(durations): durations[0]})
    stubs.returns("elsewhere", [Box(width=1, made=dt.date(2013, 2, 1))])

    size, by_count, elsewhere = await parent()
    assert_type(size, Box)

    assert size == Box(width=3, made=dt.date(2013, 1, 31))
    assert by_count == {1: dt.timedelta(minutes=2)}
    assert elsewhere == [Box(width=1, made=dt.date(2013, 2, 1))]


async def test_a_failed_child_is_an_exception_with_its_name_url_message_and_cause(
    stubs: Stubs,
) -> None:
    caught: list[ChildFailed] = []

    @parent_flow
    async def parent() -> None:
        try:
            await child(pack)("box")
        except ChildFailed as error:
            caught.append(error)
            raise

    stubs.raises(pack, KeyError("no box"))
    state: Any = await parent(return_state=True)

    (error,) = caught
    assert error.run is not None
    assert error.url is not None
    assert str(error.run.id) in error.url
    assert "pack" in str(error)
    assert "no box" in str(error)
    assert isinstance(error.__cause__, KeyError)
    assert state.is_failed()
    assert "ChildFailed" in state.message
    assert "no box" in state.message


async def test_failures_can_be_tolerated_with_gather(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> list[Any]:
        calls = (child(pack)(thing) for thing in ("good", "bad"))
        return [type(r).__name__ for r in await asyncio.gather(*calls, return_exceptions=True)]

    def one(thing: str) -> dict[str, Any]:
        if thing == "bad":
            raise ValueError(thing)
        return {"width": 1, "made": "2013-01-01"}

    stubs.runs(pack, one)
    assert await parent() == ["Box", "ChildFailed"]


async def test_a_result_of_another_type_is_refused(stubs: Stubs) -> None:
    @parent_flow
    async def parent() -> Box:
        return await child(pack)("box")

    stubs.returns(pack, {"width": "wide", "made": "2013-01-31"})
    with pytest.raises(ChildResultUnavailable, match="width"):
        await parent()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((), {}), TypeError, "pack: missing a required argument: 'thing'"),
        ((("box",), {"colour": 1}), TypeError, "pack: .*unexpected keyword argument 'colour'"),
        ((("box",), {"count": 0}), ValidationError, "pack\ncount\n"),
        ((("box",), {"count": "many"}), ValidationError, "pack\ncount\n"),
        ((("box",), {"wait": float("nan")}), ValueError, "pack: .* can't be passed as JSON"),
        ((("x" * 600_000,), {}), ValueError, "pack: the parameters have 600,0.. bytes"),
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
        await child(pack)(*arguments[0], **arguments[1])

    with pytest.raises(error, match=message):
        await parent()
    assert await children_of(runs[0]) == []


async def test_a_child_that_is_not_deployed_says_what_to_do(deployed: object) -> None:
    @parent_flow
    async def parent(deployment: str | None = None) -> Any:
        if deployment is None:
            return await child(pack)("box")
        return await child(measure, deployment=deployment)("a", 1)

    with pytest.raises(ChildNotDeployed, match=r"pack/local is not deployed .*make deploy"):
        await parent()
    with pytest.raises(ChildNotDeployed, match=r"\(there is measure/local\)"):
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
        await child(pack, key="the box")("box")
        await child(pack, key="the box", deployment="other")("box")
        await child(pack, key="the box")("chest")

    stubs.returns(pack, {"width": 1, "made": DAY})
    with pytest.raises(ValueError, match="pack/local: key 'the box' is that of an earlier call"):
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
        (lambda: child(pack, returns=int), TypeError, "the flow's own annotation"),  # type: ignore[call-overload]
        (lambda: child(pack, timeout=0), ValueError, "timeout must be positive, not 0 seconds"),
        (lambda: child("a/b", deployment="c"), TypeError, "already in the name"),  # type: ignore[call-overload]
        (lambda: child(Box(width=1, made=DAY)), TypeError, r"not its result, a Box: child\(f\)"),  # type: ignore[call-overload]
        (lambda: child(sleep), TypeError, r"child\(sleep\): a function is not a flow: put @flow"),  # type: ignore[call-overload]
        (
            lambda: child(pack, scheduled_time=dt.datetime(2030, 1, 1)),
            ValueError,
            r"child\(pack\): scheduled_time has no time zone",
        ),
        (
            lambda: child(pack, scheduled_time="2030-01-01"),  # type: ignore[call-overload]
            TypeError,
            r"scheduled_time must be a datetime, not '2030-01-01'",
        ),
        (
            lambda: child(pack, work_queue_name="\0"),
            ValueError,
            r"child\(pack\): work_queue_name can't .* NUL",
        ),
        (lambda: child(pack, tags="gpu"), TypeError, r"child\(pack\): .*: \['gpu'\]"),
        (lambda: child("a/b", job_variables=[]), TypeError, r"child\(a/b\): .* a dict, not \[\]"),  # type: ignore[call-overload]
        (
            lambda: child(pack, name="\ud800"),
            ValueError,
            r"child\(pack\): name can't be .*surrogate",
        ),
        (lambda: child("a/b", tags=["x", "\0"]), ValueError, r"child\(a/b\): tags can't .* NUL"),
        (
            lambda: child(pack, job_variables={"env": {"A": object()}}),
            ValueError,
            r"child\(pack\): job_variables can't be passed as JSON: .*object",
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
        await child(pack)("box")


@flow(flow_run_name="\0 {thing}")
def misnamed(thing: str) -> None:
    raise NotImplementedError(thing)


async def test_a_run_name_that_no_server_stores_is_refused(prefect_server: object) -> None:
    @parent_flow
    async def parent() -> None:
        await child(misnamed)("box")

    with pytest.raises(ValueError, match=r"misnamed: flow_run_name can't be passed .* NUL"):
        await parent()


async def test_children_share_what_they_ask_of_their_parent(
    prefect_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nested parent calls the deployments of the name of the one above: it is read once."""
    asked: list[UUID] = []
    read = PrefectClient.read_task_run

    async def count(self: PrefectClient, task_run_id: UUID) -> TaskRun:
        asked.append(task_run_id)
        return await read(self, task_run_id)

    monkeypatch.setattr(PrefectClient, "read_task_run", count)

    @parent_flow
    async def parent() -> list[Any]:
        calls = (child(pack)("box", number) for number in range(1, 61))
        return await asyncio.gather(*calls, return_exceptions=True)

    @flow
    async def above() -> list[Any]:
        return await parent()

    assert {type(outcome) for outcome in await above()} == {ChildNotDeployed}
    assert len(asked) == 1


@task
async def pack_by_task(number: int) -> int:
    return (await child(pack)("box", number)).width


@task
def pack_by_a_sync_task(number: int) -> Any:
    return child(pack)("box", number)


@task
def pack_in_a_loop_of_its_own(number: int) -> Any:
    return asyncio.run(child(pack)("box", number))


async def test_tasks_call_children_in_their_own_threads(stubs: Stubs) -> None:
    """Also where the parent's own loop stands still meanwhile.

    One after another: stand-ins are plain subflows, whose numbers Prefect mixes up where several
    threads count them at once (`dynamic_key_for_task_run`).
    """

    @parent_flow
    async def parent() -> list[Any]:
        return [pack_by_task.submit(number).result() for number in range(1, 6)]

    stubs.runs(pack, lambda thing, count: {"width": count, "made": DAY})
    assert await parent() == [*range(1, 6)]
    assert len(stubs.calls) == 5


@pytest.mark.parametrize("packing", [pack_by_a_sync_task, pack_in_a_loop_of_its_own])
async def test_a_synchronous_task_is_told_to_await(stubs: Stubs, packing: Any) -> None:
    @parent_flow
    async def parent() -> Any:
        return packing.submit(1).result()

    stubs.returns(pack, {"width": 1, "made": DAY})
    with pytest.raises(RuntimeError, match="in a task of it that is an `async def`, and awaits"):
        await parent()
    assert stubs.calls == []


async def test_a_stub_may_be_async(stubs: Stubs) -> None:
    packed = asyncio.Event()

    async def wait(thing: str) -> dict[str, Any]:
        packed.set()
        await asyncio.sleep(0)
        return {"width": len(thing), "made": DAY}

    @parent_flow
    async def parent() -> int:
        box, _ = await asyncio.gather(child(pack)("box"), packed.wait())
        return box.width

    stubs.runs(pack, wait)
    assert await parent() == 3


def test_a_parent_must_be_async() -> None:
    with pytest.raises(TypeError, match="must be an `async def`"):

        @parent_flow  # type: ignore[arg-type]
        def parent() -> None: ...


def test_a_parent_flow_is_a_flow_with_the_functions_own_face() -> None:
    assert measure_all.name == "measure-all"
    assert set(measure_all.parameters.properties) == {"words", "times", "hold"}

    @parent_flow(name="other", retries=2)
    async def parent(x: int) -> int:
        return x

    assert (parent.name, parent.retries) == ("other", 2)


def tell(flow: Any, flow_run: Any, state: Any) -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "hooks"),
    [
        ({}, []),
        ({"name": "other", "retries": 2}, []),
        ({"on_crashed": [tell], "on_cancellation": [tell]}, [tell]),
    ],
)
def test_a_parent_with_other_options_is_a_parent(options: dict[str, Any], hooks: list[Any]) -> None:
    """What cancels its children stands behind the hooks that are given, and once."""
    given = {name: [*option] for name, option in options.items() if option == [tell]}
    for parent in (
        measure_all.with_options(**(options | given)),
        measure_all.with_options(**(options | given)).with_options(name="again"),
        parent_flow(**(options | given))(measure_all.fn),
    ):
        assert is_parent(parent)
        for found in (parent.on_crashed_hooks, parent.on_cancellation_hooks):
            assert found[:-1] == hooks
            assert found[-1].__module__.startswith("deployments.")
    assert all(option == [tell] for option in given.values())
