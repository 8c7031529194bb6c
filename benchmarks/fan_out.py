"""What child deployments cost: this template beside plain `run_deployment`, in one run.

python -m benchmarks.fan_out [--full] [--starts] [--servers CHILDREN]
    [--database URL] [--redis HOST] [--worker-env NAME=VALUE]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cyclopts import App
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.deployments import arun_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from benchmarks.cost import cpu_seconds, megabytes, stack_seconds, wait_for_ends, wait_for_rest
from benchmarks.parent import read_children
from benchmarks.report import (
    HERE,
    SIDES,
    Figures,
    Measured,
    name_of,
    plot,
    plot_parts,
    save,
    tabulate,
)
from benchmarks.servers import run_servers
from deployments.deploy._definitions import create_definitions
from deployments.deploy._deploy import run_prefect_deploy
from deployments.project import ROOT, Manifest
from deployments.runs import cancel_run
from deployments.servers import TemporaryServer, temporary_server, temporary_worker
from deployments.servers._processes import DATABASE_URL, run_process

PREFECT_FILE = HERE / "prefect.yaml"
SETTINGS = ROOT / "prefect.toml"
LIMIT_SECONDS = 300.0
WAIT_LIMIT_SECONDS = 900.0
# Numbers of real children, and how many rounds each has.
REAL = {8: 3, 40: 3, 100: 1}
# Prefect's default, where prefect.toml has another.
PLAIN_WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "10"}
FEW = 20
# So that servers have enough to do: parents, of which each creates its children one request after
# another, and runs that the simulated worker completes at once.
PARENTS = 4
AT_ONCE = 8

# A method of Bench: by the side, the number of children and the limit in seconds.
Way = Callable[[str, int, float], Measured]

app = App(help=__doc__)
console = Console()


@dataclasses.dataclass
class Bench:
    """A server with the benchmark's deployments, to measure parents on.

    Attributes:
        server: It should be clean.
        worker_env: Environment variables of the workers of real children.
    """

    server: TemporaryServer
    worker_env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def deploy(self) -> None:
        """Bring the benchmark's deployments to the server."""
        asyncio.run(_create_pools())
        file = str(PREFECT_FILE.relative_to(ROOT))
        run_prefect_deploy(self.server.env, "--all", "--prefect-file", file)

    def create(self, side: str, children: int, limit: float = LIMIT_SECONDS) -> Measured:
        """Create children that don't start: how long that takes, and how many are lost."""
        return self._measure(side, "create", "nobody", children, limit)

    def idle(self, side: str, children: int, limit: float = LIMIT_SECONDS) -> Measured:
        """Wait for children that don't start: how many requests that takes."""
        return self._measure(side, "idle", "nobody", children, limit)

    def wait(
        self, side: str, children: int, limit: float = LIMIT_SECONDS, at_once: int | None = None
    ) -> Measured:
        """Run a parent whose children, by default all at once, a simulated worker completes."""
        with self.simulated_worker(1):
            return self._measure(side, "wait", "simulated", children, limit, at_once)

    def bear(self, side: str, children: int, limit: float = LIMIT_SECONDS) -> Measured:
        """Run parents that share so many children: what the servers take for it."""
        share = children // PARENTS
        with self.simulated_worker(AT_ONCE), ThreadPoolExecutor(PARENTS) as pool:
            before, start = stack_seconds(), os.times()
            measured = list(
                pool.map(
                    lambda _: self._measure("ours", "wait", "simulated", share, limit),
                    range(PARENTS),
                )
            )
            after, end = stack_seconds(), os.times()
        for each in measured:
            if "seconds" not in each:
                return each
        cpu = {part: after[part] - before[part] for part in after}
        cpu["parents"] = sum(end[2:4]) - sum(start[2:4])  # of processes that have ended
        return {
            "window": end.elapsed - start.elapsed,  # of the CPU time: the parents' start, too
            "seconds": max(each["seconds"] for each in measured),
            "delay_p95": max(each["delay_p95"] for each in measured),
            "requests": sum(each["requests"] for each in measured),
            "failures": [failure for each in measured for failure in each["failures"]],
        } | {f"cpu_{part}": seconds for part, seconds in cpu.items()}

    def real(self, side: str, children: int, limit: float = LIMIT_SECONDS) -> Measured:
        """Run a parent whose children run in processes of their own, or in the parent's."""
        server = self.server.process.pid
        with self._worker(side) as worker:
            if worker:  # a parent's own run is the first that a worker has
                asyncio.run(_run_one(f"one/{side}"))
            wait_for_rest(server)
            before = cpu_seconds(worker, server)
            figures = self._measure(side, "real", side, children, limit)
            if "over" not in figures:
                wait_for_ends(worker)
                after = cpu_seconds(worker, server)
                return figures | {f"cpu_{each}": after[each] - before[each] for each in after}
        asyncio.run(_delete_scheduled())  # else they run when the next worker comes
        return figures

    def memory(self, side: str, _children: int, _limit: float = LIMIT_SECONDS) -> Measured:
        """Run one child that does nothing for a while: how much memory its process takes."""
        with self._worker(side) as worker:
            asyncio.run(_start_sleep(f"sleep/{side}"))
            return dict(megabytes(worker))

    def cancel(self, side: str, children: int, limit: float = LIMIT_SECONDS) -> Measured:
        """Cancel a parent: how long its children outlive it."""
        with temporary_worker(self.server, side):
            return asyncio.run(_cancel(f"{side}-sleepers/{side}", children, limit))

    @contextlib.contextmanager
    def simulated_worker(self, at_once: int) -> Iterator[None]:
        """Run what completes runs of the pool `simulated`, so many at once."""
        log = self.server.home / "simulated-worker.log"
        with run_process(
            ["-m", "benchmarks.simulated_worker", str(at_once)],
            env={**self.server.env, "PYTHONPATH": str(ROOT)},
            log=log,
            ready=lambda: "ready" in log.read_text(),
        ):
            yield

    @contextlib.contextmanager
    def _worker(self, side: str) -> Iterator[int]:
        """Run a worker, the plain one with Prefect's defaults, and yield its process id."""
        if side == "in process":
            yield 0
            return
        env = {**self.server.env, **(PLAIN_WORKER if side == "plain" else {}), **self.worker_env}
        with temporary_worker(dataclasses.replace(self.server, env=env), side) as worker:
            yield worker.pid

    def _measure(
        self,
        side: str,
        way: str,
        deployment: str,
        children: int,
        limit: float,
        at_once: int | None = None,
    ) -> Measured:
        """Run one parent, and return what it took; or the limit, if it passed that."""
        pattern = "ours" if side == "cold" else side
        command = [sys.executable, "-m", "benchmarks.parent", pattern, way, deployment]
        try:
            done = subprocess.run(
                [*command, str(children), str(at_once or children)],
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


async def _run_one(name: str) -> None:
    await arun_deployment(
        name,
        parameters={"number": 0},
        timeout=LIMIT_SECONDS,
        poll_interval=0.5,
        as_subflow=False,
    )


def kill_process(run: FlowRun) -> None:
    """Kill the process of a run."""
    assert run.infrastructure_pid
    os.kill(int(run.infrastructure_pid.rpartition(":")[2]), signal.SIGKILL)


async def _start_sleep(name: str) -> None:
    """Start a run that sleeps, and wait until it does."""
    run = await arun_deployment(name, parameters={"seconds": 10}, timeout=0, as_subflow=False)
    async with get_client() as client:
        while run.state_type != StateType.RUNNING:
            await asyncio.sleep(0.5)
            run = await client.read_flow_run(run.id)


async def _delete_scheduled() -> None:
    runs = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.SCHEDULED]}}})
    async with get_client() as client:
        while found := await client.read_flow_runs(flow_run_filter=runs):
            for run in found:
                await client.delete_flow_run(run.id)


