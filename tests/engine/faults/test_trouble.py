"""Trouble on the way between a parent and the server: nothing is lost, nothing done twice."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.events import Event
from prefect.states import Cancelling

from deployments import ChildError, ChildTimedOut, child
from deployments.parent._watch import Watcher
from deployments.servers import TemporaryServer, temporary_server, temporary_worker
from deployments.servers._processes import free_port
from tests.engine.faults.conftest import InProcess, deploy_faults, pid_of
from tests.engine.faults.proxy import FaultyProxy
from tests.engine.faults.steps import step
from tests.engine.waiting import children_of, ended, in_states, outcome, wait_for, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def all_running(client: PrefectClient, parent: InProcess, count: int) -> None:
    async def running() -> bool:
        if parent.run is None:
            return False
        runs = await children_of(client, parent.run)
        return [run.state_name for run in runs] == ["Running"] * count

    await wait_for(running, f"{count} children run")


async def test_burst_of_503_and_slow_answers(proxy: FaultyProxy, in_process: InProcess) -> None:
    async def code() -> list[int]:
        proxy.unavailable_until = time.monotonic() + 5
        calls = [child(step)(name) for name in ("a", "bb", "ccc")]
        proxy.delay = 0.5
        return list(await asyncio.gather(*calls))

    assert await in_process(code) == [1, 2, 3]
    proxy.delay = 0
    async with get_client() as client:
        assert in_process.run is not None
        assert len(await children_of(client, in_process.run)) == 3


async def test_a_timeout_counts_from_the_call(proxy: FaultyProxy, in_process: InProcess) -> None:
    """Also where the run can't be created in that time; what is created later is cancelled."""

    async def code() -> None:
        proxy.unavailable_until = time.monotonic() + 5
        await child(step, deployment="nobody", timeout=1)("late")

    with pytest.raises(ChildTimedOut, match="step was not created within 1 s"):
        await in_process(code)
    async with get_client() as client:
        assert in_process.run is not None
        assert [run.state_name for run in await children_of(client, in_process.run)] in (
            [],
            ["Cancelled"],
        )


@pytest.mark.parametrize("how", ["option", "asyncio", "result"])
async def test_a_time_limit_holds_while_the_server_hangs(
    proxy: FaultyProxy, in_process: InProcess, how: str
) -> None:
    """What was started is cancelled behind the caller, once the server answers."""

    async def code() -> None:
        run = await child(step, deployment="nobody").submit("started")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "option": lambda: child(step, deployment="nobody", timeout=2).submit("late"),
            "asyncio": lambda: asyncio.wait_for(child(step, deployment="nobody")("late"), 2),
            "result": lambda: asyncio.wait_for(run.result(), 2),
        }
        proxy.hangs = True
        call = asyncio.ensure_future(calls[how]())
        done, _ = await asyncio.wait([call], timeout=30)
        proxy.hangs = False
        assert done, "it waits for the server"
        with pytest.raises(TimeoutError):
            await call

    await in_process(code)
    async with get_client() as client:
        assert in_process.run is not None
        runs = await children_of(client, in_process.run)
        assert {run.state_name for run in runs} == {"Cancelled"}


@pytest.mark.parametrize("code_of_close", [1000, 1011], ids=["cleanly", "with an error"])
async def test_websocket_is_dropped(
    proxy: FaultyProxy, in_process: InProcess, tmp_path: Path, code_of_close: int
) -> None:
    go = tmp_path / "go"

    async def code() -> list[int]:
        calls = [child(step)(name, "hold", str(go)) for name in ("a", "bb")]
        results = asyncio.gather(*calls)
        async with get_client() as client:
            await all_running(client, in_process, 2)
            for _ in range(3):
                await asyncio.to_thread(proxy.drop_sockets, code_of_close)
            go.touch()
            return list(await results)

    assert await in_process(code) == [1, 2]


@pytest.mark.parametrize("bulk", [True, False], ids=["in bulk", "one by one"])
async def test_the_same_request_sent_twice(
    proxy: FaultyProxy, in_process: InProcess, bulk: bool
) -> None:
    proxy.twice = ("/create_flow_run", "/create_flow_run/bulk", "/task_runs/")
    if not bulk:  # as on a server that is too old
        proxy.unknown = ("/bulk",)
    names = ["a", "bb", "ccc", "dddd", "eeeee"]

    async def code() -> list[int]:
        return list(await asyncio.gather(*(child(step)(name) for name in names)))

    assert await in_process(code) == [1, 2, 3, 4, 5]
    assert any(path.endswith("/bulk") for _, path in proxy.requests)
    assert in_process.run is not None
    async with get_client() as client:
        assert len(await children_of(client, in_process.run)) == len(names)
        of_parent = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[in_process.run.id]))
        assert len(await client.read_task_runs(task_run_filter=of_parent)) == len(names)


async def test_a_server_cancels_runs_one_by_one(proxy: FaultyProxy, in_process: InProcess) -> None:
    proxy.unknown = ("/bulk_set_state",)  # as on a server that is too old

    async def code() -> None:
        for name in "abc":
            await child(step, deployment="nobody").submit(name)
        raise RuntimeError("the parent broke")

    with pytest.raises(RuntimeError, match="the parent broke"):
        await in_process(code)
    assert any(path.endswith("/bulk_set_state") for _, path in proxy.requests)
    assert in_process.run is not None
    async with get_client() as client:
        states = await outcome(client, in_process.run)
    assert states == [(name, "Cancelled") for name in "abc"]


