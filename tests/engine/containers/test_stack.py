"""Flows that go well and wrong, in containers, on the stack of docker/compose.yaml."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings
from prefect.states import Cancelling

from deployments.runs import DURABLE
from deployments.servers._log import find_errors
from tests.engine.containers.conftest import SECRET, Stack, no_container_is_left
from tests.engine.containers.engine import docker, succeeds
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

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


async def cancel(client: PrefectClient, run: FlowRun) -> None:
    """As the UI does."""
    await client.set_flow_run_state(run.id, Cancelling())


async def kill(_: PrefectClient, run: FlowRun) -> None:
    docker("kill", container_of(run))


async def stop(_: PrefectClient, run: FlowRun) -> None:
    """As an eviction does: the run is told to end."""
    await asyncio.to_thread(docker, "stop", container_of(run))


def container_of(run: FlowRun) -> str:
    assert run.infrastructure_pid is not None
    return run.infrastructure_pid.rpartition(":")[2]


async def start(steps: list[dict[str, Any]], *tags: str) -> FlowRun:
    return await arun_deployment("family/docker", parameters={"steps": steps}, tags=tags, timeout=0)


def result_of(stack: Stack, run: FlowRun) -> str:
    """Return a run's result, which is in a volume that the worker has, too."""
    return docker("exec", stack.container("worker"), "python", "-c", print_result(run))


def release(stack: Stack, name: str) -> None:
    """Let steps that hold until there is a file of this name go on."""
    volume = "engine-tests-results:/results"
    docker("run", "--rm", "--volume", volume, stack.image(), "touch", f"/results/{name}")


async def test_the_parent_runs_its_children_in_containers(
    stack: Stack, client: PrefectClient
) -> None:
    parent = await arun_deployment("measure-all/docker", timeout=0)
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    children = {run.name: run for run in await children_of(client, parent)}
    assert set(children) == {"a x1", "bb x1", "ccc x1", "sum of a"}
    assert all(run.state and run.state.is_completed() for run in children.values())
    assert {run.work_pool_name for run in children.values()} == {"engine-tests-docker"}
    assert len({container_of(run) for run in [parent, *children.values()]}) == 5

    sum_run = children.pop("sum of a")
    graph = await read_graph(client, parent)
    assert graph[sum_run.id] == {run.id for run in children.values()}
    (artifact,) = await client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["sizes"]))
    )
    assert artifact.flow_run_id == sum_run.id
    assert "The sum is **6**" in str(artifact.data)
    await wait_for(no_container_is_left, "its containers are removed")


def test_the_ui_is_served(stack: Stack) -> None:
    with urllib.request.urlopen(stack.api_url.replace("/api", "/")) as page:
        assert page.headers.get_content_type() == "text/html"


async def test_check_finds_nothing_wrong(stack: Stack, client: PrefectClient) -> None:
    arguments = "ARGS=docker --server"
    assert "agree" in stack.make("check", arguments, PREFECT_API_URL=stack.api_url)


