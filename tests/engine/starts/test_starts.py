"""A run that is forked from the warm process is as one in a new interpreter."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment

from deployments.deploy import deploy_manifest
from deployments.deploy._deploy import run_prefect_deploy
from deployments.project import ROOT, Manifest
from deployments.runs import cancel_run
from deployments.servers import TemporaryServer, temporary_worker
from tests.engine.faults.conftest import is_alive, pid_of
from tests.engine.starts.conftest import parent_of, warm_processes
from tests.engine.waiting import wait_for, wait_until

FILE = Path(__file__).with_name("prefect.yaml")
WAYS = ("cold", "warm")

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def worker(prefect_server: TemporaryServer) -> Iterator[subprocess.Popen[bytes]]:
    asyncio.run(deploy_manifest(Manifest.load(FILE), prefect_server.env))
    with temporary_worker(prefect_server, "starts") as process:
        yield process


@pytest.fixture
async def client(worker: subprocess.Popen[bytes]) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


async def run(name: str, env: dict[str, str] | None = None, **parameters: Any) -> FlowRun:
    """Run a deployment until its end."""
    return await arun_deployment(
        name, parameters=parameters, job_variables={"env": env or {}}, poll_interval=0.5
    )


async def result(flow_run: FlowRun) -> Any:
    assert flow_run.state is not None
    return await flow_run.state.aresult()


async def process(way: str = "warm", env: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what a run's process is."""
    flow_run = await run(f"process/{way}", env)
    found: dict[str, Any] = await result(flow_run)
    return found | {"known as": pid_of(flow_run)}


async def test_it_finds_the_same_around_it(client: PrefectClient) -> None:
    cold, warm = [await result(await run(f"surroundings/{way}")) for way in ("cold", "warm")]
    cold["main"].pop("__warningregistry__", None)  # a warning of `python -m`
    for name in cold:
        assert warm[name] == cold[name], name


async def test_it_ends_in_the_same_way(client: PrefectClient, tmp_path: Path) -> None:
    hows = ["return", "raise", "exit", "leave", "interrupt", "segfault", "kill"]

    async def both(how: str) -> list[tuple[Any, ...]]:
        runs = [await run(f"end/{way}", how=how, file=str(tmp_path / how)) for way in WAYS]
        return [told(each.state) for each in runs]

    for how, (cold, warm) in zip(hows, await asyncio.gather(*map(both, hows)), strict=True):
        assert warm == cold, how


def told(state: State[Any] | None) -> tuple[Any, ...]:
    assert state is not None
    return state.type, state.name, state.message


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_the_same_way(
    client: PrefectClient, tmp_path: Path, number: signal.Signals
) -> None:
    def send(flow_run: FlowRun) -> None:
        os.kill(pid_of(flow_run), number)

    warm = await ended_by(client, tmp_path, "warm", send)
    cold = await ended_by(client, tmp_path, "cold", send)
    # What is known of a warm run was killed, and the run itself has a last word.
    parts = 2 if number == signal.SIGKILL else 3
    assert warm[:parts] == cold[:parts]


async def test_it_is_cancelled_in_the_same_way(client: PrefectClient, tmp_path: Path) -> None:
    cold, warm = [await ended_by(client, tmp_path, way, None) for way in WAYS]
    assert warm == cold


async def ended_by(client: PrefectClient, tmp_path: Path, way: str, send: Any) -> tuple[Any, ...]:
    """Return how a run ends that is sent something, or cancelled; then its process is gone."""
    file = tmp_path / way
    started = await arun_deployment(
        f"end/{way}", parameters={"how": "hold", "file": str(file)}, timeout=0
    )
    wait_until(file.exists, "the run holds")
    flow_run = await client.read_flow_run(started.id)
    if send:
        send(flow_run)
    else:
        await cancel_run(client, flow_run.id)
    wait_until(lambda: not is_alive(int(file.read_text())), "the run's process is gone")

    async def final() -> State[Any] | None:
        state = (await client.read_flow_run(flow_run.id)).state
        return state if state and state.is_final() else None

    return told(await wait_for(final, "the run is final"))


async def test_runs_are_forks_of_one_process(client: PrefectClient) -> None:
    one, *others = await asyncio.gather(*(process() for _ in range(4)))
    for other in others:
        assert other["warm"] == one["warm"]
        assert not set(other["random"]) & set(one["random"])
    cold = await process("cold")
    assert len({each["pid"] for each in (one, *others)}) == 4
    assert cold["pid"] == cold["known as"]
    assert one["pid"] != one["known as"]