async def _create_pools() -> None:
    async with get_client() as client:
        await create_definitions(client, Manifest.load(PREFECT_FILE))


async def _cancel(name: str, children: int, limit: float) -> Measured:
    parameters = {"count": children, "seconds": 3600}

    async def wait_for(parent: FlowRun, is_done: Callable[[FlowRun], bool]) -> int:
        """Wait until all children are so, and return how many are not after the limit."""
        deadline = time.monotonic() + limit
        while True:
            left = children - sum(map(is_done, await read_children(client, parent.id)))
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.5)

    async with get_client() as client:
        parent = await arun_deployment(name, parameters=parameters, timeout=0, as_subflow=False)
        await wait_for(parent, lambda run: run.state_type == StateType.RUNNING)
        start = time.perf_counter()
        await cancel_run(client, parent.id)
        alive = await wait_for(parent, lambda run: run.state_type in TERMINAL_STATES)
        seconds = time.perf_counter() - start
        for run in await read_children(client, parent.id):
            if run.state_type not in TERMINAL_STATES:  # it would disturb what is measured next
                with contextlib.suppress(ProcessLookupError):
                    kill_process(run)
    return {"over": limit, "alive": alive} if alive else {"seconds": seconds}


@app.default
def main(
    *,
    full: bool = False,
    starts: bool = False,
    servers: int = 0,
    database: str | None = None,
    redis: str | None = None,
    worker_env: tuple[str, ...] = (),
) -> None:
    """Measure, print a table, and write the figures and a plot beside this file.

    Args:
        full: Up to 1000 children, not 20, and cancellation: this takes most of an hour.
        starts: Only the ways to run real children, in turns on one server.
        servers: Only one API server, then two behind docker/nginx.conf, with so many children:
            of four parents: the CPU time of each part. It needs a database, Redis, and nginx.
        database: SQLAlchemy's URL of a Postgres database, instead of Prefect's embedded SQLite:
            postgresql+asyncpg://USER@HOST:PORT/NAME. It loses what is in it.
        redis: Host of a Redis for the server's messages, as in docker/compose.yaml, instead of its
            memory.
        worker_env: NAME=VALUE, for `starts`: an environment variable of workers. It may be given
            repeatedly.
    """
    if servers and not (database and redis):
        sys.exit("--servers needs --database and --redis: several servers share them")
    figures: Figures = {}
    own = server_env(database, redis)

    def clean_bench(side: str) -> contextlib.AbstractContextManager[Bench]:
        return bench_on(own, SETTINGS if side == "ours" else None)

    def measure(way: Way, side: str, children: int, limit: float = LIMIT_SECONDS) -> None:
        measured = way(side, children, limit)
        if "failures" in measured:
            lost = measured.pop("failures")
            measured["lost"] = len(lost)
            if lost:
                measured["first_error"] = lost[0]
        console.print(f"{side}: {way.__name__}, {children} children: {measured}", highlight=False)
        figures.setdefault(way.__name__, {}).setdefault(side, {})[children] = measured

    def measure_starts(bench: Bench) -> None:
        """Measure the ways to run children in turns, on one server, and keep the middle rounds.

        A side is left out that would pass the limit at the pace of its last round.
        """
        pace = dict.fromkeys(SIDES, 0.0)
        for children, count in REAL.items():
            rounds: dict[str, list[Measured]] = {side: [] for side in SIDES}
            for _ in range(count):
                for side, measured in rounds.items():
                    if pace[side] * children < LIMIT_SECONDS:
                        measure(bench.real, side, children)
                        measured.append(figures["real"][side][children])
                        pace[side] = measured[-1].get("seconds_per_child", math.inf)
            for side, measured in rounds.items():
                if not measured:
                    continue
                middle = sorted(measured, key=lambda each: each.get("seconds", math.inf))
                figures["real"][side][children] = middle[len(middle) // 2] | {
                    "lost": sum(each.get("lost", 0) for each in measured),
                    # Those without seconds tell why: "over" or "failed".
                    "rounds": [each.get("seconds", next(iter(each))) for each in measured],
                }
        for side in ("cold", "ours"):
            measure(bench.memory, side, 1)

    if starts:
        with clean_bench("ours") as bench:
            bench.worker_env = dict(each.split("=", 1) for each in worker_env)
            measure_starts(bench)
    for side, count in (("one server", 1), ("two servers", 2)) if servers else ():
        with bench_on(own, SETTINGS, count) as bench:
            measure(bench.bear, side, servers, WAIT_LIMIT_SECONDS)
    for side in () if starts or servers else ("ours", "plain"):
        with clean_bench(side) as bench:
            measure(bench.wait, side, FEW)
            measure(bench.idle, side, FEW)
            measure(bench.create, side, FEW)
            if full:
                measure(bench.cancel, side, FEW)
    if full:
        # A server each for hundreds: it is busy for long after it lost or cancelled them.
        for children in (100, 500):
            for side in ("ours", "plain"):
                with clean_bench(side) as bench:
                    measure(bench.create, side, children)
        with clean_bench("ours") as bench:
            measure(bench.idle, "ours", 500)
        for children, limit in ((100, LIMIT_SECONDS), (1000, WAIT_LIMIT_SECONDS)):
            with clean_bench("ours") as bench:
                measure(bench.wait, "ours", children, limit)
    what = "servers" if servers else "starts" if starts else "fan_out"
    name = name_of(database, redis)
    save(figures, f"{what}-{name}", worker_env=worker_env)
    if not servers:
        console.print(tabulate(figures))
    if what == "fan_out":
        plot(figures, HERE / f"fan_out-{name}.svg")
    if starts:
        plot_parts(figures, HERE / f"starts-{name}.svg")


def server_env(database: str | None, redis: str | None) -> dict[str, str]:
    """Return the environment variables of a server on another database and messages."""
    env = {DATABASE_URL: database} if database else {}
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
def bench_on(own: dict[str, str], settings: Path | None, servers: int = 0) -> Iterator[Bench]:
    """Run a clean server to measure on, with our settings or with Prefect's own, or several.

    Args:
        own: Environment variables of the server alone.
        settings: Prefect's settings.
        servers: How many behind nginx; by default one with its services.
    """
    if DATABASE_URL in own:
        command = ["prefect", "server", "database", "reset", "--yes"]
        env = os.environ | own
        subprocess.run([sys.executable, "-m", *command], env=env, check=True, capture_output=True)
    with (
        tempfile.TemporaryDirectory(prefix="prefect-bench-") as home,
        run_servers(Path(home), servers, own)
        if servers
        # What the plain way does to SQLite is measured, not refused.
        else temporary_server(Path(home), own=own, settings=settings, check_log=False) as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        bench = Bench(server)
        bench.deploy()
        yield bench


if __name__ == "__main__":
    app()