async def test_containers_get_what_they_need_and_no_more(
    stack: Stack, client: PrefectClient
) -> None:
    parent = await start([{"name": "a", "do": "hold", "unless": "/results/seen"}])
    (child,) = await in_states(client, parent, "Running")
    (details,) = json.loads(docker("inspect", container_of(child)))
    env = dict(each.split("=", 1) for each in details["Config"]["Env"])
    assert env["PREFECT_API_URL"] == "http://server:4200/api"
    assert env["PREFECT_LOCAL_STORAGE_PATH"] == "/results"
    assert not {"PREFECT_HOME", "PREFECT_PROFILES_PATH", "MY_PASSWORD"} & set(env)
    assert details["Config"]["Image"] == stack.image()
    assert details["Config"]["User"] == "flows"
    assert docker("exec", container_of(child), "id", "--user") == "1000"
    assert details["HostConfig"]["Memory"] == 2**30
    assert details["HostConfig"]["AutoRemove"] is True
    assert details["HostConfig"]["CapDrop"] == ["ALL"]
    assert details["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert set(details["NetworkSettings"]["Networks"]) == {"engine-tests"}
    release(stack, "seen")
    await ended(client, parent)


async def test_nothing_listens_beyond_this_machine(stack: Stack) -> None:
    for container in docker("ps", "--quiet").split():
        (details,) = json.loads(docker("inspect", container))
        ports = details["NetworkSettings"]["Ports"].values()
        published = [binding for bindings in ports for binding in bindings or []]
        assert {binding["HostIp"] for binding in published} <= {"127.0.0.1"}, details["Name"]
        assert details["HostConfig"]["NetworkMode"] != "host"


async def test_children_that_end_badly_are_told_and_leave_no_container(
    stack: Stack, client: PrefectClient
) -> None:
    limits = {"mem_limit": "400m", "memswap_limit": "400m"}
    steps: list[dict[str, Any]] = [
        {"name": "killed", "do": "hold"},
        {"name": "hog", "do": "hog", "job_variables": limits},
        {"name": "raises", "do": "raise"},
        {"name": "cancelled", "do": "hold"},
    ]
    ends = {
        "killed": ("Crashed", "status code 137"),
        "hog": ("Crashed", "memory limits"),
        "raises": ("Failed", "raises broke"),
        "cancelled": ("Cancelled", "cancelled"),
    }
    parent = await start(steps)
    runs = {
        run.name: run
        for run in await in_states(client, parent, "Crashed", "Failed", "Running", "Running")
    }
    await kill(client, runs["killed"])
    await cancel(client, runs["cancelled"])
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_failed()
    assert "4 of 4 children failed: " in str(parent.state.message)
    for run in await children_of(client, parent):
        state, message = ends[run.name]
        assert run.state is not None
        assert (run.state.name, message in str(run.state.message)) == (state, True), run.state
        assert f"step/docker '{run.name}'" in str(parent.state.message)
    await wait_for(no_container_is_left, "its containers are removed")


async def test_a_cancelled_parent_leaves_no_container(stack: Stack, client: PrefectClient) -> None:
    parent = await start([{"name": name, "do": "hold"} for name in "abc"])
    await in_states(client, parent, "Running", "Running", "Running")
    await cancel(client, parent)
    parent = await ended(client, parent)
    assert parent.state_name == "Cancelled"
    assert {state for _, state in await outcome(client, parent)} == {"Cancelled"}
    await wait_for(no_container_is_left, "its containers are removed")


async def test_a_killed_parent_leaves_no_container(stack: Stack, client: PrefectClient) -> None:
    parent = await start([{"name": name, "do": "hold"} for name in "ab"])
    await in_states(client, parent, "Running", "Running")
    await kill(client, await client.read_flow_run(parent.id))
    parent = await ended(client, parent)
    assert parent.state_name == "Crashed"
    assert {state for _, state in await outcome(client, parent)} == {"Cancelled"}
    await wait_for(no_container_is_left, "its containers are removed")


@pytest.mark.parametrize("harm", [kill, stop])
async def test_a_durable_parent_goes_on_in_another_container(
    stack: Stack, client: PrefectClient, harm: Callable[[PrefectClient, FlowRun], Awaitable[None]]
) -> None:
    file = f"durable-{harm.__name__}"
    steps = [{"name": "a"}, {"name": "bb", "do": "hold", "unless": f"/results/{file}"}]
    parent = await start(steps, DURABLE)
    before = await in_states(client, parent, "Completed", "Running")
    await harm(client, await client.read_flow_run(parent.id))
    await is_in(client, parent, "Crashed")
    await is_in(client, parent, "Running")
    release(stack, file)
    parent = await ended(client, parent)
    assert result_of(stack, parent) == "[1, 2]"
    assert parent.run_count == 2
    (told,) = await restarts(client, parent)
    assert told.startswith("Restart 1 of 3: ")
    after = await children_of(client, parent)
    assert {container_of(run) for run in after} == {container_of(run) for run in before}
    assert [run.run_count for run in after] == [1, 1]
    await wait_for(no_container_is_left, "its containers are removed")


async def test_a_durable_run_waits_for_its_image(stack: Stack, client: PrefectClient) -> None:
    image = "nowhere.invalid/late:1"
    run = await arun_deployment(
        "step/docker",
        parameters={"name": "a"},
        job_variables={"image": image},
        tags=[DURABLE],
        timeout=0,
    )
    assert (await is_in(client, run, "Crashed")).run_count == 0
    docker("tag", stack.image(), image)
    try:
        run = await is_in(client, run, "Completed")
    finally:
        docker("image", "rm", image)
    assert result_of(stack, run) == "1"
    assert (await restarts(client, run))[0].startswith("Restart 1 of 3: ")


@pytest.mark.parametrize("service", ["server", "services"])
def test_no_error_in_the_log(stack: Stack, service: str) -> None:
    """Before the tests that restart things, which tell of lost connections."""
    command = ["docker", "logs", stack.container(service)]
    log = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
    assert find_errors(log) == []


async def test_services_are_restarted_midway(stack: Stack, client: PrefectClient) -> None:
    """A child ends while each of them comes back."""
    services = ["server", "postgres", "redis"]
    parent = await start(
        [{"name": name, "do": "hold", "unless": f"/results/{name}"} for name in services]
    )
    runs = {run.name: run for run in await in_states(client, parent, *["Running"] * 3)}
    for service in services:
        await asyncio.to_thread(docker, "restart", stack.container(service))
        release(stack, service)
        await is_in(client, runs[service], "Completed")
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    assert await outcome(client, parent) == [(name, "Completed") for name in sorted(services)]
    await wait_for(no_container_is_left, "its containers are removed")


async def test_the_image_holds_no_secret_and_is_not_of_root(stack: Stack) -> None:
    image = stack.image()
    (details,) = json.loads(docker("image", "inspect", image))
    assert details["Config"]["User"] == "flows"
    assert SECRET not in json.dumps(details) + docker("history", "--no-trunc", image)
    show = "ls -A . tests/engine; grep -rl a-secret /app; :"
    found = docker("run", "--rm", image, "sh", "-c", show)
    assert ".env" not in found.split()
    assert ".git" not in found.split()
    assert SECRET not in found


async def test_a_change_of_the_code_keeps_the_layer_of_the_lock(stack: Stack) -> None:
    before = layers(stack.image())
    stack.commit("tests/engine/more.py", "")
    stack.make("deploy", "ARGS=docker", PREFECT_API_URL=stack.api_url)
    after = layers(stack.image())
    assert before != after
    assert before[:-1] == after[:-1]


def layers(image: str) -> list[str]:
    (details,) = json.loads(docker("image", "inspect", image))
    found: list[str] = details["RootFS"]["Layers"]
    return found


async def test_the_image_is_what_git_tracks(stack: Stack) -> None:
    (stack.clone / "ignored.log").touch()
    (stack.clone / "fresh.py").touch()
    (stack.clone / "tests/engine/more.py").write_text("changed = True")
    try:
        assert f"built: image {stack.image()}-dirty\n" in stack.make(
            "deploy", "ARGS=docker", PREFECT_API_URL=stack.api_url
        )
    finally:
        (stack.clone / "fresh.py").unlink()
        (stack.clone / "tests/engine/more.py").write_text("")
    show = ["sh", "-c", "ls -A; cat tests/engine/more.py"]
    found = docker("run", "--rm", f"{stack.image()}-dirty", *show).splitlines()
    assert found[-1] == "changed = True"
    assert not {"ignored.log", "fresh.py"} & set(found)


async def test_what_the_image_lacks_is_told_before_anything_is_deployed(
    stack: Stack, client: PrefectClient
) -> None:
    words = stack.clone / "tests/engine/words.py"
    before = words.read_text()
    (stack.clone / "beside").mkdir()
    (stack.clone / "beside/__init__.py").touch()
    there = (await client.read_deployment_by_name("measure/docker")).job_variables["image"]
    try:
        for module, what in (
            ("beside", "`git add beside`, or take it out of .dockerignore"),
            ("pytest", "add it to pyproject.toml, then `make lock`"),
        ):
            words.write_text(f"{before}\nimport {module}\n")
            said = stack.fails("deploy", "ARGS=docker", PREFECT_API_URL=stack.api_url)
            assert f"error: in the image {stack.image()}-dirty:\n" in said
            place = f"tests/engine/words.py:{before.count(chr(10)) + 2}: ModuleNotFoundError: "
            assert f"{place}No module named '{module}': {what}\n" in said
            assert "deployment measure/docker" not in said
    finally:
        words.write_text(before)
        shutil.rmtree(stack.clone / "beside")
    assert (await client.read_deployment_by_name("measure/docker")).job_variables["image"] == there
    assert docker("ps", "--all", "--quiet", "--filter=status=exited") == ""


async def test_an_image_that_can_not_be_built_is_told(stack: Stack) -> None:
    base = "nowhere.invalid/base:1"
    for arguments in (["up"], ["deploy", "ARGS=docker"]):
        said = stack.fails(*arguments, BASE_IMAGE=base, PREFECT_API_URL=stack.api_url)
        assert f"error: prefect.yaml: the image {stack.image()} can't be built: " in said
        assert "nowhere.invalid" in said
        assert "Traceback" not in said


async def test_a_pipeline_keeps_its_image(stack: Stack, client: PrefectClient) -> None:
    """A parent is in the image that was deployed before, as one that is under way."""
    before = stack.image()
    stack.commit("tests/engine/more.py", "more = True")
    stack.make("deploy", "ARGS=docker", PREFECT_API_URL=stack.api_url)
    parent = await arun_deployment(
        "grandparent/docker",
        parameters={"steps": [{"name": "a", "do": "hold", "unless": "/results/kept"}]},
        job_variables={"image": before},
        timeout=0,
    )
    (family,) = await in_states(client, parent, "Running")
    (child,) = await in_states(client, family, "Running")
    for run in (family, child):
        (details,) = json.loads(docker("inspect", container_of(run)))
        assert details["Config"]["Image"] == before
    release(stack, "kept")
    parent = await ended(client, parent)
    assert parent.state_name == "Completed"


def test_plain_compose(stack: Stack) -> None:
    variables = stack.clone / "docker" / ".env"
    assert variables.stat().st_mode & 0o777 == 0o600
    command = "docker-compose" if not succeeds("compose", "version") else "docker compose"
    compose = [*command.split(), "-f", "docker/compose.yaml"]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*compose, *arguments],
            cwd=stack.clone,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    of_stack = ("ps", "--quiet", "--no-trunc", "--filter=label=com.docker.compose.project")
    before = set(docker(*of_stack).split())
    assert set(run("ps", "--quiet").split()) == before
    assert run("exec", "-T", "postgres", "pg_isready").endswith("accepting connections\n")
    assert "Worker" in run("logs", "worker")
    run("restart", "redis")
    run("up", "--detach")
    assert set(docker(*of_stack).split()) == before