async def test_clients_of_a_run_read_certificates_once(client: PrefectClient) -> None:
    cold, warm = [(await process(way))["reads of certificates"] for way in WAYS]
    assert cold == 2, "Prefect's clients share them: share_certificates can go"
    assert warm == 0, "share_certificates is in vain"


async def test_what_is_changed_is_seen_by_the_next_run(
    client: PrefectClient, prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    """Its code, `.env`, `prefect.toml` and Prefect's variables."""
    (tmp_path / "deployments").mkdir()
    for name in ("warm_start.py", "_warm_process.py"):
        shutil.copy(ROOT / "deployments" / name, tmp_path / "deployments")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    deployment = {
        "name": "elsewhere",
        "entrypoint": f"{tmp_path}/changing.py:process",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
        "work_pool": {
            "name": "starts",
            "job_variables": {
                "working_dir": str(tmp_path),
                "command": ".venv/bin/python -I -S deployments/warm_start.py",
            },
        },
    }
    file = tmp_path / "prefect.yaml"
    file.write_text(json.dumps({"deployments": [deployment]}))
    code = tmp_path / "changing.py"
    code.write_text((FILE.parent / "flows.py").read_text())
    options = ["--all", "--prefect-file", str(file)]
    await asyncio.to_thread(run_prefect_deploy, prefect_server.env, *options)
    before = await process("elsewhere")
    code.write_text(code.read_text().replace('"pid": os.getpid()', '"pid": 0'))
    (tmp_path / ".env").write_text("PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS=7")
    (tmp_path / "prefect.toml").write_text("[flows]\ndefault_retries = 2")
    after = await process("elsewhere", {"PREFECT_LOGGING_EXTRA_LOGGERS": "mine"})
    assert after["warm"] == before["warm"]
    names = ("pid", "retries", "delay", "loggers")
    assert [before[name] for name in names[1:]] == [0, 0, []]
    assert [after[name] for name in names] == [0, 2, 7, ["mine"]]


async def test_another_environment_starts_cold(
    client: PrefectClient, worker: subprocess.Popen[bytes]
) -> None:
    """Whatever it is, as it could be read before any code of ours; and nothing is kept for it."""
    assert (await process())["region"] is None
    before = warm_processes(worker.pid)
    others = await asyncio.gather(*(process(env={"REGION": str(each)}) for each in range(3)))
    assert [each["region"] for each in others] == ["0", "1", "2"]
    assert [each["pid"] for each in others] == [each["known as"] for each in others]
    assert warm_processes(worker.pid) == before


async def test_a_changed_environment_has_a_new_process(client: PrefectClient) -> None:
    before = (await process())["warm"]
    installed = Path(sysconfig.get_path("purelib")) / "one-more.dist-info"
    installed.mkdir()
    try:
        noticed = await process()
        assert noticed["pid"] == noticed["known as"]
        assert (await process())["warm"] != before
    finally:
        installed.rmdir()
    wait_until(lambda: not is_alive(before), "the earlier process has ended")
    await process()  # notices that, for the next test


async def test_the_warm_process_dies(
    client: PrefectClient, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Its runs go on; the next one has another."""
    held = tmp_path / "held"
    parameters = {"how": "hold", "file": str(held)}
    started = await arun_deployment("end/warm", parameters=parameters, timeout=0)
    wait_until(held.exists, "the run holds")
    warm = parent_of(parent_of(int(held.read_text())))
    assert warm in warm_processes(worker.pid)
    os.kill(warm, signal.SIGKILL)
    assert (await process())["warm"] in {*warm_processes(worker.pid)} - {warm}
    held.unlink()

    async def completed() -> bool:
        return (await client.read_flow_run(started.id)).state_name == "Completed"

    await wait_for(completed, "the run has gone on")


async def test_what_stands_between_a_run_and_its_worker_dies(
    client: PrefectClient, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The run dies with it, and is told."""

    def kill_keeper(_: FlowRun) -> None:
        keeper = parent_of(int((tmp_path / "warm").read_text()))
        assert parent_of(keeper) in warm_processes(worker.pid)
        os.kill(keeper, signal.SIGKILL)

    assert await ended_by(client, tmp_path, "warm", kill_keeper) == await ended_by(
        client, tmp_path, "cold", lambda run: os.kill(pid_of(run), signal.SIGKILL)
    )
