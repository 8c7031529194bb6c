"""Sixty durable children, while what runs is killed at random: `CHAOS=7` is another order."""

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from deployments.servers import temporary_server, temporary_worker
from tests.engine.faults.conftest import deploy_faults, pid_of
from tests.engine.faults.test_durable import POOL, Notes, begin, completed
from tests.engine.waiting import children_of, processes_of, wait_for, wait_until

SEED = int(os.environ.get("CHAOS") or "0")
# No run is killed more often than it is restarted: once by itself, and with these workers.
WORKERS_END_BY = (signal.SIGTERM, signal.SIGKILL)
KILLED = 6  # runs, under each worker
ENDS_SECONDS = 900

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.chaos]


async def test_durable_runs_are_killed_at_random(tmp_path: Path) -> None:
    dice, notes = random.Random(SEED), Notes(tmp_path)  # noqa: S311
    names = [f"child{number:02}" for number in range(60)]
    notes.let(*names)
    killed: set[str] = set()
    with temporary_server(tmp_path) as server, server.used():
        await deploy_faults(server, "durable", silent=50, pending=60)
        async with get_client() as client:
            parent = await begin("lasting/durable", notes, names=names, seconds=1)
            for how in WORKERS_END_BY:
                with temporary_worker(server, POOL) as worker:
                    for _ in range(KILLED):
                        await kill_one(client, parent, dice, killed)
                    worker.send_signal(how)
                    await asyncio.to_thread(worker.wait, 60)
            with temporary_worker(server, POOL):
                await kill_one(client, parent, dice, killed)
                assert await completed(client, parent, ENDS_SECONDS) == [7] * 60
                children = await children_of(client, parent)
                for run in children:
                    await assert_ended_once(client, run)
            assert sorted(run.name for run in children) == names
            assert "overlap" not in notes.file.read_text()
    wait_until(lambda: not processes_of(str(tmp_path)), "no process is left")


async def kill_one(
    client: PrefectClient, parent: FlowRun, dice: random.Random, killed: set[str]
) -> None:
    """Kill a run that is Running and was not killed yet, or tell it to end."""

    async def running() -> list[FlowRun]:
        runs = [await client.read_flow_run(parent.id), *await children_of(client, parent)]
        return [run for run in runs if run.state_name == "Running" and run.name not in killed]

    await asyncio.sleep(dice.uniform(0, 3))
    runs = await wait_for(running, "a run is Running that was not killed yet")
    victim = dice.choice(sorted(runs, key=lambda run: run.name))
    killed.add(victim.name)
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid_of(victim), dice.choice([signal.SIGTERM, signal.SIGKILL]))


async def assert_ended_once(client: PrefectClient, run: FlowRun) -> None:
    """It was not Running after it had Completed."""
    states = await client.read_flow_run_states(run.id)
    names = [state.name for state in sorted(states, key=lambda state: state.timestamp)]
    assert run.state_name == "Completed", names
    assert "Running" not in names[names.index("Completed") :], (run.name, names)
