"""What child deployments cost: this template beside plain `run_deployment`, in one run.

python -m benchmarks.fan_out [--full] [--database URL] [--redis HOST]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect
from cyclopts import App
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import arun_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from benchmarks.parent import read_children
from benchmarks.report import Figures, Measured, plot, tabulate
from deployments._deploy import create_definitions, run_prefect_deploy
from deployments._orphans import cancel_run
from deployments._processes import (
    TemporaryServer,
    run_process,
    temporary_server,
    temporary_worker,
)
from deployments.manifest import ROOT, Manifest

HERE = Path(__file__).parent
PREFECT_FILE = HERE / "prefect.yaml"
SETTINGS = ROOT / "prefect.toml"
# A plain parent that takes this many times as long as ours is not waited for any longer.
TIMES = 12
LIMIT_SECONDS = 300.0
WAIT_LIMIT_SECONDS = 900.0
REAL = 8
CANCELLED = 20

app = App(help=__doc__)
console = Console()


@dataclasses.dataclass
class Bench:
    """A server with the benchmark's deployments, to measure parents on.

    Attributes:
        server: It should be clean.
    """

    server: TemporaryServer

    def deploy(self) -> None:
        """Bring the benchmark's deployments to the server."""
        asyncio.run(_create_pools())
        file = str(PREFECT_FILE.relative_to(ROOT))
        run_prefect_deploy(self.server.env, "--all", "--prefect-file", file)

    def create(self, side: str, children: int, limit: float = LIMIT_SECONDS) -> Measured:
        """Create children that don't start: how long that takes, and how many are lost."""
        return self._measure(side, "create", "nobody", children, limit)

    def idle(self, side: str, children: int) -> Measured:
        """Wait for children that don't start: how many requests that takes."""
        return self._measure(side, "idle", "nobody", children)

    def wait(self, side: str, children: int) -> Measured:
        """Run a parent whose children are completed by a simulated worker."""
        log = self.server.home / "simulated-worker.log"
        with run_process(
            ["benchmarks.simulated_worker"],
            env={**self.server.env, "PYTHONPATH": str(ROOT)},
            log=log,
            ready=lambda: "ready" in log.read_text(),
        ):
            return self._measure(side, "wait", "simulated", children, WAIT_LIMIT_SECONDS)

    def real(self, side: str) -> Measured:
        """Run a parent whose children run in processes of their own."""
        before = _cpu_seconds()
        with temporary_worker(self.server, side):
            figures = self._measure(side, "wait", side, REAL)
        return figures | {"cpu_seconds": _cpu_seconds() - before}

    def cancel(self, side: str) -> Measured:
        """Cancel a parent: how long its children outlive it."""
        with temporary_worker(self.server, side):
            return asyncio.run(_cancel(f"{side}-sleepers/{side}"))

    def _measure(
        self, side: str, way: str, deployment: str, children: int, limit: float = LIMIT_SECONDS
    ) -> Measured:
        """Run one parent, and return what it took; or the limit, if it passed that."""
        command = [sys.executable, "-m", "benchmarks.parent", side, way, deployment, str(children)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=dict(self.server.env),
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"over": limit}
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1]}
        figures: Measured = json.loads(done.stdout)
        for each in ("seconds", "requests"):
            figures[f"{each}_per_child"] = figures[each] / children
        if delays := sorted(figures.pop("delays", [])):
            figures["delay_p50"] = statistics.median(delays)
            figures["delay_p95"] = delays[round(0.95 * (len(delays) - 1))]
        return figures


