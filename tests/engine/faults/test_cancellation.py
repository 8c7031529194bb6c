"""Runs that are cancelled, or lost, at every stage: something moves each of them on."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.states import Cancelling

from deployments import ChildCancelled, ChildCrashed, ChildRun, child
from deployments.runs._cancel import START_TIME
from deployments.servers import TemporaryServer, temporary_server, temporary_worker
from tests.engine.faults.conftest import InProcess, deploy_faults, is_alive, pid_of, start
from tests.engine.faults.steps import step
from tests.engine.waiting import (
    SECONDS,
    assert_none_went_on,
    children_of,
    ended,
    exit_statuses,
    in_states,
    outcome,
    wait_for,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# More than are about to start at once (`STARTING`).
MANY = 150
ENDED = {"Cancelled", "Crashed"}  # Prefect calls a process Crashed that ends while it starts


async def reach(client: PrefectClient, run_id: Any, *states: str) -> FlowRun:
    """Wait until a run is in one of these states, by type."""

    async def there() -> FlowRun | None:
        run = await client.read_flow_run(run_id)
        return run if run.state_type and run.state_type.value in states else None

    return await wait_for(there, f"run {run_id} is {' or '.join(states)}")


async def test_children_are_cancelled_while_they_start(
    client: PrefectClient, in_process: InProcess
) -> None:
    """Their processes come up to find that they may not run, and nobody calls them Cancelled."""
    outcomes: list[Any] = []

    async def cancel_when_pending(run: ChildRun[int]) -> None:
        await reach(client, run.id, "PENDING")
        await run.cancel()

    async def code() -> None:
        runs = [await child(step).submit(f"{number}", "hold") for number in range(6)]
        await asyncio.gather(*map(cancel_when_pending, runs))
        results = (run.result() for run in runs)
        outcomes.extend(await asyncio.gather(*results, return_exceptions=True))

    await asyncio.wait_for(in_process(code), SECONDS)
    assert {type(each) for each in outcomes} <= {ChildCancelled, ChildCrashed}, outcomes


async def twenty_created(client: PrefectClient, parent: FlowRun) -> None:
    async def created() -> bool:
        return len(await children_of(client, parent)) >= 20

    await wait_for(created, "the parent has created twenty of its children")


@pytest.mark.parametrize("how", ["cancelled", "killed"])
async def test_a_parent_is_stopped_while_it_creates_children(
    client: PrefectClient, how: str
) -> None:
    steps = [{"name": f"{n}", "do": "hold", "deployment": "eight"} for n in range(MANY)]
    parent = await start("family", steps=steps)
    await twenty_created(client, parent)
    if how == "cancelled":
        await client.set_flow_run_state(parent.id, Cancelling())
    else:
        os.kill(pid_of(await client.read_flow_run(parent.id)), signal.SIGKILL)
    # Of a run that its busy worker lost track of, only time tells that it won't start.
    parent = await ended(client, parent, START_TIME.total_seconds() + SECONDS)
    assert parent.state_name == ("Cancelled" if how == "cancelled" else "Crashed")
    assert {state for _, state in await outcome(client, parent)} <= ENDED
    await assert_none_went_on(client, parent)

    async def told() -> str | None:
        return (await exit_statuses(client, [parent])).get(parent.id)

    status = await wait_for(told, "the worker has told how the parent's process ended")
    # It has ended by itself. What stands for a killed one is gone, and it may still say so.
    assert status != "-9" or how == "killed"


@pytest.mark.parametrize("how", ["times out", "fails"])
async def test_a_parent_gives_up_while_it_creates_children(
    client: PrefectClient, in_process: InProcess, how: str
) -> None:
    async def code() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(MANY):
                group.create_task(child(step, deployment="eight")(f"{number}", "hold"))
            if how == "fails":
                assert in_process.run is not None
                await twenty_created(client, in_process.run)
                raise RuntimeError("a sibling broke")

    with pytest.raises((TimeoutError, ExceptionGroup)):
        await in_process(code, timeout_seconds=5 if how == "times out" else None)
    assert in_process.run is not None
    await ended(client, in_process.run)
    assert {state for _, state in await outcome(client, in_process.run)} <= ENDED
    await assert_none_went_on(client, in_process.run)


async def test_children_are_cancelled_that_a_busy_worker_took(
    client: PrefectClient, in_process: InProcess, prefect_server: TemporaryServer
) -> None:
    """It may start them much later: who is called Cancelled before would run then."""
    outcomes: list[Any] = []

    async def code() -> None:
        assert in_process.run is not None
        with temporary_worker(prefect_server, "engine-tests-busy") as worker:
            runs = [await child(step, deployment="busy").submit(f"{n}") for n in range(6)]
            await wait_for(lambda: taken(client, in_process.run), "the worker took one")
            os.kill(worker.pid, signal.SIGSTOP)
            told = [asyncio.ensure_future(run.result()) for run in runs]
            await asyncio.gather(*(run.cancel() for run in runs))
            await asyncio.wait(told, timeout=20)  # a busy worker takes that long, and longer
            os.kill(worker.pid, signal.SIGCONT)
            outcomes.extend(await asyncio.gather(*told, return_exceptions=True))
            started = await taken(client, in_process.run)

            async def all_came_up() -> bool:
                return len(await exit_statuses(client, started)) == len(started)

            await wait_for(all_came_up, "each process came up, and ended")

    await in_process(code)
    assert in_process.run is not None
    await assert_none_went_on(client, in_process.run)
    assert any(isinstance(each, ChildCancelled | ChildCrashed) for each in outcomes), outcomes


async def taken(client: PrefectClient, parent: FlowRun | None) -> list[FlowRun]:
    """Return the children that a worker has taken, whatever they are now."""
    assert parent is not None
    return [
        run
        for run in await children_of(client, parent)
        if any(state.is_pending() for state in await client.read_flow_run_states(run.id))
    ]


async def test_parent_is_killed_with_children_at_every_stage(client: PrefectClient) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "scheduled", "deployment": "nobody"},
        {"name": "pulling", "deployment": "pulling"},
        {"name": "running", "do": "hold"},
        {"name": "cancelling", "do": "hold"},
        {"name": "ended"},
    ]
    parent = await start("family", steps=steps)
    children = await in_states(
        client, parent, "Scheduled", "Pending", "Running", "Running", "Completed"
    )
    by_name = {run.name: run for run in children}

    async def pulls() -> bool:
        return bool((await client.read_flow_run(by_name["pulling"].id)).infrastructure_pid)

    await wait_for(pulls, "its worker knows the process that pulls, and so can end it")
    await client.set_flow_run_state(by_name["cancelling"].id, Cancelling())
    os.kill(pid_of(await client.read_flow_run(parent.id)), signal.SIGKILL)
    parent = await ended(client, parent)
    assert parent.state_name == "Crashed"
    states = dict(await outcome(client, parent))
    assert states.pop("ended") == "Completed"
    assert states.pop("pulling") in ENDED
    assert states == dict.fromkeys(["scheduled", "running", "cancelling"], "Cancelled")
    pids = [pid_of(run) for run in children if run.infrastructure_pid]

    async def all_gone() -> bool:
        return not any(is_alive(pid) for pid in pids)

    await wait_for(all_gone, "no process is left")


async def test_a_suspended_parent_is_cancelled(client: PrefectClient) -> None:
    parent = await start("patient", steps=[{"name": "a", "do": "hold"}])
    await reach(client, parent.id, "PAUSED")
    await in_states(client, parent, "Running")
    await client.set_flow_run_state(parent.id, Cancelling())
    parent = await ended(client, parent)
    assert parent.state_name == "Cancelled"
    assert await outcome(client, parent) == [("a", "Cancelled")]


async def test_a_run_that_prefect_started_is_a_child_too(
    client: PrefectClient, in_process: InProcess
) -> None:
    async def code() -> None:
        await arun_deployment(
            "step/nobody", parameters={"name": "plain"}, timeout=0, as_subflow=True
        )
        raise RuntimeError("the parent broke")

    with pytest.raises(RuntimeError, match="broke"):
        await in_process(code)
    assert in_process.run is not None
    (run,) = await children_of(client, in_process.run)
    assert run.state_name == "Cancelled"


async def test_a_worker_is_killed_while_it_starts_children(
    tmp_path: Path, in_process: InProcess
) -> None:
    """No other worker takes such a run, whose parent may be on another machine, and waits."""
    with (
        temporary_server(tmp_path) as server,
        server.used(),
    ):
        async with get_client() as client:
            await deploy_faults(server, pending=15)

            async def code() -> None:
                with temporary_worker(server, "engine-tests-local") as worker:
                    run = await child(step, deployment="pulling").submit("lost")
                    await reach(client, run.id, "PENDING")
                    os.killpg(worker.pid, signal.SIGKILL)
                    await asyncio.to_thread(worker.wait, 60)
                with temporary_worker(server, "engine-tests-local"):
                    await run.result()

            with pytest.raises(ChildCrashed, match="Not started within"):
                await in_process(code)


COLD = {"command": ".venv/bin/python -m prefect.engine"}


async def test_a_running_child_is_cancelled_whose_worker_is_gone(
    tmp_path: Path, in_process: InProcess
) -> None:
    """Its process may live: nobody but Prefect's server may call it Cancelled, after a while.

    It started cold: a warm one has a last word.
    """
    own = {"PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "10"}
    with (
        temporary_server(tmp_path, own=own) as server,
        server.used(),
    ):
        await deploy_faults(server)

        async def code() -> None:
            with temporary_worker(server, "engine-tests-local") as worker:
                run = await child(step, job_variables=COLD).submit("lost", "hold")
                async with get_client() as client:
                    await reach(client, run.id, "RUNNING")
                os.killpg(worker.pid, signal.SIGKILL)
                await asyncio.to_thread(worker.wait, 60)
            await run.cancel()
            await run.result()

        with pytest.raises(ChildCancelled, match="cancellation timed out"):
            await in_process(code)


async def test_a_server_that_returns_few_runs_at_once(
    tmp_path: Path, in_process: InProcess
) -> None:
    """What is on later pages is found: earlier children, those that ended, those to cancel."""
    waiting = child(step, deployment="nobody")
    left = child(step, deployment="nobody", leave_running=True)
    told: list[Any] = []
    attempts: list[int] = []

    async def code() -> None:
        attempts.append(1)
        runs = [await waiting.submit(f"waiting {number}") for number in range(12)]
        for number in range(6):
            await waiting.submit(f"orphan {number}")
            await left.submit(f"left {number}")
        assert in_process.run is not None
        async with get_client() as client:
            assert len(await children_of(client, in_process.run)) == 24
            if len(attempts) == 1:
                raise RuntimeError("once")
            for run in runs:
                await client.set_flow_run_state(run.id, Cancelling())
        results = (run.result() for run in runs)
        told.extend(await asyncio.gather(*results, return_exceptions=True))
        raise RuntimeError("always")

    with (
        temporary_server(tmp_path, own={"PREFECT_SERVER_API_DEFAULT_LIMIT": "5"}) as server,
        server.used(),
    ):
        await deploy_faults(server)
        with pytest.raises(RuntimeError, match="always"):
            await in_process(code, retries=1)
        assert in_process.run is not None
        async with get_client() as client:
            states = dict(await outcome(client, in_process.run))
    assert [type(each) for each in told] == [ChildCancelled] * 12
    assert {name for name, state in states.items() if state == "Scheduled"} == {
        f"left {number}" for number in range(6)
    }
    assert sorted(map(str, states.values())) == ["Cancelled"] * 18 + ["Scheduled"] * 6