async def test_a_server_that_stays_away_is_given_up(
    proxy: FaultyProxy, in_process: InProcess
) -> None:
    async def code() -> None:
        async with get_client() as client:
            run = await child(step).submit("held", "hold")
            await all_running(client, in_process, 1)
        proxy.unavailable_until = time.monotonic() + 20
        await run.result()

    with pytest.raises(ChildError, match=r"gave up after .* s without an answer"):
        await in_process(code, give_up_after=1)
    async with get_client() as client:

        async def cancelled() -> bool:
            assert in_process.run is not None
            (run,) = await children_of(client, in_process.run)
            return run.state_name == "Cancelled"

        await wait_for(cancelled, "the child is told, once the server is back")


class Restarted:
    """A server that is stopped and started again at the same address, and a worker.

    Args:
        home: Of the server.
    """

    def __init__(self, home: Path) -> None:
        self.leases = home / "concurrency_leases"
        self._home, self._port = home, free_port()
        self._up = contextlib.ExitStack()

    async def start(self) -> TemporaryServer:
        server = temporary_server(self._home, self._port)
        return await asyncio.to_thread(self._up.enter_context, server)

    async def stop(self) -> None:
        await asyncio.to_thread(self._up.close)

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[PrefectClient]:
        """Use it, with the flows that go wrong, until the end."""
        server = await self.start()
        try:
            with server.used():
                await deploy_faults(server)
                with temporary_worker(server, "engine-tests-local"):
                    async with get_client() as client:
                        yield client
        finally:
            await self.stop()


@pytest.fixture
def restarted(tmp_path: Path) -> Restarted:
    return Restarted(tmp_path)


async def start_scheduled(client: PrefectClient, go: Path) -> FlowRun:
    """Start a parent whose deployment lets one run at a time; its children hold until `go`."""
    options = {"do": "hold", "unless": str(go), "deployment": "local"}
    steps = [{"name": name, **options} for name in ("a", "bb")]
    run = await arun_deployment("family/scheduled", parameters={"steps": steps}, timeout=0)
    await in_states(client, run, "Running", "Running")
    return await client.read_flow_run(run.id)


async def test_server_is_restarted_midway(restarted: Restarted, tmp_path: Path) -> None:
    """Its limits hold, too."""
    async with restarted.used() as client:
        run = await start_scheduled(client, tmp_path / "go")
        await restarted.stop()
        await restarted.start()
        back = time.time()

        async def renewed() -> bool:
            assert (await client.read_flow_run(run.id)).state_name == "Running"
            return any(lease.stat().st_mtime > back for lease in restarted.leases.glob("*-*"))

        await wait_for(renewed, "the parent has renewed its lease")
        second = await arun_deployment("family/scheduled", parameters={"steps": []})
        assert second.state_name == "Cancelled"
        (tmp_path / "go").touch()
        assert (await ended(client, run)).state_name == "Completed"
        assert await outcome(client, run) == [("a", "Completed"), ("bb", "Completed")]
        third = await arun_deployment("family/scheduled", parameters={"steps": []})
        assert third.state_name == "Completed"


async def test_server_is_away_for_longer_than_a_lease(restarted: Restarted, tmp_path: Path) -> None:
    """As told by the lease's time, and by a parent that does not renew it meanwhile."""
    async with restarted.used() as client:
        run = await start_scheduled(client, tmp_path / "go")
        os.kill(pid_of(run), signal.SIGSTOP)
        await restarted.stop()
        for lease in restarted.leases.glob("*.json"):
            lease.write_text(re.sub(r"20\d\d-", "2000-", lease.read_text()))
        await restarted.start()
        await asyncio.to_thread(
            wait_until, lambda: not list(restarted.leases.glob("*-*")), "the lease is gone"
        )
        os.kill(pid_of(run), signal.SIGCONT)
        assert (await ended(client, run)).state_name == "Crashed"
        assert await outcome(client, run) == [("a", "Cancelled"), ("bb", "Cancelled")]
        second = await arun_deployment("family/scheduled", parameters={"steps": []})
        assert second.state_name == "Completed"


async def test_a_missed_event_is_made_up_for_while_others_come(
    client: PrefectClient, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of siblings wake the watcher again and again: it must still read all, now and then."""
    missed: list[str] = []
    on_event = Watcher._on_event

    def lose_some(self: Watcher, event: Event) -> None:
        if event.resource.id not in missed:
            on_event(self, event)

    monkeypatch.setattr(Watcher, "_on_event", lose_some)

    async def code() -> None:
        waiting = child(step, deployment="nobody")
        lost, *siblings = [await waiting.submit(f"{number}") for number in range(31)]
        missed.append(f"prefect.flow-run.{lost.id}")
        told = asyncio.gather(lost.result(), return_exceptions=True)
        await client.set_flow_run_state(lost.id, Cancelling())
        for sibling in siblings:
            await client.set_flow_run_state(sibling.id, Cancelling())
            await asyncio.gather(sibling.result(), return_exceptions=True)
            await asyncio.wait([told], timeout=0.5)  # the next event comes a little later
            if told.done():
                return
        raise AssertionError("all of its siblings were told of first")

    await in_process(code)
