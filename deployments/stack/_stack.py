"""Prefect's server on Postgres and Redis, and its workers, in containers: docker/compose.yaml."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
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

from deployments.check import find_network, find_results_volume
from deployments.project import ROOT, Manifest

COMPOSE_FILE = Path("docker") / "compose.yaml"
WORKER = "worker-"  # and its work pool: the name of its service
PORT_VARIABLE = "SERVER_PORT"
SERVERS_VARIABLE = "SERVERS"
URL_VARIABLE = "SERVER_URL"
SERVER = ("server", "services")  # of docker/compose.yaml, which depend on the rest
SOCKET = Path("/var/run/docker.sock")
PROJECT_VARIABLE = "COMPOSE_PROJECT_NAME"
LABEL = "io.prefect.flow-run-id"  # of what a Docker worker starts (DockerWorkerJobConfiguration)


def up(manifest: Manifest, console: Console, server: bool) -> None:
    """Build the image, start the stack, and deploy prefect.yaml to it.

    Args:
        manifest: All of prefect.yaml.
        console: For the progress.
        server: Start the server and what it needs alone, no workers, and deploy nothing.

    Raises:
        RuntimeError: A port is taken; or a command failed, and has said why.
        ValueError: prefect.yaml, or a variable of .env, can't be read.
    """
    processes, containers = manifest.of_type("process"), manifest.of_type("docker")
    names = read_names(manifest)
    ports = read_ports()
    for port in ports:
        require_port(port, names[PROJECT_VARIABLE])
    # Not SERVER_URL: what listens there may need these servers first.
    api_url = f"http://127.0.0.1:{ports[0]}/api"
    with console.status("Building the image ..."):
        names["IMAGE"] = build_image(containers)
    chosen = SERVER if server else ()
    # One migrates the database, and is healthy, before there are more: two at once would collide.
    for servers in dict.fromkeys([1, len(ports)]):
        scale = f"server={servers}"
        _compose(names, "up", "--detach", "--remove-orphans", "--scale", scale, *chosen)
    if not server:
        _deploy(names, processes, containers, api_url)
    console.print(f"The Prefect UI is at {names[URL_VARIABLE]}; `make down` stops it.")


def _deploy(names: dict[str, str], processes: Manifest, containers: Manifest, api_url: str) -> None:
    deploy = ["python", "-m", "deployments", "deploy"]
    # Processes run where their worker is, and need its paths.
    worker = WORKER + processes.deployments[0].work_pool.name
    _compose(names, "run", "--rm", "-T", worker, *deploy, *processes.names)
    env = os.environ | {"PREFECT_API_URL": api_url}
    _run([sys.executable, *deploy[1:], *containers.names], env)


def down(volumes: bool) -> None:
    """Stop the stack and its runs.

    Args:
        volumes: Remove its volumes, too.

    Raises:
        RuntimeError: A command failed; it has said why.
        ValueError: prefect.yaml can't be read.
    """
    manifest = Manifest.load()
    names = read_names(manifest)
    pools = manifest.definitions.work_pools.items()
    workers = [f"{WORKER}{name}" for name, pool in pools if pool.type in ("process", "docker")]
    _compose(names, "stop", *workers)
    filters = ["--filter", f"network={names['NETWORK']}", "--filter", f"label={LABEL}"]
    if runs := _run(["docker", "ps", "--quiet", *filters], os.environ, capture=True).split():
        _run(["docker", "stop", *runs], os.environ)
    _compose(names, "down", "--remove-orphans", *(["--volumes"] if volumes else []))


def read_names(manifest: Manifest) -> dict[str, str]:
    """Return the variables that give the stack the names of prefect.yaml, and what .env tells.

    Raises:
        ValueError: There is none for something, or it can't be one.
    """
    if not re.fullmatch("[a-z0-9][a-z0-9_-]*", manifest.name):
        raise ValueError(
            f"prefect.yaml: name: for Docker it must be of a-z, 0-9, - and _, not {manifest.name!r}"
        )
    volume = find_results_volume(manifest.of_type("docker").deployments[0])
    ports = read_ports()
    return {
        PROJECT_VARIABLE: manifest.name,
        "NETWORK": find_network(manifest),
        "RESULTS": volume or f"{manifest.name}-results",
        "IMAGE": "none",
        "SERVER_PORTS": "-".join(str(port) for port in dict.fromkeys([ports[0], ports[-1]])),
        URL_VARIABLE: read_url(ports[0]),
    }


def read_ports() -> range:
    """Return the ports of this machine for the stack's servers, one for each.

    Raises:
        ValueError: They are no ports.
    """
    port = _read_number(PORT_VARIABLE, 4200, "a port, 1 to 65535", 2**16)
    servers = _read_number(SERVERS_VARIABLE, 1, f"a number, 1 to {2**16 - port}", 2**16 - port + 1)
    return range(port, port + servers)


def read_url(port: int) -> str:
    """Return the address under which browsers reach the stack, by default that of a port here.

    Raises:
        ValueError: It is no address.
    """
    text = os.environ.get(URL_VARIABLE) or f"http://127.0.0.1:{port}"
    if not re.fullmatch(r"https?://[^\s/]+/?", text):
        raise ValueError(
            f"{URL_VARIABLE} in .env must be like https://prefect.example.com, without /api, "
            f"not {text!r}"
        )
    return text.rstrip("/")


def _read_number(variable: str, default: int, what: str, end: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < end):
        raise ValueError(f"{variable} in .env must be {what}, not {text!r}")
    return int(text)


def require_port(port: int, project: str) -> None:
    """Refuse a port that something other than the stack of a project listens at.

    Raises:
        RuntimeError: It is taken.
    """
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return
    ours = ["--filter", f"label=com.docker.compose.project={project}"]
    command = ["docker", "ps", "--quiet", *ours, "--filter", f"publish={port}"]
    if not _run(command, os.environ, capture=True):
        raise RuntimeError(
            f"port {port} of this machine is taken, and not by this stack: end what listens there, "
            f"or set {PORT_VARIABLE} in .env (see .env.example)"
        )


def build_image(containers: Manifest) -> str:
    """Run the build steps of the deployments in containers, and return the image's name and tag.

    Raises:
        RuntimeError: The build failed.
    """
    outputs: dict[str, Any] = {}
    # Not Prefect's `run_steps`: that needs a server, which is to run in this very image.
    for step in containers.deployments[0].build:
        ((path, options),) = apply_values(step, outputs).items()
        name, _ = options.pop("id"), options.pop("requires", None)
        try:
            output = import_object(path)(**options)
            outputs[name] = asyncio.run(output) if inspect.iscoroutine(output) else output
        except Exception as error:
            raise RuntimeError(f"prefect.yaml: the build step {name} failed: {error}") from error
    image: str = outputs["build-image"]["image"]
    return image


def _compose(names: dict[str, str], *arguments: str) -> None:
    """Run Docker Compose, version 2 or 1."""
    command = ["docker", "compose"]
    try:
        subprocess.run([*command, "version"], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        command = ["docker-compose"]
    group = str(SOCKET.stat().st_gid) if SOCKET.exists() else "0"
    env = {"DOCKER_GID": group} | os.environ | names
    _run([*command, "-f", str(COMPOSE_FILE), *arguments], env)


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
