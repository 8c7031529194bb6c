"""One API server, or several behind docker/nginx.conf, and the services in another process."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from deployments.project import ROOT
from deployments.servers import TemporaryServer
from deployments.servers._processes import free_port, run_process

NGINX = "import os, sys; os.execvp('nginx', sys.argv)"


@contextlib.contextmanager
def run_servers(home: Path, count: int, own: dict[str, str]) -> Iterator[TemporaryServer]:
    """Run API servers on one Postgres and Redis, as docker/compose.yaml does.

    Args:
        home: A directory for them.
        count: How many; more than one need `nginx`.
        own: Environment variables of the servers alone.

    Raises:
        RuntimeError: Something did not come up.
    """
    shutil.copy(ROOT / "prefect.toml", home)
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = outer | {"PREFECT_HOME": str(home)}
    ports = [free_port() for _ in range(count)]
    port = ports[0] if count == 1 else free_port()
    server = ["-m", "prefect", "server"]
    with contextlib.ExitStack() as running:

        def run(
            name: str, command: list[str], ready: Callable[[], bool]
        ) -> subprocess.Popen[bytes]:
            log = home / f"{name}.log"
            return running.enter_context(run_process(command, env=env | own, log=log, ready=ready))

        # One after another: the first one fills the database.
        for each in ports:
            command = [*server, "start", "--no-services", "--port", str(each)]
            run(f"server-{each}", command, lambda each=each: _answers(each))  # type: ignore[misc]
        services = run("services", [*server, "services", "start"], lambda: True)
        if count > 1:
            (home / "nginx.conf").write_text(_balance(ports, port))
            options = ["-p", f"{home}/", "-e", "stderr", "-c", f"{home}/nginx.conf"]
            # Of root, whose workers could not write here as another user.
            options += ["-g", f"daemon off; user {getpass.getuser()};"]
            run("nginx", ["-c", NGINX, *options], lambda: _answers(port))
        api_url = f"http://127.0.0.1:{port}/api"
        yield TemporaryServer(home, api_url, env | {"PREFECT_API_URL": api_url}, services)


def _balance(ports: list[int], port: int) -> str:
    text = (ROOT / "docker" / "nginx.conf").read_text()
    addresses = dict(zip(("4200", "4201", "8080"), (*ports, port), strict=True))
    for old, new in addresses.items():
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    return text


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/ready"):
        return True
    return False
