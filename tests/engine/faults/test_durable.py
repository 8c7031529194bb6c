"""Durable runs: what loses its process goes on by itself, once, and with what there is already."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment
from prefect.states import Cancelling, Crashed

from deployments import ChildCancelled, ChildTimedOut, child
from deployments.runs import read_all
from deployments.servers import temporary_server, temporary_worker
from deployments.servers._processes import free_port
from tests.engine.faults.conftest import InProcess, deploy_faults, is_alive, pid_of
from tests.engine.faults.lasting import record
from tests.engine.faults.test_parents import heartbeat_of
from tests.engine.waiting import (
    SECONDS,
    children_of,
    describe,
    ended,
    in_states,
    is_in,
    outcome,
    restarts,
    wait_for,
)

POOL = "engine-tests-local"

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Notes:
    """What durable flows write down, and the files that they wait for."""

    def __init__(self, path: Path) -> None:
        self.file, self.go = path / "notes", path / "go"
        self.places: dict[str, Any] = {"file": str(self.file), "go": str(self.go)}

    def let(self, *names: str) -> None:
        for name in names:
            Path(f"{self.go}-{name}").touch()

    def count(self, what: str, name: str) -> int:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return sum(line.startswith(f"{what} {name} ") for line in lines)

    def processes(self, name: str) -> list[int]:
        lines = self.file.read_text().splitlines()
        return [int(line.split()[2]) for line in lines if line.startswith(f"start {name} ")]

    async def has(self, what: str, *names: str, times: int = 1) -> None:
        """Wait until each of these has written so many lines."""

        async def written() -> bool:
            return all(self.count(what, name) >= times for name in names)

        async def there() -> str:
            return self.file.read_text() if self.file.exists() else "nothing"

        await wait_for(written, f"{what} of {', '.join(names)} is written", instead=there)

    def assert_once(self, *names: str, times: int = 1) -> None:
        """Each has run so many times to its end, or its death, and never beside itself."""
        for name in names:
            assert self.count("start", name) == times, self.file.read_text()
            assert self.count("end", name) == 1, self.file.read_text()
        assert "overlap" not in self.file.read_text()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


async def begin(deployment: str, notes: Notes, /, **parameters: Any) -> FlowRun:
    return await arun_deployment(deployment, parameters=notes.places | parameters, timeout=0)


async def kill(client: PrefectClient, run: FlowRun, how: int = signal.SIGKILL) -> None:
    async def started() -> FlowRun | None:
        found = await client.read_flow_run(run.id)
        return found if found.infrastructure_pid else None

    os.kill(pid_of(await wait_for(started, f"a worker has told the process of {run.name}")), how)


async def completed(client: PrefectClient, run: FlowRun, seconds: float = SECONDS) -> Any:
    """Return the result of a run that goes on after a crash."""
    run = await is_in(client, run, "Completed", "Failed", "Cancelled", seconds=seconds)
    assert run.state is not None
    return await run.state.aresult()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("lasting/durable", signal.SIGKILL),
        ("lasting/cold", signal.SIGTERM),
    ],
)
async def test_a_durable_parent_is_killed(
    client: PrefectClient, notes: Notes, name: str, how: signal.Signals
) -> None:
    parent = await begin(name, notes, names=["a", "bb", "ccc"])
    notes.let("a")
    await notes.has("end", "a")
    await notes.has("start", "bb", "ccc")
    await kill(client, parent, how)
    await is_in(client, parent, "Crashed", "AwaitingRetry")
    await notes.has("start", "lasting", times=2)
    notes.let("bb", "ccc")
    assert await completed(client, parent) == [1, 2, 3]
    notes.assert_once("a", "bb", "ccc")
    assert notes.count("task", "prepare") == 1
    (told,) = await restarts(client, parent)
    assert told.startswith("Restart 1 of 3: ")
    assert await outcome(client, parent) == [(name, "Completed") for name in ("a", "bb", "ccc")]


async def test_a_durable_parent_is_killed_while_it_creates_children(
    client: PrefectClient, notes: Notes
) -> None:
    names = [f"child{number:02}" for number in range(60)]
    parent = await begin("lasting/durable", notes, names=names, kind="nobody")

    async def some() -> bool:
        return 0 < len(await children_of(client, parent)) < 60

    await wait_for(some, "some children are created")
    await kill(client, parent)
    await in_states(client, parent, *["Scheduled"] * 60)
    assert notes.count("start", "lasting") == 2
    await client.set_flow_run_state(parent.id, Cancelling())
    assert (await ended(client, parent)).state_name == "Cancelled"
    assert await outcome(client, parent) == [(name, "Cancelled") for name in names]


async def test_a_durable_child_is_killed(client: PrefectClient, notes: Notes) -> None:
    parent = await begin("lasting/durable", notes, names=["a", "bb"])
    await notes.has("start", "a", "bb")
    notes.let("bb")
    (child,) = [run for run in await children_of(client, parent) if run.name == "a"]
    await kill(client, child)
    await notes.has("start", "a", times=2)
    notes.let("a")
    assert await completed(client, parent) == [1, 2]
    notes.assert_once("bb")
    notes.assert_once("a", times=2)
    assert await restarts(client, parent) == []


async def restart_of(client: PrefectClient, run: FlowRun, number: int) -> State[Any]:
    """Wait for a restart, which is due later."""

    async def due() -> State[Any] | None:
        found = (await client.read_flow_run(run.id)).state
        message = (found and found.message) or ""
        return found if message.startswith(f"Restart {number} of 3") else None

    return await wait_for(due, f"restart {number} is due", instead=lambda: describe(client, run))


async def hurry(client: PrefectClient, run: FlowRun, number: int) -> None:
    """Have a restart at once that is due later."""
    state = await restart_of(client, run, number)
    state.state_details.scheduled_time = None
    await client.set_flow_run_state(run.id, state)


async def kill_twice(client: PrefectClient, run: FlowRun, notes: Notes, name: str) -> None:
    """Have a restart that is due in a while."""
    for times in (1, 2):
        await notes.has("start", name, times=times)
        await kill(client, run)
    await restart_of(client, run, 2)


async def test_a_durable_child_dies_four_times(client: PrefectClient, notes: Notes) -> None:
    parent = await arun_deployment(
        "trusting/plain", parameters={"file": str(notes.file), "deaths": 4}, timeout=0
    )

    async def called() -> list[FlowRun]:
        return await children_of(client, parent)

    (child,) = await wait_for(called, "the child is called")
    await hurry(client, child, 2)
    await hurry(client, child, 3)
    parent = await is_in(client, parent, "Failed")
    assert parent.state is not None
    assert "stubborn/durable 'stubborn' crashed" in str(parent.state.message)
    assert "(attempt 4, the last one)" in str(parent.state.message)
    assert notes.count("start", "stubborn") == 4


async def test_a_durable_parent_dies_four_times(client: PrefectClient, notes: Notes) -> None:
    parent = await begin("lasting/durable", notes, names=["a"])
    for attempt in range(1, 5):
        if attempt > 2:
            await hurry(client, parent, attempt - 1)
        await notes.has("start", "lasting", times=attempt)
        await notes.has("start", "a")
        await is_in(client, parent, "Running")
        await kill(client, parent)
        await is_in(client, parent, "Crashed", "AwaitingRetry", "Pending")
    parent = await ended(client, parent)
    assert parent.state_name == "Crashed"
    assert len(await restarts(client, parent)) == 3
    assert await outcome(client, parent) == [("a", "Cancelled")]
    assert notes.count("start", "a") == 1


@pytest.mark.parametrize("dying", [["middle"], ["top", "middle"]], ids="+".join)
async def test_nested_durable_parents_are_killed(
    client: PrefectClient, notes: Notes, dying: list[str]
) -> None:
    top = await begin("over/durable", notes, names=["a", "bb"])
    notes.let("a")
    await notes.has("end", "a")
    await notes.has("start", "bb")
    (middle,) = await children_of(client, top)
    for name in dying:
        await kill(client, {"top": top, "middle": middle}[name])
    again = {"top": "over", "middle": "lasting"}
    await notes.has("start", *(again[name] for name in dying), times=2)
    notes.let("bb")
    assert await completed(client, top) == [1, 2]
    notes.assert_once("a", "bb")
    assert await outcome(client, top) == [("lasting", "Completed")]


async def test_a_durable_run_that_never_started(client: PrefectClient, notes: Notes) -> None:
    """As where an image is not to be had at first."""
    start = notes.file.with_name("start")
    notes.let("late")
    run = await arun_deployment(
        "record/durable",
        parameters=notes.places | {"name": "late", "go": f"{notes.go}-late"},
        job_variables={"command": str(start)},
        timeout=0,
    )
    await restart_of(client, run, 2)  # the first one was in vain, too
    start.write_text("#!/bin/sh\nexec .venv/bin/python -m prefect.engine\n")
    start.chmod(0o700)
    await hurry(client, run, 2)
    assert await completed(client, run) == 4
    assert (await client.read_flow_run(run.id)).run_count == 1
    notes.assert_once("late")


async def test_a_durable_parent_is_killed_while_it_is_cancelled(
    client: PrefectClient, notes: Notes
) -> None:
    parent = await begin("lasting/durable", notes, names=["a"])
    await notes.has("start", "a")
    await client.set_flow_run_state(parent.id, Cancelling())
    (run,) = await children_of(client, parent)
    await is_in(client, run, "Cancelling", "Cancelled")  # by its process, which was told to end
    with contextlib.suppress(ProcessLookupError):
        await kill(client, parent)
    parent = await ended(client, parent)
    assert parent.state_name == "Cancelled"
    assert await outcome(client, parent) == [("a", "Cancelled")]
    assert await restarts(client, parent) == []


async def test_a_durable_run_is_cancelled_before_its_restart(
    client: PrefectClient, notes: Notes
) -> None:
    run = await begin("record/durable", notes, name="a")
    await kill_twice(client, run, notes, "a")
    await client.set_flow_run_state(run.id, Cancelling())
    await is_in(client, run, "Cancelled")


async def test_a_call_is_cancelled_whose_durable_child_crashed(
    client: PrefectClient, in_process: InProcess, notes: Notes
) -> None:
    async def code() -> None:
        run = await child(record, deployment="durable").submit("a", **notes.places)
        await notes.has("start", "a")
        flow_run = await client.read_flow_run(run.id)
        await kill(client, flow_run)
        await is_in(client, flow_run, "Crashed")
        await run.cancel()
        with pytest.raises(ChildCancelled, match="before it was restarted"):
            await run.result()

    await in_process(code)
    assert notes.count("start", "a") == 1


async def test_a_time_limit_counts_on_while_a_durable_child_is_restarted(
    client: PrefectClient, in_process: InProcess, notes: Notes
) -> None:
    async def code() -> None:
        run = await child(record, deployment="durable", timeout=30).submit("a", **notes.places)
        await notes.has("start", "a")
        await kill(client, await client.read_flow_run(run.id))
        with pytest.raises(ChildTimedOut, match="within 30 s"):
            await run.result()

    await in_process(code)
    assert in_process.run is not None
    await in_states(client, in_process.run, "Cancelled")


async def test_a_durable_childs_parent_has_ended(client: PrefectClient, notes: Notes) -> None:
    parent = await begin("lasting/plain", notes, names=["a"], kind="durable")
    await notes.has("start", "a")
    (run,) = await children_of(client, parent)
    await kill(client, run)
    await kill(client, parent)
    await is_in(client, run, "Cancelled")
    assert (await is_in(client, parent, "Crashed")).state_name == "Crashed"
    assert notes.count("start", "a") == 1


async def test_a_crash_is_restarted_by_one(client: PrefectClient, notes: Notes) -> None:
    """Others try so, too, for the same crash; and its hook takes longer than they wait."""
    run = await begin("hooked/durable", notes)
    await notes.has("start", "hooked")
    (process,) = notes.processes("hooked")
    os.kill(process, signal.SIGKILL)  # that of the run itself, so that its worker runs the hook
    await is_in(client, run, "Crashed")
    same = {"parent": str(run.id)}
    others = [
        await arun_deployment(f"cancel-orphans/{POOL}", parameters=same, timeout=0)
        for _ in range(3)
    ]
    await notes.has("start", "hooked", times=2)
    notes.let("hooked")
    assert await completed(client, run) == 6
    assert notes.count("hook", "ends") == 1
    notes.assert_once("hooked", times=2)
    for other in others:
        await is_in(client, other, "Completed")
    assert (await client.read_flow_run(run.id)).run_count == 2
    assert len(await restarts(client, run)) == 1


async def test_what_restarts_is_lost_itself(client: PrefectClient, notes: Notes) -> None:
    parent = await begin("lasting/durable", notes, names=["a"])
    await notes.has("start", "a")
    await kill(client, parent)

    of_parent = FlowRunFilter.model_validate({"name": {"like_": str(parent.id)}})

    async def cleaning() -> FlowRun | None:
        runs = await read_all(client, of_parent)
        return next((run for run in runs if run.state_name == "Running"), None)

    await kill(client, await wait_for(cleaning, "cancel-orphans runs"))
    notes.let("a")
    assert await completed(client, parent) == [1]
    notes.assert_once("a")
    assert notes.count("start", "lasting") == 2


async def test_a_durable_run_is_called_crashed_after_it_completed(
    client: PrefectClient, notes: Notes
) -> None:
    """As Prefect's engine does, where SIGTERM reaches a process that is about to end."""
    notes.go.touch()
    run = await begin("record/durable", notes, name="a")
    assert await completed(client, run) is not None
    await client.set_flow_run_state(run.id, Crashed(message="SIGTERM"), force=True)
    await is_in(client, run, "Completed")
    assert await completed(client, run) == 1
    notes.assert_once("a")


