"""Prefect's server on Postgres and Redis, and a worker, in containers: docker/compose.yaml."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from deployments._console import confirm
from deployments.deploy import build, deploy_and_prune, state_of_lost
from deployments.project import ROOT, Manifest
from deployments.runs import cancel_children, will_restart

COMPOSE = ROOT / "docker" / "compose.yaml"
VARIABLES = COMPOSE.with_name(".env")
SERVER = ("server", "services")  # of COMPOSE, which depend on the rest
SOCKET = Path("/var/run/docker.sock")
RUN_ID = "io.prefect.flow-run-id"  # a label of what a worker starts (DockerWorkerJobConfiguration)
DIRECTORY = "com.docker.compose.project.working_dir"  # a label of what Compose starts
STOPPED = "`make down` stopped its container"


def up(manifest: Manifest, console: Console, server: bool) -> None:
    """Build the image, start the stack, and deploy to it what runs in containers.

    With `server`, start the server and what it needs alone, no worker, and deploy nothing.

    Raises:
        CalledProcessError: Compose failed, and has said why.
        RuntimeError: There is no Docker, a step failed, the stack is that of another checkout, or
            its database has another password.
        ValueError: prefect.yaml, or a variable of .env, can't be read.
    """
    manifest = manifest.of_type("docker")
    variables = read_variables(manifest)
    _require_own(manifest.stack)
    # Not SERVER_URL: what listens there may need these servers first.
    with temporary_settings({PREFECT_API_URL: _api_url(variables)}):
        with console.status("Building the image ..."):
            built = asyncio.run(build(manifest, push=not server))
        pool = built.deployments[0].declared["work_pool"]
        _write(variables | {"IMAGE": pool["job_variables"]["image"], "WORK_POOL": pool["name"]})
        _migrate(manifest.stack)
        if variables["SERVERS"] != "1":  # the first registers types of blocks: two would collide
            _compose("up", "--detach", "--scale", "server=1", *SERVER)
        _compose("up", "--detach", "--remove-orphans", *(SERVER if server else ()))
        if not server:
            asyncio.run(deploy_and_prune(built, console, prune=False, yes=False))
    console.print(f"The Prefect UI is at {variables['SERVER_URL']}; `make down` stops it.")


def down(manifest: Manifest, console: Console, *, volumes: bool, yes: bool) -> None:
    """Stop the stack and its runs, and remove its volumes, if that is asked for.

    With `yes`, nobody is asked whether they may be removed.

    Raises:
        CalledProcessError: Compose failed, and has said why.
        RuntimeError: There is no Docker, no stack of this checkout, or nobody to ask.
        ValueError: prefect.yaml, or a variable of .env, can't be read.
    """
    variables = read_variables(manifest)
    _require_own(manifest.stack)
    if not VARIABLES.exists():
        raise RuntimeError(f"{VARIABLES} is missing: `make up` writes it")
    what = f"the database and the results of {manifest.stack}"
    if volumes and not confirm("--volumes", what, yes):
        return
    _compose("stop", "worker")
    filters = ["--filter", f"network={manifest.stack}", "--filter", f"label={RUN_ID}"]
    form = f'{{{{.ID}}}} {{{{.Label "{RUN_ID}"}}}}'
    if runs := [line.split() for line in _docker("ps", *filters, "--format", form)]:
        with contextlib.suppress(RuntimeError):  # one may have ended meanwhile
            _docker("stop", *(container for container, _ in runs))
        with temporary_settings({PREFECT_API_URL: _api_url(variables)}):
            console.print(asyncio.run(_tell([run_id for _, run_id in runs])), soft_wrap=True)
    _compose("down", "--remove-orphans", *(["--volumes"] if volumes else []))


async def _tell(run_ids: Iterable[str]) -> str:
    """Tell the server which runs have ended, and return their names in a line."""
    names = []
    async with get_client() as client:
        if error := await client.api_healthcheck():
            return f"The server does not know that runs have ended: {error!r}"
        for run_id in run_ids:
            with contextlib.suppress(ObjectNotFound):
                run = await client.read_flow_run(run_id)  # type: ignore[arg-type]
                names.append(run.name)
                if run.state and not run.state.is_final():
                    await client.set_flow_run_state(run.id, state_of_lost(run, STOPPED))
                if not await will_restart(client, await client.read_flow_run(run.id)):
                    await cancel_children(client, run.id)
    return f"Stopped, and now Crashed or Cancelled: {', '.join(sorted(names))}"


def read_variables(manifest: Manifest) -> dict[str, str]:
    """Return the variables of docker/compose.yaml that are made of others."""
    if not re.fullmatch("[a-z0-9][a-z0-9_-]*", manifest.stack):  # else: "Docker is not running"
        raise ValueError(
            "prefect.yaml: name: for Docker it, or COMPOSE_PROJECT_NAME in .env, must be of a-z, "
            f"0-9, - and _, not {manifest.stack!r}"
        )
    port = _read("SERVER_PORT", "4200", "[1-9][0-9]{0,4}", "a port")
    servers = _read("SERVERS", "1", "[1-9][0-9]{0,2}", "a number")
    url = "like https://prefect.example.com, without /api"
    return {
        "COMPOSE_PROJECT_NAME": manifest.stack,
        "DOCKER_GID": str(SOCKET.stat().st_gid) if SOCKET.exists() else "0",
        "SERVERS": servers,
        "SERVER_PORT": port,
        "SERVER_PORTS": port if servers == "1" else f"{port}-{int(port) + int(servers) - 1}",
        "SERVER_URL": _read("SERVER_URL", f"http://127.0.0.1:{port}", r"https?://[^\s/]+/?", url),
    }


def _api_url(variables: dict[str, str]) -> str:
    return f"http://127.0.0.1:{variables['SERVER_PORT']}/api"


def _read(variable: str, default: str, pattern: str, what: str) -> str:
    text = os.environ.get(variable) or default
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{variable} in .env must be {what}, not {text!r}")
    return text.rstrip("/")


def _write(variables: dict[str, str]) -> None:
    """Write what docker/compose.yaml names, where Compose finds it by itself."""
    named = re.findall(r"\$\{(\w+)|^ +([A-Z_]+):(?: +#.*)?$", COMPOSE.read_text(), re.MULTILINE)
    names = sorted({one or other for one, other in named})
    given = {name: os.environ[name] for name in names if os.environ.get(name)} | variables
    if quoted := [name for name, value in given.items() if "'" in value]:
        raise ValueError(f"{quoted[0]} in .env must not hold a quote, which Compose can't read")
    VARIABLES.touch(0o600)
    VARIABLES.chmod(0o600)
    VARIABLES.write_text("".join(f"{name}='{given[name]}'\n" for name in sorted(given)))


def _require_own(stack: str) -> None:
    """Refuse a stack that was started from another checkout."""
    of_stack = ["--all", "--filter", f"label=com.docker.compose.project={stack}"]
    for directory in _docker("ps", *of_stack, "--format", f'{{{{.Label "{DIRECTORY}"}}}}'):
        if Path(directory).exists() and Path(directory).resolve() != COMPOSE.parent:
            raise RuntimeError(
                f"a stack named {stack} was started from {directory}: go on there, or set "
                "COMPOSE_PROJECT_NAME and SERVER_PORT in .env, for a stack of this checkout"
            )


def _migrate(stack: str) -> None:
    """Make the database that of this Prefect, before there are servers: they would collide."""
    command = _compose_command("run", "--rm", "-T", "server", "database", "upgrade", "--yes")
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if "password authentication failed" in done.stderr + done.stdout:
        raise RuntimeError(
            f"POSTGRES_PASSWORD in .env is not that of the database in volume {stack}_postgres: "
            "set it back, or see docker/README.md for how to change it"
        )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}".rstrip())


def _docker(*arguments: str) -> list[str]:
    """Return the lines that a command of the Docker client prints."""
    if shutil.which("docker") is None:
        raise RuntimeError("`docker` is not installed: Docker and its Compose are needed")
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join(done.stderr.split())
        raise RuntimeError(f"`docker {arguments[0]}` failed: {why}")
    return [line for line in done.stdout.splitlines() if line.strip()]


def _compose(*arguments: str) -> None:
    subprocess.run(_compose_command(*arguments), cwd=ROOT, stdin=subprocess.DEVNULL, check=True)


def _compose_command(*arguments: str) -> list[str]:
    """Return a command of Docker Compose, version 2 or 1."""
    command = ["docker", "compose"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        command = ["docker-compose"]
    return [*command, "-f", "docker/compose.yaml", *arguments]
