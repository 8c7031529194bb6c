"""Children that go wrong, under a parent that lives."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Crashed
from pydantic import ValidationError

from deployments import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildNotDeployed,
    ChildResultUnavailable,
    ChildRun,
    ChildTimedOut,
    child,
    raise_failures,
)
from deployments.runs import _waiting
from deployments.servers import TemporaryServer
from tests.engine.faults.conftest import InProcess, is_alive, pid_of
from tests.engine.faults.steps import Renamed, echo, region, slow, step, variadic
from tests.engine.faults.test_page import page_of
from tests.engine.waiting import SECONDS, children_of, read_graph, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def states(client: PrefectClient, parent: InProcess) -> dict[str, str | None]:
    assert parent.run is not None
    return {run.name: run.state_name for run in await children_of(client, parent.run)}


async def final(client: PrefectClient, parent: InProcess) -> dict[str, str | None]:
    """Return the children's states once all are final."""

    async def all_final() -> dict[str, str | None] | None:
        assert parent.run is not None
        runs = await children_of(client, parent.run)
        ended = all(run.state and run.state.is_final() for run in runs)
        return {run.name: run.state_name for run in runs} if ended else None

    return await wait_for(all_final, "all children are final")


async def running(client: PrefectClient, run: ChildRun[Any]) -> None:
    async def is_running() -> bool:
        return (await client.read_flow_run(run.id)).state_name == "Running"

    await wait_for(is_running, f"{run} runs")


