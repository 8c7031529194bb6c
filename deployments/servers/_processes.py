"""A Prefect server and worker of one's own, as processes that end with their context."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import prefect
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments.project import ROOT
from deployments.servers._log import check_server_log

# The arguments of Python.
PREFECT = ["-m", "prefect"]
PREFECT_ON_SQLITE = [str(Path(__file__).with_name("_prefect_on_sqlite.py"))]
DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
DATABASE = "prefect.db"
# What servers begin with, once the first one has made it.
EMPTY_DATABASE = Path(sys.prefix, f"prefect-{prefect.__version__}.db")
START_SECONDS = 240
STOP_SECONDS = 15


@dataclass(frozen=True)
class TemporaryServer:
    """A server that is up, and what a process needs to use it.

    Attributes:
        home: PREFECT_HOME of the server and its users, with their logs.
        api_url: Its PREFECT_API_URL.
        env: The whole environment of a process that uses it, and nothing of another Prefect.
        process: The server's own.
        directory: Where its users run; by default in `home`, since the checkout has the `.env` of
            its user.
        held: A file that its users hold open, and write their process ids to.
    """

    home: Path
    api_url: str
    env: Mapping[str, str]
    process: subprocess.Popen[bytes]
    directory: Path | None = None
    held: IO[str] | None = None

    def used(self) -> AbstractContextManager[Any]:
        """Make it the server that flows and clients of this process use."""
        return temporary_settings({PREFECT_API_URL: self.api_url, PREFECT_HOME: self.home})


@contextlib.contextmanager
def temporary_server(
    home: Path,
    port: int | None = None,
    *,
    own: Mapping[str, str] | None = None,
    settings: Path | None = ROOT / "prefect.toml",
    check_log: bool = True,
    wait: bool = True,
    held: IO[str] | None = None,
) -> Iterator[TemporaryServer]:
    """Run a Prefect server on 127.0.0.1, by default on a free port, with a database in `home`.

    Args:
        home: A directory for it.
        port: The port to listen at.
        own: Environment variables of the server alone, such as that of another database.
        settings: Prefect's settings for it, and for workers that run in `home`; None for a server
            as Prefect runs it.
        check_log: Refuse errors in its log, once it has ended.
        wait: Until it is up.
        held: A file that it and its users hold open, and write their process ids to.

    Raises:
        RuntimeError: It did not come up.
        ServerFailed: It logged an error that a sound server does not log.
    """
    home = home.resolve()
    if settings:
        shutil.copy(settings, home / "prefect.toml")
    own = own or {}
    makes_database = DATABASE_URL not in own and not (home / DATABASE).exists()
    if makes_database:
        _copy_empty_database(home)
    port = port or free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    env = {**_env(home), "PREFECT_API_URL": api_url}
    program = PREFECT_ON_SQLITE if settings else PREFECT
    command = [*program, "server", "start", "--host", "127.0.0.1", "--port", str(port)]

    def healthy() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{api_url}/health"):  # noqa: S310
            return True
        return False

    log = home / "server.log"
    with run_process(
        command, env={**env, **own}, log=log, ready=healthy if wait else None, held=held
    ) as process:
        if makes_database and wait:
            _keep_empty_database(home)
        yield TemporaryServer(home, api_url, env, process, held=held)
    if check_log:
        check_server_log(log)


def _env(home: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return env | {"PREFECT_HOME": str(home)}


def _copy_empty_database(home: Path) -> None:
    """Give a new server its database: else it makes its own, by migrations that take 15 s."""
    if EMPTY_DATABASE.exists():
        shutil.copy(EMPTY_DATABASE, home / DATABASE)


def _keep_empty_database(home: Path) -> None:
    """Keep the database of a server that has just made it, for the next ones."""
    if EMPTY_DATABASE.exists() or not os.access(EMPTY_DATABASE.parent, os.W_OK):
        return
    with tempfile.TemporaryDirectory(dir=EMPTY_DATABASE.parent) as scratch:
        copy = Path(scratch, DATABASE)
        with (
            contextlib.closing(sqlite3.connect(home / DATABASE)) as database,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            database.backup(target)
        copy.replace(EMPTY_DATABASE)


def is_free(port: int) -> bool:
    """Tell whether a server can have a port of 127.0.0.1."""
    with socket.socket() as client:  # macOS lets it listen beside one that listens everywhere
        if client.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def temporary_worker(
    server: TemporaryServer, pool: str, *, wait: bool = True
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run a worker for a pool of a temporary server; its runs end with it.

    Unless it is to `wait`, it may not be up yet.

    Raises:
        RuntimeError: It did not come up.
    """
    command = [*PREFECT, "worker", "start", "--pool", pool]
    log = server.home / f"worker-{pool}.log"
    return run_process(
        command,
        env=server.env,
        log=log,
        ready=(lambda: b"started!" in log.read_bytes()) if wait else None,
        directory=server.directory,
        held=server.held,
    )


@contextlib.contextmanager
def run_process(
    command: list[str],
    *,
    env: Mapping[str, str],
    log: Path,
    ready: Callable[[], bool] | None = None,
    directory: Path | None = None,
    held: IO[str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python as a process of its own process group.

    Args:
        command: The arguments of Python.
        env: Its whole environment.
        log: A file for what it says.
        ready: Says that it is up; by default nobody waits for that.
        directory: Where it runs; by default where the log is.
        held: A file that it holds open, and that gets its process id, in a line.

    Raises:
        RuntimeError: It ended early, or was not ready in time; with the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=dict(env),
            cwd=directory or log.parent,
            pass_fds=[held.fileno()] if held else [],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
        )
    try:
        if held:
            held.write(f"{process.pid}\n")
            held.flush()
        deadline = time.monotonic() + START_SECONDS
        while ready and not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"`{' '.join(command)}` did not start; its log ends with:\n{tail(log)}"
                )
            time.sleep(0.1)
        yield process
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):  # it, and all that it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
