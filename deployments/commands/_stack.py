"""Prefect's server on Postgres and Redis, and its workers, in containers: docker/compose.yaml."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.utilities.importtools import import_object
from prefect.utilities.templating import apply_values
from rich.console import Console

from deployments.commands._manifest import ROOT, Manifest

COMPOSE_FILE = ROOT / "docker" / "compose.yaml"
PORT_VARIABLE = "SERVER_PORT"
SOCKET = Path("/var/run/docker.sock")
PROJECT = "parent-flows"
# Of the containers that a Docker worker starts (DockerWorkerJobConfiguration).
RUNS = ["--filter", "network=parent-flows", "--filter", "label=io.prefect.flow-run-id"]


def up(console: Console) -> None:
    """Build the image, start the stack, and deploy prefect.yaml to it.

    Args:
        console: For the progress.

    Raises:
        RuntimeError: The port is taken; or a command failed, and has said why.
        ValueError: prefect.yaml, or the port, can't be read.
    """
    port = read_port()
    require_port(port)
    api_url = f"http://127.0.0.1:{port}/api"
    with console.status("Building the image ..."):
        image = build_image()
    _compose("up", "--detach", "--remove-orphans", image=image)
    deploy = ["python", "-m", "deployments", "deploy"]
    # Processes of `local` run where that worker is, and need its paths.
    _compose("run", "--rm", "-T", "worker-local", *deploy, "local", image=image)
    _run([sys.executable, *deploy[1:], "docker"], os.environ | {"PREFECT_API_URL": api_url})
    console.print(f"The Prefect UI is at {api_url.removesuffix('/api')}; `make down` stops it.")


def down(volumes: bool) -> None:
    """Stop the stack and its runs.

    Args:
        volumes: Remove its volumes, too.

    Raises:
        RuntimeError: A command failed; it has said why.
    """
    _compose("stop", "worker-docker", "worker-local")
    if runs := _run(["docker", "ps", "--quiet", *RUNS], os.environ, capture=True).split():
        _run(["docker", "stop", *runs], os.environ)
    _compose("down", "--remove-orphans", *(["--volumes"] if volumes else []))


def read_port() -> int:
    """Return the port of this machine for the stack's server.

    Raises:
        ValueError: It is no port.
    """
    text = os.environ.get(PORT_VARIABLE) or "4200"
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**16):
        raise ValueError(f"{PORT_VARIABLE} in .env must be a port, 1 to 65535, not {text!r}")
    return int(text)


def require_port(port: int) -> None:
    """Refuse a port that something other than this stack listens at.

    Raises:
        RuntimeError: It is taken.
    """
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return
    ours = ["--filter", f"label=com.docker.compose.project={PROJECT}"]
    command = ["docker", "ps", "--quiet", *ours, "--filter", f"publish={port}"]
    if not _run(command, os.environ, capture=True):
        raise RuntimeError(
            f"port {port} of this machine is taken, and not by this stack: end what listens there, "
            f"or set {PORT_VARIABLE} in .env (see .env.example)"
        )


def build_image() -> str:
    """Run the build steps of the deployments named `docker`, and return the image's name and tag.

    Raises:
        RuntimeError: The build failed.
    """
    outputs: dict[str, Any] = {}
    # Not Prefect's `run_steps`: that needs a server, which is to run in this very image.
    for step in Manifest.load().named("docker").deployments[0].build:
        ((path, options),) = apply_values(step, outputs).items()
        name, _ = options.pop("id"), options.pop("requires", None)
        try:
            output = import_object(path)(**options)
            outputs[name] = asyncio.run(output) if inspect.iscoroutine(output) else output
        except Exception as error:
            raise RuntimeError(f"prefect.yaml: the build step {name} failed: {error}") from error
    image: str = outputs["build-image"]["image"]
    return image


def _compose(*arguments: str, image: str = "none") -> None:
    """Run Docker Compose, version 2 or 1."""
    command = ["docker", "compose"]
    try:
        subprocess.run([*command, "version"], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        command = ["docker-compose"]
    group = str(SOCKET.stat().st_gid) if SOCKET.exists() else "0"
    env = {"DOCKER_GID": group} | os.environ | {"IMAGE": image}
    _run([*command, "-p", PROJECT, "-f", str(COMPOSE_FILE), *arguments], env)


def _run(command: list[str], env: Mapping[str, str], *, capture: bool = False) -> str:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"`{command[0]}` is not installed: Docker and its Compose are needed")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed, see above")
    return done.stdout or ""