async def test_child_raises(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> None:
        await child(step)("broken", "raise")

    with pytest.raises(ChildFailed, match=r"step/local 'broken' failed: .*broken broke") as error:
        await in_process(code)
    assert isinstance(error.value.__cause__, ValueError)
    assert await states(client, in_process) == {"broken": "Failed"}


async def test_child_is_killed(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> None:
        await child(step)("killed", "kill")

    with pytest.raises(ChildCrashed, match=r"'killed' crashed: .*status code: -9"):
        await in_process(code)
    assert await states(client, in_process) == {"killed": "Crashed"}


async def test_a_child_that_was_silent_goes_on(
    client: PrefectClient, in_process: InProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process only hung, longer than the automation of prefect.yaml waits for heartbeats."""
    go = tmp_path / "go"

    async def code() -> None:
        run = await child(step).submit("silent", "hold", str(go))
        await running(client, run)
        await client.set_flow_run_state(run.id, Crashed(message="No heartbeat for 180 s"))
        with pytest.raises(ChildCrashed, match="No heartbeat"):
            await run.result()
        go.touch()
        await logged(caplog, "silent was told as crashed, went on, and is Completed")

    await in_process(code)
    assert in_process.run is not None
    _, table = await page_of(client, in_process.run)
    assert "| Completed |" in table


async def test_child_exceeds_its_own_timeout(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> None:
        await child(slow)()

    with pytest.raises(ChildFailed, match="exceeded timeout of 1"):
        await in_process(code)
    assert await states(client, in_process) == {"slow": "TimedOut"}


async def test_child_is_cancelled_in_the_ui(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> None:
        run = await child(step).submit("unwanted", "hold")
        await running(client, run)
        await client.set_flow_run_state(run.id, Cancelling())
        await run.result()

    with pytest.raises(ChildCancelled, match="'unwanted' was cancelled"):
        await in_process(code)
    assert await states(client, in_process) == {"unwanted": "Cancelled"}


async def result_file(client: PrefectClient, run: ChildRun[Any], server: TemporaryServer) -> Path:
    async def completed() -> State | None:
        state = (await client.read_flow_run(run.id)).state
        return state if state and state.is_completed() else None

    state = await wait_for(completed, f"{run} completes")
    path = Path(str(state.data.storage_key))
    return path if path.is_absolute() else server.home / "storage" / path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "its result is at .*, which can't be reached from here: "),
        (lambda path: path.write_text("{"), "completed, but its result can't be decoded: "),
    ],
    ids=["deleted", "corrupted"],
)
async def test_result_file_is(
    client: PrefectClient,
    in_process: InProcess,
    prefect_server: TemporaryServer,
    damage: Any,
    message: str,
) -> None:
    async def code() -> None:
        run = await child(step).submit("done")
        damage(await result_file(client, run, prefect_server))
        await run.result()

    with pytest.raises(ChildResultUnavailable, match=message):
        await in_process(code)


async def test_return_value_cannot_be_serialised(in_process: InProcess) -> None:
    async def code() -> None:
        await child(step)("odd", "function")

    with pytest.raises(
        ChildResultUnavailable, match="its result was not written: Failed to serialize"
    ):
        await in_process(code)


async def test_return_value_is_of_the_wrong_type(in_process: InProcess) -> None:
    async def code() -> None:
        await child(step)("odd", "text")

    with pytest.raises(ChildResultUnavailable, match="its result is not what it should be"):
        await in_process(code)


async def test_failed_childs_message_is_not_hidden_by_its_storage(
    client: PrefectClient, in_process: InProcess, prefect_server: TemporaryServer
) -> None:
    async def code() -> None:
        run = await child(step).submit("broken", "raise")

        async def failed() -> State | None:
            state = (await client.read_flow_run(run.id)).state
            return state if state and state.is_failed() else None

        state = await wait_for(failed, "it fails")
        (prefect_server.home / "storage" / str(state.data.storage_key)).unlink()
        await run.result()

    with pytest.raises(ChildFailed, match="broken broke") as error:
        await in_process(code)
    assert error.value.__cause__ is None


async def test_deployment_is_missing(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> None:
        await child(step, deployment="missing")("never")

    with pytest.raises(ChildNotDeployed, match="step/missing is not deployed"):
        await in_process(code)
    assert await states(client, in_process) == {}


async def logged(caplog: pytest.LogCaptureFixture, *parts: str) -> None:
    """Wait until the log has a line with these parts."""

    async def has_line() -> bool:
        return any(all(part in line for part in parts) for line in caplog.messages)

    await wait_for(has_line, f"the log says: {' ... '.join(parts)}")


@pytest.mark.parametrize(
    ("deployment", "reason"),
    [
        (
            "nobody",
            "no worker is online for work pool engine-tests-nobody: `prefect worker start --pool",
        ),
        (
            "paused",
            "work queue paused of pool engine-tests-local is paused: `prefect work-queue resume p",
        ),
        ("full", "work queue full runs 0 at once, its limit"),
    ],
    ids=["no worker", "paused queue", "full queue"],
)
async def test_nothing_starts_the_child(
    client: PrefectClient,
    in_process: InProcess,
    caplog: pytest.LogCaptureFixture,
    deployment: str,
    reason: str,
) -> None:
    queue = await client.read_work_queue_by_name("paused", work_pool_name="engine-tests-local")
    await client.update_work_queue(queue.id, is_paused=True)

    async def code() -> None:
        await child(step, deployment=deployment).submit("stuck")
        await logged(caplog, "stuck not started for", reason)

    await in_process(code)
    assert await final(client, in_process) == {"stuck": "Cancelled"}


async def test_a_child_that_waits_for_a_slot_says_so(
    client: PrefectClient, in_process: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    single = child(step, deployment="single")

    async def code() -> None:
        await running(client, await single.submit("first", "hold"))
        await single.submit("second")
        await logged(caplog, "second", "limit of the deployment is reached")

    await in_process(code)
    assert await final(client, in_process) == {"first": "Cancelled", "second": "Cancelled"}


async def test_a_paused_deployment_still_runs_when_called(
    client: PrefectClient, in_process: InProcess
) -> None:
    deployment = await client.read_deployment_by_name("step/local")

    async def code() -> int:
        return await child(step, timeout=SECONDS)("called")

    await client.pause_deployment(deployment.id)
    try:
        assert await in_process(code) == 6
    finally:
        await client.resume_deployment(deployment.id)


# These three look at the runs while the parent still lives: its end would cancel them anyway.


async def test_task_group_cancels_the_siblings_runs(
    client: PrefectClient, in_process: InProcess
) -> None:
    pids: list[int] = []

    async def siblings() -> None:
        async with asyncio.TaskGroup() as group:
            waiting = await child(step).submit("sibling", "hold")
            group.create_task(waiting.result())
            await running(client, waiting)
            pids.append(pid_of(await client.read_flow_run(waiting.id)))
            group.create_task(child(step)("broken", "raise"))

    async def code() -> None:
        with pytest.raises(ExceptionGroup) as error:
            await siblings()
        assert [type(reason) for reason in error.value.exceptions] == [ChildFailed]
        assert await final(client, in_process) == {"sibling": "Cancelled", "broken": "Failed"}
        assert not is_alive(pids[0])

    await in_process(code)


@pytest.mark.parametrize("how", ["option", "asyncio"])
async def test_timeout_cancels_the_run(
    client: PrefectClient, in_process: InProcess, how: str
) -> None:
    async def code() -> None:
        if how == "option":
            with pytest.raises(ChildTimedOut, match="'late' did not finish within 6 s"):
                await child(step, timeout=6)("late", "hold")
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(6):
                    await child(step)("late", "hold")
        assert await final(client, in_process) == {"late": "Cancelled"}

    await in_process(code)


async def test_the_losers_of_a_race_are_cancelled(
    client: PrefectClient, in_process: InProcess
) -> None:
    async def code() -> int:
        calls = [child(step)("winner"), child(step)("loser", "hold")]
        tasks = [asyncio.ensure_future(call) for call in calls]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for loser in pending:
            loser.cancel()
        await asyncio.wait(pending)
        assert await final(client, in_process) == {"winner": "Completed", "loser": "Cancelled"}
        return done.pop().result()

    assert await in_process(code) == len("winner")


async def test_a_child_that_is_left_running_outlives_its_parent(
    client: PrefectClient, in_process: InProcess, tmp_path: Path
) -> None:
    runs: list[ChildRun[int]] = []

    async def code() -> None:
        left = child(step, leave_running=True)
        runs.append(await left.submit("left", "hold", str(tmp_path / "go")))
        runs.append(await child(step).submit("kept", "hold"))
        await asyncio.gather(*(running(client, run) for run in runs))

    await in_process(code)
    (tmp_path / "go").touch()
    assert await final(client, in_process) == {"left": "Completed", "kept": "Cancelled"}


async def test_a_deleted_run_is_told(
    client: PrefectClient, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also long after it was last said why it waits, and while others wait."""
    monkeypatch.setattr(_waiting, "EXPLAIN_SECONDS", 3600)

    async def code() -> None:
        call = child(step, deployment="nobody")
        gone, *others = await asyncio.gather(*(call.submit(f"{number}") for number in range(20)))
        told = [asyncio.ensure_future(run.result()) for run in (gone, *others)]
        await client.delete_flow_run(gone.id)
        done, _ = await asyncio.wait(told, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert done == {told[0]}
        await told[0]

    with pytest.raises(ChildError, match="the child's run was deleted"):
        await in_process(code)


async def test_a_deployment_is_made_anew(client: PrefectClient, in_process: InProcess) -> None:
    there = await client.read_deployment_by_name("step/nobody")

    async def make() -> UUID:
        return await client.create_deployment(
            there.flow_id, "anew", work_pool_name="engine-tests-nobody", entrypoint=there.entrypoint
        )

    call = child(step, deployment="anew")

    async def code() -> None:
        old = await make()
        await call.submit("before")
        await client.delete_deployment(old)
        new = await make()
        runs = await asyncio.gather(*(call.submit(f"{number}") for number in range(3)))
        assert {(await client.read_flow_run(run.id)).deployment_id for run in runs} == {new}
        await client.delete_deployment(new)
        with pytest.raises(ChildNotDeployed, match=r"step/anew .*\(there is .*step/nobody.*\)"):
            await call.submit("after")

    await in_process(code)
    assert in_process.run is not None
    of_parent = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[in_process.run.id]))
    task_runs = await client.read_task_runs(task_run_filter=of_parent)
    assert [run.state_name for run in task_runs].count("Failed") == 1


async def test_nobody_serves_the_child(
    client: PrefectClient, in_process: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    there = await client.read_deployment_by_name("step/local")
    await client.create_deployment(there.flow_id, "unserved", entrypoint=there.entrypoint)

    async def code() -> None:
        await child(step, deployment="unserved").submit("stuck")
        await logged(caplog, "stuck not started for", "no work pool is on the deployment, and nob")

    await in_process(code)
    assert await final(client, in_process) == {"stuck": "Cancelled"}


async def test_tasks_call_children(client: PrefectClient, in_process: InProcess) -> None:
    """In their own threads, while the parent's own loop stands still; and they are cached."""

    @task(persist_result=True)
    async def pass_on(name: str) -> list[str]:
        source = await child(region, job_variables={"env": {"REGION": name}}).submit()
        sink = await child(step, deployment="nobody").submit(await source.result())
        await sink.cancel()
        return [f"{source.id}", f"{sink.id}"]

    async def code() -> Any:
        results: list[Any] = []
        for _ in range(2):
            results.append(pass_on.map(["north", "south"]).result())
        return results

    first, again = await in_process(code)
    assert first == again
    assert in_process.run is not None
    graph = await read_graph(client, in_process.run)
    assert {UUID(sink): graph[UUID(sink)] for _, sink in first} == {
        UUID(sink): {UUID(source)} for source, sink in first
    }
    assert len(await children_of(client, in_process.run)) == 4


async def test_a_task_that_is_cancelled_cancels_its_child(
    client: PrefectClient, in_process: InProcess
) -> None:
    @task(timeout_seconds=5)
    async def impatient() -> None:
        await child(step)("by the task", "hold")

    @task
    async def careful() -> None:
        with pytest.raises(ChildTimedOut, match="did not finish within 5 s"):
            await child(step, timeout=5)("by its timeout", "hold")
        run = await child(step).submit("by hand", "hold")
        await run.cancel()
        with pytest.raises((ChildCancelled, ChildCrashed)):
            await run.result()

    async def code() -> None:
        by_task, by_hand = impatient.submit(), careful.submit()
        by_task.wait()
        by_hand.wait()
        assert [by_task.state.name, by_hand.state.name] == ["TimedOut", "Completed"]
        ends = await final(client, in_process)
        assert ends.keys() == {"by the task", "by its timeout", "by hand"}
        assert {*ends.values()} <= {"Cancelled", "Crashed"}  # the latter while it starts

    await in_process(code)


async def test_several_failures_are_counted_and_named(in_process: InProcess) -> None:
    async def code() -> None:
        calls = [child(step)("one", "raise"), child(step)("two"), child(step)("three", "raise")]
        raise_failures(await asyncio.gather(*calls, return_exceptions=True))

    with pytest.raises(ExceptionGroup, match="2 of 3 children failed: step/local 'one', "):
        await in_process(code)


async def test_two_identical_calls_are_two_children(
    client: PrefectClient, in_process: InProcess
) -> None:
    async def code() -> list[int]:
        return list(await asyncio.gather(child(step)("twin"), child(step)("twin")))

    assert await in_process(code) == [4, 4]
    assert in_process.run is not None
    assert len(await children_of(client, in_process.run)) == 2


async def test_arguments_that_are_not_read_as_they_are_written(in_process: InProcess) -> None:
    async def code() -> list[Any]:
        call: Any = child(echo)
        return list(await call(1, "a,b", "[1, 2]", Renamed(width=3)))

    assert await in_process(code) == [1, ["a", "b"], [1, 2], 3]


async def test_variadic_parameters(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> list[Any]:
        return [
            await child(variadic)(1),
            await child(variadic)(1, 2, 3, colour="red"),
        ]

    if "rest" in (variadic.parameters.required or ()):  # before Prefect 3.9
        with pytest.raises(TypeError, match=r"variadic: this Prefect .* \*rest: int: take a list"):
            await in_process(code)
        assert await states(client, in_process) == {}
    else:
        assert await in_process(code) == [[1, [], {}], [1, [2, 3], {"colour": "red"}]]


async def test_one_call_of_many_is_refused(in_process: InProcess) -> None:
    good: list[Any] = [child(step, deployment="nobody", name=f"{number}") for number in range(4)]
    refused: Any = child(step, deployment="nobody", job_variables={"env": "a text"})
    unnamed: Any = child(step, deployment="nobody", name=5)  # type: ignore[call-overload]

    async def code() -> list[Any]:
        calls = [*good[:2], refused, unnamed, *good[2:]]
        return await asyncio.gather(*(call.submit("x") for call in calls), return_exceptions=True)

    outcomes = await in_process(code)
    assert [type(outcome) for outcome in outcomes] == [
        *[ChildRun] * 2,
        ChildError,
        ValidationError,
        *[ChildRun] * 2,
    ]
    assert "step/nobody: the server refused the run" in str(outcomes[2])


async def test_the_run_graph_after_a_plain_subflow(
    client: PrefectClient, in_process: InProcess
) -> None:
    @flow
    async def inner() -> None:
        await child(step)("first")

    async def code() -> list[ChildRun[Any]]:
        await inner()
        source = await child(region, job_variables={"env": {"REGION": "eu"}}).submit()
        sink = await child(step, deployment="nobody").submit(await source.result())
        return [source, sink]

    source, sink = await in_process(code)
    assert in_process.run is not None
    graph = await read_graph(client, in_process.run)
    assert graph[sink.id] == {source.id}