async def test_a_durable_parent_that_was_taken_for_dead(
    client: PrefectClient, notes: Notes
) -> None:
    parent = await begin("lasting/durable", notes, names=["a"])
    await notes.has("start", "a")
    (old,) = notes.processes("lasting")
    os.kill(old, signal.SIGSTOP)
    try:
        await client.set_flow_run_state(parent.id, Crashed(message="No heartbeat"))
        await notes.has("start", "lasting", times=2)
        notes.let("a")
        assert await completed(client, parent) == [1]
        states = await client.read_flow_run_states(parent.id)
    finally:
        os.kill(old, signal.SIGCONT)
    await wait_for(lambda: asyncio.to_thread(lambda: not is_alive(old)), "the old process ends")
    assert len(await client.read_flow_run_states(parent.id)) == len(states)
    notes.assert_once("a")


async def test_a_durable_child_that_was_taken_for_dead(client: PrefectClient, notes: Notes) -> None:
    """It started warm: a cold one has nothing that looks."""
    run = await begin("record/durable", notes, name="a")
    await notes.has("start", "a")
    (old,) = notes.processes("a")
    os.kill(old, signal.SIGSTOP)
    try:
        await client.set_flow_run_state(run.id, Crashed(message="No heartbeat"))
        await notes.has("start", "a", times=2)
    finally:
        os.kill(old, signal.SIGCONT)
    await wait_for(lambda: asyncio.to_thread(lambda: not is_alive(old)), "the old process ends")
    notes.go.touch()
    assert await completed(client, run) == 1
    assert (await client.read_flow_run(run.id)).run_count == 2
    assert notes.count("end", "a") == 1