def test_another_checkout_does_not_take_over(stack: Stack, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(stack.clone, other, symlinks=True)
    before = docker("ps", "--quiet").split()
    for command in ("up", "down"):
        said = stack.fails("-C", str(other), command)
        assert f"a stack named engine-tests was started from {stack.clone}/docker: " in said
    assert docker("ps", "--quiet").split() == before


def test_another_password_is_refused(stack: Stack) -> None:
    said = stack.fails("up", POSTGRES_PASSWORD="another")  # noqa: S106
    assert "error: POSTGRES_PASSWORD in .env is not that of the database in volume " in said
    with urllib.request.urlopen(f"{stack.api_url}/ready") as answer:
        assert answer.status == 200


async def test_down_tells_of_its_runs_and_up_of_a_taken_port_and_authentication_is_one_variable(
    stack: Stack, client: PrefectClient
) -> None:
    """Last, since the clients of the other tests have no password."""
    parent = await start([{"name": name, "do": "hold"} for name in "ab"])
    runs = [parent, *await in_states(client, parent, "Running", "Running")]
    said = stack.make("down")
    assert "Stopped, and now Crashed or Cancelled: a, b, family\n" in said

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = stack.fails("up", SERVER_PORT=str(port))
        assert f"127.0.0.1:{port}: bind: address already in use" in said

    password = {"PREFECT_API_AUTH_STRING": "admin:of-a-test"}
    stack.make("up", **password)
    with pytest.raises(PrefectHTTPStatusError, match="401"):
        await client.request("GET", "/admin/version")
    arguments = "ARGS=docker --server"
    assert "agree" in stack.make("check", arguments, PREFECT_API_URL=stack.api_url, **password)
    with temporary_settings({PREFECT_API_AUTH_STRING: password["PREFECT_API_AUTH_STRING"]}):
        async with get_client() as client:
            for run in runs:
                run = await client.read_flow_run(run.id)
                assert run.state is not None
                assert run.state.is_crashed() or run.state.is_cancelled(), run.state
            (worker,) = await client.read_workers_for_work_pool("engine-tests-docker")
            assert worker.name == "engine-tests"
