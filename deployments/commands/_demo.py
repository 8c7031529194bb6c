"""The demo: the shipped flows on a server and a worker of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.utilities.urls import url_for
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deployments.commands._deploy import create_definitions, run_prefect_deploy
from deployments.commands._manifest import Manifest
from deployments.commands._processes import (
    TemporaryServer,
    tail,
    temporary_server,
    temporary_worker,
)
from deployments.runtime import Returns, read_value

NAME = "local"  # of the deployments, and of their work pool
PARENT = f"flight-delays/{NAME}"
REFRESH_SECONDS = 0.5
COLORS = {"COMPLETED": "green", "RUNNING": "blue", "FAILED": "red", "CRASHED": "red"}


def run_demo(
    parameters: dict[str, Any],
    console: Console,
    show: Callable[[Any], None],
    tell: Callable[[str], None],
    keep: bool,
) -> bool:
    """Run the parent deployment on a temporary server with a worker, and stop them.

    Args:
        parameters: Of the parent.
        console: For the progress.
        show: Gets the parent's result.
        tell: Gets the reason where there is none.
        keep: Leave server and worker up until interrupted.

    Returns:
        Whether the parent completed.

    Raises:
        RuntimeError: The server, the worker or the deployment failed.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-demo-")))
        with console.status("Starting a temporary Prefect server ..."):
            server = stack.enter_context(temporary_server(home, check_log=False))
        stack.enter_context(server.used())
        with console.status("Deploying prefect.yaml ..."):
            asyncio.run(_deploy(server))
        with console.status("Starting a worker ..."):
            stack.enter_context(temporary_worker(server, NAME))
        # Last in, first out: from here on a second Ctrl-C does not keep the rest from stopping.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        result, failure = asyncio.run(_run_parent(parameters, console))
        if failure is None:
            show(result)
        else:
            log = tail(server.home / f"worker-{NAME}.log")
            tell(f"{failure}\nThe worker's log ends with:\n{log}")
        if keep:
            ui = server.api_url.removesuffix("/api")
            with contextlib.suppress(KeyboardInterrupt):
                console.print(f"\nThe Prefect UI is at {ui} until Ctrl-C.")
                signal.pause()
    return failure is None


async def _deploy(server: TemporaryServer) -> None:
    async with get_client() as client:
        await create_definitions(client, Manifest.load().named(NAME))
    await asyncio.to_thread(run_prefect_deploy, server.env, "--name", NAME)


async def _run_parent(parameters: dict[str, Any], console: Console) -> tuple[Any, str | None]:
    """Return the parent's result, or None and why there is none."""
    async with get_client() as client:
        parent = await arun_deployment(PARENT, client=client, parameters=parameters, timeout=0)
        console.print(f"{PARENT} runs: {url_for(parent)}", soft_wrap=True)
        parent = await _follow(client, parent, console)
    state = parent.state
    if state is None or not state.is_completed():
        return None, f"{PARENT} ended as {state and state.name}: {state and state.message}"
    return await read_value(state, Returns(Any)), None


async def _follow(client: PrefectClient, parent: FlowRun, console: Console) -> FlowRun:
    """Show a parent and its children until the parent is final."""
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id]))
    with Live(console=console, auto_refresh=False) as live:
        while True:
            parent = await client.read_flow_run(parent.id)
            runs = await client.read_flow_runs(
                flow_run_filter=children, sort=FlowRunSort.EXPECTED_START_TIME_ASC
            )
            live.update(_table(parent, runs), refresh=True)
            if parent.state and parent.state.is_final():
                break
            await asyncio.sleep(REFRESH_SECONDS)
    if not console.is_terminal:
        console.line()  # elsewhere `Live` leaves the table's last line open
    return parent


def _table(parent: FlowRun, children: list[FlowRun]) -> Table:
    table = Table("run", "state", "seconds", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for indent, run in [("", parent), *(("  └ ", child) for child in children)]:
        color = COLORS.get(run.state_type.value if run.state_type else "", "default")
        seconds = "" if run.start_time is None else f"{_run_seconds(run):.1f}"
        table.add_row(indent + run.name, f"[{color}]{run.state_name}[/]", seconds)
    return table


def _run_seconds(run: FlowRun) -> float:
    assert run.start_time is not None  # noqa: S101 - asked of started runs only
    return ((run.end_time or datetime.now(UTC)) - run.start_time).total_seconds()
