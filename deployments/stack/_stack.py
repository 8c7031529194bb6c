"""Prefect's server on Postgres and Redis, and its workers, in containers: docker/compose.yaml."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect.deployments.steps.core import StepExecutionError, run_steps
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from deployments.project import ROOT, Manifest

SERVER = ("server", "services")  # of docker/compose.yaml, which depend on the rest
SOCKET = Path("/var/run/docker.sock")
LABEL = "io.prefect.flow-run-id"  # of what a Docker worker starts (DockerWorkerJobConfiguration)


def up(manifest: Manifest, console: Console, server: bool) -> None:
    """Build the image, start the stack, and deploy prefect.yaml to it.

    With `server`, start the server and what it needs alone, no workers, and deploy nothing.

    Raises:
        CalledProcessError: A command failed, and has said why.
        RuntimeError: There is no Docker, or the image can't be built.
        ValueError: prefect.yaml, or a variable of .env, can't be read.
    """
    _require_docker()
    processes, containers = manifest.of_type("process"), manifest.of_type("docker")
    variables = read_variables(manifest.name)
    # Not SERVER_URL: what listens there may need these servers first.
    api_url = f"http://127.0.0.1:{variables['SERVER_PORT']}/api"
    with console.status("Building the image ..."):
        variables["IMAGE"] = build_image(containers.deployments[0].build, api_url)
    # One migrates the database, and is healthy, before there are more: two at once would collide.
    for servers in dict.fromkeys(["1", variables["SERVERS"]]):
        scale = ["--scale", f"server={servers}", *(SERVER if server else ())]
        _compose(variables, "up", "--detach", "--remove-orphans", *scale)
    if not server:
        deploy = ["-m", "deployments", "deploy"]
        # Processes run where their worker is, and need its paths.
        worker = _worker_of(manifest.name, processes.deployments[0].work_pool.name)
        _compose(variables, "run", "--rm", "-T", worker, "python", *deploy, *processes.names)
        env = os.environ | {"PREFECT_API_URL": api_url}
        subprocess.run([sys.executable, *deploy, *containers.names], cwd=ROOT, env=env, check=True)
    console.print(f"The Prefect UI is at {variables['SERVER_URL']}; `make down` stops it.")


def down(volumes: bool) -> None:
    """Stop the stack and its runs, and remove its volumes, if that is asked for.

    Raises:
        CalledProcessError: A command failed; it has said why.
        RuntimeError: There is no Docker.
        ValueError: prefect.yaml, or a variable of .env, can't be read.
    """
    _require_docker()
    manifest = Manifest.load()
    variables = read_variables(manifest.name)
    pools = manifest.definitions.work_pools.items()
    workers = [
        _worker_of(manifest.name, name)
        for name, pool in pools
        if pool.type in ("process", "docker")
    ]
    _compose(variables, "stop", *workers)
    filters = ["--filter", f"network={manifest.name}", "--filter", f"label={LABEL}"]
    if runs := subprocess.check_output(["docker", "ps", "--quiet", *filters], text=True).split():
        subprocess.run(["docker", "stop", *runs], check=True)
    _compose(variables, "down", "--remove-orphans", *(["--volumes"] if volumes else []))


def _worker_of(project: str, pool: str) -> str:
    """Return the service of a work pool's worker in docker/compose.yaml."""
    return f"worker-{pool.removeprefix(f'{project}-')}"


def read_variables(project: str) -> dict[str, str]:
    """Return the variables of docker/compose.yaml: a project's name, and what .env tells."""
    if not re.fullmatch("[a-z0-9][a-z0-9_-]*", project):  # else: "Docker is not running"
        raise ValueError(
            f"prefect.yaml: name: for Docker it must be of a-z, 0-9, - and _, not {project!r}"
        )
    port = _read("SERVER_PORT", "4200", "[1-9][0-9]{0,4}", "a port")
    servers = _read("SERVERS", "1", "[1-9][0-9]{0,2}", "a number")
    url = "like https://prefect.example.com, without /api"
    return {
        "COMPOSE_PROJECT_NAME": project,
        "IMAGE": "none",
        "SERVER_PORT": port,
        "SERVERS": servers,
        "SERVER_PORTS": port if servers == "1" else f"{port}-{int(port) + int(servers) - 1}",
        "SERVER_URL": _read("SERVER_URL", f"http://127.0.0.1:{port}", r"https?://[^\s/]+/?", url),
    }


def _read(variable: str, default: str, pattern: str, what: str) -> str:
    text = os.environ.get(variable) or default
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{variable} in .env must be {what}, not {text!r}")
    return text.rstrip("/")


def build_image(steps: list[dict[str, Any]], api_url: str) -> str:
    """Run the build steps of a deployment in containers, and return the image's name and tag."""
    try:
        # Nothing answers there yet, or is asked, but for steps that name a block or a variable.
        with temporary_settings({PREFECT_API_URL: api_url}):
            outputs = asyncio.run(run_steps(steps, print_function=lambda *_: None))
    except StepExecutionError as error:
        raise RuntimeError(f"prefect.yaml: {error}: {error.__cause__}") from error
    image: str = outputs["build-image"]["image"]
    return image


def _require_docker() -> None:
    if shutil.which("docker") is None:
        raise RuntimeError("`docker` is not installed: Docker and its Compose are needed")


def _compose(variables: dict[str, str], *arguments: str) -> None:
    """Run Docker Compose, version 2 or 1."""
    command = ["docker", "compose"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        command = ["docker-compose"]
    group = str(SOCKET.stat().st_gid) if SOCKET.exists() else "0"
    env = {"DOCKER_GID": group} | os.environ | variables
    command += ["-f", "docker/compose.yaml", *arguments]
    subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, check=True)
