"""Flows that go well and wrong, in containers, on the stack of docker/compose.yaml."""

import asyncio
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.states import Cancelling

from deployments.servers._log import find_errors
from tests.engine.containers.conftest import SECRET, Stack, no_container_is_left
from tests.engine.containers.engine import docker
from tests.engine.waiting import children_of, ended, in_states, outcome, read_graph, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.anyio]


async def cancel(client: PrefectClient, run: FlowRun) -> None:
    """As the UI does."""
    await client.set_flow_run_state(run.id, Cancelling())


async def kill(_: PrefectClient, run: FlowRun) -> None:
    docker("kill", container_of(run))


def container_of(run: FlowRun) -> str:
    assert run.infrastructure_pid is not None
    return run.infrastructure_pid.rpartition(":")[2]


async def start(steps: list[dict[str, Any]], **parameters: Any) -> FlowRun:
    return await arun_deployment(
        "family/docker", parameters={"steps": steps, **parameters}, timeout=0
    )


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


async def test_a_parent_as_a_process_of_the_stack(stack: Stack, client: PrefectClient) -> None:
    parent = await arun_deployment("measure-all/local", timeout=0)
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state


async def test_check_finds_nothing_wrong(stack: Stack, client: PrefectClient) -> None:
    arguments = "ARGS=docker --server"  # the results of `local` are in a volume, too
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


@pytest.mark.parametrize(
    ("step", "harm", "state", "message"),
    [
        ({"do": "hold"}, kill, "Crashed", "status code 137"),
        (
            {"do": "hog", "job_variables": {"mem_limit": "400m", "memswap_limit": "400m"}},
            None,
            "Crashed",
            "memory limits",
        ),
        ({"do": "raise"}, None, "Failed", "a broke"),
        ({"do": "hold"}, cancel, "Cancelled", "cancelled"),
    ],
    ids=["killed", "out of memory", "raises", "cancelled"],
)
async def test_a_child_that_ends_badly_is_told_and_leaves_no_container(
    stack: Stack,
    client: PrefectClient,
    step: dict[str, Any],
    harm: Callable[[PrefectClient, FlowRun], Awaitable[None]] | None,
    state: str,
    message: str,
) -> None:
    parent = await start([{"name": "a", **step}])
    if harm:
        (child,) = await in_states(client, parent, "Running")
        await harm(client, child)
    parent = await ended(client, parent)
    (child,) = await children_of(client, parent)
    assert child.state is not None
    assert (child.state.name, message in str(child.state.message)) == (state, True), child.state
    assert parent.state is not None
    assert parent.state.is_failed()
    assert "1 of 1 children failed: step/docker 'a'" in str(parent.state.message)
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


@pytest.mark.parametrize("service", ["server", "services"])
def test_no_error_in_the_log(stack: Stack, service: str) -> None:
    """Before the tests that restart things, which tell of lost connections."""
    command = ["docker", "logs", stack.container(service)]
    log = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
    assert find_errors(log) == []


@pytest.mark.parametrize("service", ["server", "postgres", "redis"])
async def test_a_service_is_restarted_midway(
    stack: Stack, client: PrefectClient, service: str
) -> None:
    steps = [{"name": name, "do": "hold", "unless": f"/results/{service}"} for name in "ab"]
    parent = await start(steps)
    await in_states(client, parent, "Running", "Running")
    await asyncio.to_thread(docker, "restart", stack.container(service))
    release(stack, service)
    parent = await ended(client, parent)
    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    assert await outcome(client, parent) == [("a", "Completed"), ("b", "Completed")]
    await wait_for(no_container_is_left, "its containers are removed")


async def test_the_image_holds_no_secret_and_is_not_of_root(stack: Stack) -> None:
    image = stack.image()
    assert image.startswith("engine-tests:")
    assert not image.endswith("-dirty")
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


def test_compose_tells_a_taken_port(stack: Stack) -> None:
    """It has stopped the server then: the next test starts it again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=f"127.0.0.1:{port}: bind: address already in use"):
            stack.make("up", SERVER_PORT=str(port))


def test_basic_authentication_is_one_variable(stack: Stack) -> None:
    """Last, since the clients of the other tests have no password."""
    password = {"PREFECT_API_AUTH_STRING": "admin:of-a-test"}
    stack.make("up", **password)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{stack.api_url}/admin/version")
    arguments = "ARGS=docker --server"
    assert "agree" in stack.make("check", arguments, PREFECT_API_URL=stack.api_url, **password)
