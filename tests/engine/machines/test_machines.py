"""Two machines that have nothing in common but what docs/machines.md tells of."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment

from deployments.runs import DURABLE
from deployments.servers._log import find_errors
from tests.engine.containers.engine import docker
from tests.engine.machines.conftest import Site
from tests.engine.machines.machine import execute
from tests.engine.machines.services import REGISTRY, SECRETS
from tests.engine.waiting import (
    children_of,
    ended,
    in_states,
    is_in,
    outcome,
    print_result,
    read_graph,
    restarts,
    wait_for,
)

pytestmark = [pytest.mark.machines, pytest.mark.anyio]


def worker_of(run: FlowRun) -> str:
    """Return the worker that took a run, as its label says."""
    return str(run.labels["prefect.worker.name"])


async def test_children_spread_over_the_machines(site: Site, client: PrefectClient) -> None:
    words = [letter * 3 for letter in "abcdefghijkl"]
    parent = await arun_deployment("measure-all/docker", parameters={"words": words}, timeout=0)
    parent = await ended(client, parent, 600)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    children = await children_of(client, parent)
    assert len(children) == 13
    assert all(run.state and run.state.is_completed() for run in children)
    for run in children:
        assert run.state is not None
        assert getattr(run.state.data, "storage_block_id", None), "its result is in the store"

    workers = {worker_of(run) for run in [parent, *children]}
    assert workers == {"machine-1-docker", "machine-2-docker"}
    containers = [machine.containers() for machine in site.machines]
    assert all(containers)
    assert not set.intersection(*containers)

    (add_up,) = (run for run in children if run.name == "sum of aaa")
    graph = await read_graph(client, parent)
    assert graph[add_up.id] == {run.id for run in children} - {add_up.id}
    (artifact,) = await client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["sizes"]))
    )
    assert "The sum is **36**" in str(artifact.data)


async def test_a_process_worker_clones_the_deployed_commit(
    site: Site, client: PrefectClient
) -> None:
    parent = await arun_deployment("measure-all/local", timeout=0)
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    children = await children_of(client, parent)
    assert len(children) == 4
    assert {run.work_pool_name for run in children} == {"engine-tests-local"}


def test_check_finds_nothing_wrong(site: Site) -> None:
    assert "agree" in site.make("check", "ARGS=docker local --server")


def test_a_commit_that_workers_can_not_clone_is_not_deployed(site: Site) -> None:
    manifest = site.project / "prefect.yaml"
    text = manifest.read_text()
    manifest.write_text(text + "# not committed\n")
    try:
        told = site.make("deploy", "ARGS=local", fails=True)
    finally:
        manifest.write_text(text)
    assert "workers clone the commit: commit and push first" in told


async def test_check_names_a_block_that_is_missing(site: Site, client: PrefectClient) -> None:
    block = await client.read_block_document_by_name("results", "s3-bucket")
    await client.delete_block_document(block.id)
    try:
        told = site.make("check", "ARGS=docker local --server", fails=True)
    finally:
        site.save_results_block()
    assert "block s3-bucket/results is not on" in told


async def start(steps: list[dict[str, Any]], *tags: str) -> FlowRun:
    return await arun_deployment("family/docker", parameters={"steps": steps}, tags=tags, timeout=0)


async def messages_of(client: PrefectClient, *runs: FlowRun) -> str:
    """Return all that runs have logged."""
    of_runs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id for run in runs]))
    return "\n".join(log.message for log in await client.read_logs(of_runs, limit=200))


async def test_wrong_credentials_name_the_block(site: Site, client: PrefectClient) -> None:
    site.save_results_block("not-the-secret")
    try:
        parent = await ended(client, await start([{"name": "a"}]))
    finally:
        site.save_results_block()
    assert parent.state is not None
    assert parent.state.is_failed()
    log = await messages_of(client, parent, *await children_of(client, parent))
    (line, *_) = (line for line in log.splitlines() if "block s3-bucket/results" in line)
    assert "SignatureDoesNotMatch" in line
    assert "not-the-secret" not in log + site.logs()


async def test_the_object_store_is_away_for_30_seconds(site: Site, client: PrefectClient) -> None:
    site.store.stop()
    away_until = time.monotonic() + 30
    try:
        parent = await start([{"name": name} for name in "ab"])

        async def back() -> bool:
            return time.monotonic() > away_until

        await in_states(client, parent, "Running", "Running")
        await wait_for(back, "the object store comes back")
    finally:
        site.store.start()
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    assert await outcome(client, parent) == [("a", "Completed"), ("b", "Completed")]


async def test_the_registry_is_away(site: Site, client: PrefectClient) -> None:
    site.push("more.py", "")
    site.make("deploy", "ARGS=docker")
    site.registry.stop()
    try:
        parent = await ended(client, await start([{"name": "a"}]))
    finally:
        site.registry.start()
    assert parent.state is not None
    assert parent.state.is_crashed(), parent.state
    assert REGISTRY in str(parent.state.message)
    assert "connection refused" in str(parent.state.message)


def kill_server(site: Site) -> None:
    """Kill one of two, as a crash: what Docker is told to kill, it does not start again."""
    container = site.stack.container("server").split()[0]
    init = docker("inspect", "--format={{.State.Pid}}", container)
    (server,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    os.kill(int(server), signal.SIGKILL)


async def test_one_of_two_servers_is_killed(site: Site, client: PrefectClient) -> None:
    parent = await start(
        [{"name": name, "do": "hold", "unless": "/results/server"} for name in "ab"]
    )
    await in_states(client, parent, "Running", "Running")
    kill_server(site)
    site.release("server")
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    assert await outcome(client, parent) == [("a", "Completed"), ("b", "Completed")]


async def test_a_machine_dies(site: Site, client: PrefectClient) -> None:
    steps: list[dict[str, Any]] = [{"name": name} for name in ("done", "and done")]
    steps += [{"name": name, "do": "hold", "unless": "/results/dead"} for name in "abcd"]
    parent = await start(steps, DURABLE)
    runs = await in_states(client, parent, "Completed", "Completed", *["Running"] * 4)
    parent = await client.read_flow_run(parent.id)
    (dead,) = (each for each in site.machines if worker_of(parent) == f"{each.name}-docker")
    dead.die()
    await is_in(client, parent, "Crashed")
    await is_in(client, parent, "Running")
    site.release("dead")
    parent = await is_in(client, parent, "Completed")
    assert worker_of(parent) != f"{dead.name}-docker"
    (told,) = await restarts(client, parent)
    assert told.startswith("Restart 1 of 3: No heartbeat")
    assert site.python(print_result(parent)) == "[4, 8, 1, 1, 1, 1]"

    children = await children_of(client, parent)
    completed = {run.id: run for run in children if run.state and run.state.is_completed()}
    assert sorted(run.name for run in completed.values()) == sorted(each["name"] for each in steps)
    assert all(run.run_count == 1 for run in children)
    lost = {run.id for run in runs if worker_of(run) == f"{dead.name}-docker"}
    lost -= {run.id for run in runs if run.state and run.state.is_completed()}
    assert set(completed) & {run.id for run in runs} == {run.id for run in runs} - lost
    anew = set(completed) - {run.id for run in runs}
    assert all(worker_of(completed[run_id]) != f"{dead.name}-docker" for run_id in anew)


def test_no_secret_is_anywhere(site: Site) -> None:
    image = docker("image", "ls", "--quiet", f"{REGISTRY}/tests/project").split()[0]
    logs = site.logs()
    for secret in SECRETS:
        assert secret not in logs
        assert secret not in docker("history", "--no-trunc", image)
        found = execute("git", "log", "--all", "-p", f"-S{secret}", "--oneline", cwd=site.project)
        assert found == "", found
    query = "select data::text from block_document union select value::text from configuration"
    psql = f"PGPASSWORD=$POSTGRES_PASSWORD psql --username=prefect --tuples-only -c '{query}'"
    stored = docker("exec", site.stack.container("postgres"), "sh", "-c", psql)
    assert stored
    assert not any(secret in stored for secret in SECRETS)


def test_the_servers_logged_no_error(site: Site) -> None:
    """But for what the one that was killed left behind."""
    for service in ("server", "services"):
        for container in site.stack.container(service).split():
            command = ["docker", "logs", container]
            log = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
            assert find_errors(log) == []