async def test_a_restart_takes_its_slot_again(client: PrefectClient, notes: Notes) -> None:
    runs = {}
    for name in ("a", "b"):
        places = notes.places | {"name": name, "go": f"{notes.go}-{name}"}
        runs[name] = await arun_deployment("record/one", parameters=places, timeout=0)
        if name == "a":
            await notes.has("start", "a")
    await kill(client, runs["a"])
    (process,) = notes.processes("a")  # what is killed stands for it, and it ends a moment later
    await wait_for(lambda: asyncio.to_thread(lambda: not is_alive(process)), "it has ended")
    notes.let("a", "b")
    assert [await completed(client, run) for run in runs.values()] == [1, 1]
    notes.assert_once("b")
    notes.assert_once("a", times=2)


async def test_a_restart_finds_its_slot_taken(client: PrefectClient, notes: Notes) -> None:
    """With `CANCEL_NEW`, it is cancelled."""
    first = await begin("record/new", notes, name="a")
    await notes.has("start", "a")
    await kill(client, first)
    await is_in(client, first, "Crashed")
    second = await begin("record/new", notes, name="b")
    await is_in(client, first, "Cancelled")
    notes.go.touch()
    assert await completed(client, second) == 1


async def test_a_crash_uses_up_a_retry(client: PrefectClient, notes: Notes) -> None:
    parent = await begin("lasting-again/durable", notes)
    await notes.has("start", "a")
    await kill(client, parent)
    await is_in(client, parent, "AwaitingRetry")
    notes.let("a")
    parent = await is_in(client, parent, "Failed")
    assert (parent.run_count, await outcome(client, parent)) == (2, [("a", "Completed")])
    notes.assert_once("a")


