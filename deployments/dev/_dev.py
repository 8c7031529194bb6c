"""`dev`: one terminal for a server, workers, deploys and what runs tell, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterable, Set
from typing import IO

import httpx
from dotenv import dotenv_values
from prefect.client.orchestration import get_client
from rich.console import Console

from deployments.dev._files import compare, look
from deployments.dev._home import HOME, claim
from deployments.dev._runs import end_lost_runs, tell_runs
from deployments.project import ROOT, Manifest
from deployments.servers import (
    TemporaryServer,
    is_free,
    run_process,
    tail,
    temporary_server,
    temporary_worker,
)

PORT = 4200
LOOK_SECONDS = 1.0
# Without a change for so long, a file is written.
WRITTEN_SECONDS = 0.3


def run_dev(port: int | None, console: Console) -> None:
    """Run a server and workers for this checkout, and deploy what changes, until interrupted.

    By default, its port is the first one from 4200 on that is free.

    Raises:
        RuntimeError: Another server is in use, another `dev` is up, the port is taken, or the
            server ended.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        raise RuntimeError(
            f"PREFECT_API_URL names {httpx.URL(url).copy_with(userinfo=b'')}: go on with that "
            "server by `make deploy` and `prefect worker start`; or take it out of .env and of "
            "the environment, and `make dev` starts its own"
        )
    if port and not is_free(port):
        raise RuntimeError(f"port {port} can't be used: choose another, or leave PORT out")
    at = port or next(port for port in range(PORT, 65536) if is_free(port))
    with claim(f"http://127.0.0.1:{at}") as processes:
        taken = f" at {at}, since {PORT} is taken" if at != (port or PORT) else ""
        console.print(f"Starting a Prefect server{taken} ...", style="dim")
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_run(at, processes, console))


async def _run(port: int, processes: IO[str], console: Console) -> None:
    me = asyncio.current_task()
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Ends what awaits, and disturbs no start and no end of a process.
        asyncio.get_running_loop().add_signal_handler(ending, lambda: me and me.cancel())
    with (
        temporary_server(HOME, port, check_log=False, wait=False, held=processes) as server,
        server.used(),
    ):
        # Of `.env`, workers read what is Prefect's by themselves; a flow that needs more loads it.
        loaded = dotenv_values(ROOT / ".env")
        env = {name: value for name, value in server.env.items() if loaded.get(name) != value}
        dev = _Dev(dataclasses.replace(server, env=env, directory=ROOT), console)
        try:
            await asyncio.gather(dev.watch(), dev.work())
        finally:
            console.print("Stopping ...")
            dev.have_workers(set())  # and their runs end with them


class _Dev:
    """What goes on while the server is up."""

    def __init__(self, server: TemporaryServer, console: Console) -> None:
        self._server = server
        self._console = console
        self._workers: dict[str, tuple[contextlib.ExitStack, subprocess.Popen[bytes]]] = {}

    async def work(self) -> None:
        """Start what is needed, then tell of the runs and deploy what changes, for ever."""
        async with get_client() as client:
            while await client.api_healthcheck():  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.1)
            if told := await end_lost_runs(client):
                self._say(told, "yellow")
        await asyncio.gather(tell_runs(self._console), self._deploy_changes())

    async def _deploy_changes(self) -> None:
        files = look({})
        deployed = await self._deploy([])
        ui = self._server.api_url.removesuffix("/api")
        self._say(f"The Prefect UI is at {ui}. Logs and data are in .dev. Ctrl-C ends it.", "bold")
        while True:
            before = files
            while (now := look(files)) != files:
                files = now
                await asyncio.sleep(WRITTEN_SECONDS)
            changed = compare(before, files)
            # What failed may be mended in the body of a function, too.
            if changed or (files != before and not deployed):
                deployed = await self._deploy(changed)
            await asyncio.sleep(LOOK_SECONDS)

    async def _deploy(self, changed: Iterable[str]) -> bool:
        """Deploy as anybody does, with all flows imported anew, and tell whether that worked."""
        for name in changed:
            later = "; the server and the workers read it when they start"
            self._say(f"{name} changed{later if name == 'prefect.toml' else ''}", "bold")
        log = HOME / "deploy.log"
        with (
            self._console.status("Deploying prefect.yaml ..."),
            run_process(
                ["-m", "deployments", "deploy"],
                env=self._server.env,
                log=log,
                directory=ROOT,
                held=self._server.held,
            ) as process,
        ):
            await asyncio.to_thread(process.wait)
        lines = log.read_text(errors="replace").splitlines()
        told = [line for line in lines if not line.startswith("unchanged: ")]
        if process.returncode:
            self._say("\n".join([*told, "Not deployed: correct it, and save."]), "red")
            return False
        self._say("\n".join(told) or "Deployed: the server had it all.")
        with contextlib.suppress(ValueError):  # it has just changed again
            self.have_workers(Manifest.load().of_type("process").definitions.work_pools.keys())
        return True

    def have_workers(self, pools: Set[str]) -> None:
        """Start and end workers, so that these work pools have one, and no others."""
        for pool in self._workers.keys() - pools:
            self._workers.pop(pool)[0].close()
        for pool in pools - self._workers.keys():
            stack = contextlib.ExitStack()
            worker = temporary_worker(self._server, pool, wait=False)
            self._workers[pool] = stack, stack.enter_context(worker)

    async def watch(self) -> None:
        """Look whether the server and the workers are alive, for ever.

        Raises:
            RuntimeError: The server is not.
        """
        while (status := self._server.process.poll()) is None:
            for pool, (_, worker) in [*self._workers.items()]:
                if worker.poll() is None:
                    continue
                self._workers.pop(pool)[0].close()
                log = tail(HOME / f"worker-{pool}.log")
                self._say(f"The worker of {pool} ended by itself. Its log ends with:\n{log}", "red")
                self._say("The next deploy starts another one.", "red")
            await asyncio.sleep(LOOK_SECONDS)
        log = tail(HOME / "server.log")
        raise RuntimeError(f"the server ended by itself ({status}); its log ends with:\n{log}")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, soft_wrap=True)