def _cpu_seconds() -> float:
    """Return the CPU time of all processes that we started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _create_pools() -> None:
    async with get_client() as client:
        await create_definitions(client, Manifest.load(PREFECT_FILE))


async def _cancel(name: str) -> Measured:
    parameters = {"count": CANCELLED, "seconds": 3600}
    async with get_client() as client:
        parent = await arun_deployment(name, parameters=parameters, timeout=0, as_subflow=False)
        await _wait_for(client, parent, lambda run: run.state_type == StateType.RUNNING)
        start = time.perf_counter()
        await cancel_run(client, parent.id)
        alive = await _wait_for(
            client, parent, lambda run: run.state is not None and run.state.is_final()
        )
        seconds = time.perf_counter() - start
    return {"over": LIMIT_SECONDS, "alive": alive} if alive else {"seconds": seconds}


async def _wait_for(client: PrefectClient, parent: FlowRun, is_done: Any) -> int:
    """Wait until all children are so, and return how many are not after the limit."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        runs = await read_children(client, parent.id)
        left = CANCELLED - sum(1 for run in runs if is_done(run))
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


@app.default
def main(*, full: bool = False, database: str | None = None, redis: str | None = None) -> None:
    """Measure, print a table, and write the figures and a plot beside this file.

    Args:
        full: Up to 1000 children, and cancellation: this takes long.
        database: SQLAlchemy's URL of a Postgres database, instead of Prefect's embedded SQLite:
            postgresql+asyncpg://USER@HOST:PORT/NAME. It loses what is in it.
        redis: Host of a Redis for the server's messages, as in docker/compose.yaml, instead of its
            memory.
    """
    figures: Figures = {}
    own = _server_env(database, redis)

    def note(what: str, side: str, children: int, measured: Measured) -> None:
        figures.setdefault(what, {}).setdefault(side, {})[children] = measured
        lost = measured.pop("failures", [])
        measured["lost"] = len(lost)
        if lost:
            measured["first_error"] = lost[0]
        console.print(f"{side}: {what}, {children} children: {measured}", highlight=False)

    counts = [20, 100, 500] if full else [20, 100]
    with _bench(own, SETTINGS) as bench:
        for children in counts:
            note("create", "ours", children, bench.create("ours", children))
        for children in [20, 500] if full else [20]:
            note("idle", "ours", children, bench.idle("ours", children))
        for children in [20, 100, 1000] if full else [20]:
            note("wait", "ours", children, bench.wait("ours", children))
        note("real", "ours", REAL, bench.real("ours"))
        if full:
            note("cancel", "ours", CANCELLED, bench.cancel("ours"))
    with _bench(own, None) as bench:
        note("idle", "plain", 20, bench.idle("plain", 20))
        note("wait", "plain", 20, bench.wait("plain", 20))
        note("real", "plain", REAL, bench.real("plain"))
        if full:
            note("cancel", "plain", CANCELLED, bench.cancel("plain"))
    for children in counts:
        ours = figures["create"]["ours"][children].get("seconds", LIMIT_SECONDS)
        limit = min(TIMES * ours, LIMIT_SECONDS)
        with _bench(own, None) as bench:  # one each: a server is busy for long afterwards
            note("create", "plain", children, bench.create("plain", children, limit))
    name = "-".join(["postgres" if database else "sqlite", *(["redis"] if redis else [])])
    about = {
        "date": str(datetime.now(UTC).date()),
        "prefect": prefect.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "database": name,
    }
    (HERE / f"fan_out-{name}.json").write_text(json.dumps(about | figures, indent=1) + "\n")
    console.print(tabulate(figures))
    plot(figures, HERE / f"fan_out-{name}.svg")


def _server_env(database: str | None, redis: str | None) -> dict[str, str]:
    env = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}
    if redis:
        env |= {
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_REDIS_MESSAGING_HOST": redis,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_SERVER_DOCKET_URL": f"redis://{redis}/1",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        }
    return env


@contextlib.contextmanager
def _bench(own: dict[str, str], settings: Path | None) -> Iterator[Bench]:
    """Run a clean server to measure on, with our settings or with Prefect's own."""
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" in own:
        command = ["prefect", "server", "database", "reset", "--yes"]
        env = os.environ | own
        subprocess.run([sys.executable, "-m", *command], env=env, check=True, capture_output=True)
    with (
        tempfile.TemporaryDirectory(prefix="prefect-bench-") as home,
        temporary_server(Path(home), own=own, settings=settings) as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        bench = Bench(server)
        bench.deploy()
        yield bench


if __name__ == "__main__":
    app()