async def test_a_durable_parent_exceeds_its_own_timeout(
    client: PrefectClient, notes: Notes
) -> None:
    parent = await ended(client, await begin("lasting-short/durable", notes))
    assert (parent.state_name, parent.run_count) == ("TimedOut", 1)
    assert {state for _, state in await outcome(client, parent)} <= {"Cancelled", "Crashed"}
    assert await restarts(client, parent) == []


async def test_a_durable_child_crashes_while_its_parent_is_suspended(
    client: PrefectClient, notes: Notes
) -> None:
    parent = await begin("lasting-pause/durable", notes)
    await is_in(client, parent, "Suspended")
    await notes.has("start", "a")
    (run,) = await children_of(client, parent)
    await kill(client, run)
    await notes.has("start", "a", times=2)
    notes.let("a")
    await client.resume_flow_run(parent.id)
    assert await completed(client, parent) == 1
    notes.assert_once("a", times=2)


@pytest.mark.parametrize(
    ("start", "how"),
    [("durable", signal.SIGTERM), ("durable", signal.SIGKILL), ("cold", signal.SIGTERM)],
)
async def test_the_worker_of_durable_runs_ends(
    tmp_path: Path, notes: Notes, start: str, how: signal.Signals
) -> None:
    """A warm run says so; of a cold one, the server hears nothing. Another worker goes on."""
    with temporary_server(tmp_path) as server, server.used():
        await deploy_faults(server, "durable", "cold", "plain", silent=50)
        async with get_client() as client:
            with temporary_worker(server, POOL) as worker:
                parent = await begin(f"lasting/{start}", notes, names=["a", "bb"], kind="plain")
                notes.let("a")
                await in_states(client, parent, "Completed", "Running")
                await notes.has("start", "bb")
                await heartbeat_of(client, parent)
                worker.send_signal(how)
                await asyncio.to_thread(worker.wait, 60)
                if start == "durable":
                    await is_in(client, parent, "Crashed")
            notes.let("bb")
            with temporary_worker(server, POOL):
                assert await completed(client, parent) == [1, 2]
            notes.assert_once("a")
            notes.assert_once("bb", times=2)
            assert len(await restarts(client, parent)) == 1


