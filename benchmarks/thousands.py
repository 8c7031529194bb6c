"""One parent of thousands of children: what each takes, and how the parent ends.

python -m benchmarks.thousands [COUNT ...] [--ends COUNT] [--database URL] [--redis HOST]

A simulated worker completes the children, so the server and the parent are all that is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from cyclopts import App
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.deployments import arun_deployment
from rich.console import Console

from benchmarks.cost import cpu_seconds
from benchmarks.fan_out import PREFECT_FILE, SETTINGS, bench_on, kill_process, server_env
from benchmarks.parent import read_children
from benchmarks.report import name_of, save
from deployments.deploy import deploy_manifest
from deployments.project import Manifest
from deployments.runs import cancel_run
from deployments.servers import temporary_worker

AT_ONCE = 200
LIMIT_SECONDS = 3600.0
# When so many children have completed, the parent is ended.
PART = 0.3

app = App(help=__doc__)
console = Console()


async def cancel(client: PrefectClient, parent: FlowRun) -> None:
    """Cancel a parent."""
    await cancel_run(client, parent.id)


async def kill(_: PrefectClient, parent: FlowRun) -> None:
    """Kill the process of a parent."""
    kill_process(parent)


# The deployment of the parent, that of its children, and how it is ended.
ENDS = {
    "cancelled": ("ours", "simulated", cancel),
    "cancelled while all wait": ("ours", "nobody", cancel),
    "killed": ("durable", "simulated", kill),
}


@app.default
def main(
    *counts: int, ends: int = 0, database: str | None = None, redis: str | None = None
) -> None:
    """Measure, and write the figures beside this file.

    Args:
        counts: Numbers of children: of a `gather` of all, and through a semaphore.
        ends: The number of children of a parent that is cancelled, and of one that is durable and
            killed.
        database: As of `benchmarks.fan_out`.
        redis: As of `benchmarks.fan_out`.
    """
    own, figures = server_env(database, redis), dict[str, Any]()

    def keep(name: str, measured: dict[str, Any]) -> None:
        figures[name] = measured
        console.print(f"{name}: {measured}", highlight=False)
        save(figures, f"thousands-{name_of(database, redis)}")

    for count in counts:
        for name, at_once in (("gather", count), (f"semaphore of {AT_ONCE}", AT_ONCE)):
            with bench_on(own, SETTINGS) as bench:
                before = cpu_seconds(0, bench.server.process.pid)
                measured = bench.wait("ours", count, LIMIT_SECONDS, at_once)
                after = cpu_seconds(0, bench.server.process.pid)
            measured["lost"] = len(measured.pop("failures", []))
            for part in ("server", "postgres", "redis"):
                measured[f"cpu_{part}_per_child"] = (after[part] - before[part]) / count
            keep(f"{count}, {name}", measured)
    for name, (deployment, pool, end) in ENDS.items() if ends else ():
        with bench_on(own, SETTINGS) as bench:
            asyncio.run(deploy_manifest(Manifest.load(PREFECT_FILE), bench.server.env))
            with bench.simulated_worker(1), temporary_worker(bench.server, "ours"):
                measured = asyncio.run(end_midway(deployment, pool, ends, end))
                keep(f"{ends}, {name}", measured)


async def end_midway(
    deployment: str,
    of_children: str,
    count: int,
    end: Callable[[PrefectClient, FlowRun], Awaitable[None]],
) -> dict[str, Any]:
    """End a parent midway, or once all of its children wait, and return how that went on."""
    parameters = {"count": count, "of_children": of_children}
    async with get_client() as client:
        parent = await arun_deployment(
            f"thousands/{deployment}", parameters=parameters, timeout=0, as_subflow=False
        )
        children = {"parent_flow_run_id": {"any_": [parent.id]}}

        async def number_of(*types: StateType) -> int:
            which = children | ({"state": {"type": {"any_": [*types]}}} if types else {})
            return await client.count_flow_runs(flow_run_filter=FlowRunFilter.model_validate(which))

        while (  # noqa: ASYNC110
            await number_of(StateType.COMPLETED) < PART * count
            and await number_of(StateType.SCHEDULED) < count
        ):
            await asyncio.sleep(1)
        parent = await client.read_flow_run(parent.id)
        measured: dict[str, Any] = {"created": await number_of()}
        start = time.time()
        await end(client, parent)
        alive = [state for state in StateType if state not in TERMINAL_STATES]
        while parent.state_type in alive or await number_of(*alive):
            await asyncio.sleep(1)
            parent = await client.read_flow_run(parent.id)
            if parent.state_type == StateType.CRASHED:  # it is to be restarted
                parent.state_type = StateType.PENDING
            if time.time() - start > LIMIT_SECONDS:
                return measured | {"over": LIMIT_SECONDS}
        runs = await read_children(client, parent.id)
        ended = [run.end_time.timestamp() for run in runs if run.state_type == StateType.COMPLETED]
        assert parent.end_time
        of_parent = parent.end_time.timestamp()
        return measured | {
            "seconds": time.time() - start,
            "parent": parent.state_name,
            "seconds_after_last_completed": of_parent - max(ended, default=start),
            "children": dict(Counter(run.state_name for run in runs)),
            "twice": len(runs) - len({run.parameters["number"] for run in runs}),
        }


if __name__ == "__main__":
    app()
