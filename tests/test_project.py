"""The project on this machine: prefect.yaml fits the code, and its parents run."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prefect.deployments import arun_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.parent import is_parent
from deployments.project import ROOT, Manifest

ENGINE = [sys.executable, "-m", "deployments"]


async def run_parents(manifest: Manifest) -> None:
    """Run each parent that needs no parameters, until it has completed."""
    for deployment in manifest.deployments:
        flow = deployment.load_flow()
        needed = set(flow.parameters.required or []) - set(deployment.parameters)
        if is_parent(flow) and not needed:
            name = f"{flow.name}/{deployment.name}"
            run = await arun_deployment(name, timeout=600, poll_interval=0.5)
            assert run.state is not None
            assert run.state.is_completed(), f"{name}: {run.state}"


def test_check_finds_nothing() -> None:
    done = subprocess.run([*ENGINE, "check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.anyio
@pytest.mark.usefixtures("worker")
async def test_parents_run_as_processes(deployed: Manifest) -> None:
    await run_parents(deployed)


@pytest.fixture
def stack() -> Iterator[str]:
    """The address of what `make up` starts; in the end no container and no data of it is left."""
    ours = ["--quiet", "--filter", f"label=com.docker.compose.project={Manifest.load().name}"]
    for what in (["ps", "--all"], ["volume", "ls"]):
        found = subprocess.run(["docker", *what, *ours], capture_output=True, text=True, check=True)
        assert not found.stdout, "this needs a machine without the stack: make down ARGS=--volumes"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = os.environ | {"SERVER_PORT": port}
    try:
        subprocess.run([*ENGINE, "up"], cwd=ROOT, env=env, check=True)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        subprocess.run([*ENGINE, "down", "--volumes", "--yes"], cwd=ROOT, env=env, check=True)


@pytest.mark.docker
@pytest.mark.anyio
async def test_parents_run_in_containers(stack: str) -> None:
    with temporary_settings({PREFECT_API_URL: stack}):
        await run_parents(Manifest.load().of_type("docker"))