async def test_the_worker_dies_in_the_hook_of_a_crash(tmp_path: Path, notes: Notes) -> None:
    with temporary_server(tmp_path) as server, server.used():
        # The worker may have the run of `cancel_orphans` by then, which is lost for so long.
        await deploy_faults(server, "durable", pending=30)
        async with get_client() as client:
            with temporary_worker(server, POOL) as worker:
                run = await begin("hooked/durable", notes)
                await notes.has("start", "hooked")
                (process,) = notes.processes("hooked")
                os.kill(process, signal.SIGKILL)
                await notes.has("hook", "begins")
                worker.kill()
                await asyncio.to_thread(worker.wait, 60)
            notes.let("hooked")
            with temporary_worker(server, POOL):
                assert await completed(client, run) == 6
            notes.assert_once("hooked", times=2)


async def test_the_server_restarts_before_a_durable_run_does(tmp_path: Path, notes: Notes) -> None:
    port = free_port()
    with temporary_server(tmp_path, port) as server, server.used():
        await deploy_faults(server, "durable")
        async with get_client() as client:
            with temporary_worker(server, POOL):
                run = await begin("record/durable", notes, name="late")
                await kill_twice(client, run, notes, "late")
    notes.go.touch()
    with temporary_server(tmp_path, port) as server, server.used(), temporary_worker(server, POOL):
        async with get_client() as client:
            assert await completed(client, run) == 4
    notes.assert_once("late", times=3)
