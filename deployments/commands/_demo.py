"""The demo: a parent of prefect.yaml on a server and workers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.flows import Flow
from prefect.utilities.urls import url_for
from pydantic import ValidationError
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from deployments.commands._check import required_parameters
from deployments.commands._deploy import deploy_manifest
from deployments.commands._manifest import Deployment, Manifest, first_problem
from deployments.commands._processes import tail, temporary_server, temporary_worker
from deployments.runtime import (
    Returns,
    Unreadable,
    is_parent,
    read_value,
    to_json,
    type_hints,
    validate_some,
)

REFRESH_SECONDS = 0.5
COLORS = {"COMPLETED": "green", "RUNNING": "blue", "FAILED": "red", "CRASHED": "red"}


@dataclass(frozen=True)
class Demo:
    """What a demo runs.

    Attributes:
        manifest: The part of prefect.yaml that needs no Docker.
        name: Of the parent, `flow-name/deployment-name`.
        pool: The parent's work pool.
        parameters: Of the parent, as JSON data.
        returns: What the parent's flow returns.
    """

    manifest: Manifest
    name: str
    pool: str
    parameters: dict[str, Any]
    returns: Returns[Any]


def prepare(name: str | None, given: list[str]) -> Demo:
    """Find a parent in prefect.yaml, and read its parameters.

    Args:
        name: Of a flow, or `flow-name/deployment-name`; by default that of the first parent.
        given: `key=value` for each parameter; the value is JSON, or else text.

    Raises:
        ValueError: There is no such parent; or a parameter is unknown, missing or wrong.
    """
    manifest = Manifest.load().of_type("process")
    there = []
    for deployment in manifest.deployments:
        flow = deployment.load_flow()
        there.append(f"{flow.name}/{deployment.name}")
        if name in (flow.name, there[-1]) if name else is_parent(flow):
            break
    else:
        what = f"deployment {name}" if name else "parent"
        raise ValueError(
            f"prefect.yaml has no {what} in a work pool of type process, only {', '.join(there)}"
        )
    try:
        returns = Returns[Any](type_hints(flow.name, flow.fn).get("return", Any))
    except Exception as error:  # a type of the user's may raise anything
        raise ValueError(f"{flow.name}: what it returns can't be read: {error!r}") from error
    parameters = _read_parameters(flow, deployment, given)
    return Demo(manifest, there[-1], deployment.work_pool.name, parameters, returns)


def _read_parameters(
    flow: Flow[..., Any], deployment: Deployment, given: list[str]
) -> dict[str, Any]:
    parameters = {}
    for each in given:
        key, sign, text = each.partition("=")
        if not (key and sign):
            raise ValueError(f"the parameter {each!r} must be key=value")
        if key not in flow.parameters.properties:
            names = ", ".join(flow.parameters.properties)
            raise ValueError(f"{flow.name} has no parameter {key}, only {names or 'none'}")
        try:
            parameters[key] = json.loads(text)
        except ValueError:
            parameters[key] = text
    for key in required_parameters(flow):
        if key not in deployment.parameters | parameters:
            raise ValueError(f"{flow.name} needs the parameter {key}: give it by -p {key}=...")
    try:
        return to_json(flow, parameters, validate_some(flow, parameters))
    except ValidationError as error:
        wrong = repr(error.errors()[0]["input"])[:200]
        raise ValueError(f"{first_problem(error)}, not {wrong}") from None


def run_demo(
    demo: Demo,
    console: Console,
    show: Callable[[Any], None],
    tell: Callable[[str], None],
    keep: bool,
) -> bool:
    """Run a parent on a temporary server with a worker for each work pool, and stop them.

    Args:
        demo: What runs.
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
            asyncio.run(deploy_manifest(demo.manifest, server.env))
        with console.status("Starting a worker ..."):
            for pool in demo.manifest.definitions.work_pools:
                stack.enter_context(temporary_worker(server, pool))
        # Last in, first out: from here on a second Ctrl-C does not keep the rest from stopping.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        log = server.home / f"worker-{demo.pool}.log"
        result, failure = asyncio.run(_run_parent(demo, log, console))
        if failure is None:
            show(result)
        else:
            tell(failure)
        if keep:
            ui = server.api_url.removesuffix("/api")
            with contextlib.suppress(KeyboardInterrupt):
                console.print(f"\nThe Prefect UI is at {ui} until Ctrl-C.")
                signal.pause()
    return failure is None


async def _run_parent(demo: Demo, log: Path, console: Console) -> tuple[Any, str | None]:
    """Return the parent's result, or None and why there is none."""
    async with get_client() as client:
        parent = await arun_deployment(
            demo.name, client=client, parameters=demo.parameters, timeout=0
        )
        console.print(f"{demo.name} runs: {url_for(parent)}", soft_wrap=True)
        parent = await _follow(client, parent, console)
    state = parent.state
    if state is None or not state.is_completed():
        ended = f"{demo.name} ended as {state and state.name}: {state and state.message}"
        return None, f"{ended}\nThe worker's log ends with:\n{tail(log)}"
    try:
        return await read_value(state, demo.returns), None
    except ValidationError as error:
        reason = f"is not what it should be: {first_problem(error)}"
    except Unreadable as error:
        reason = " ".join(str(error).split())
    return None, f"{demo.name} completed, but its result {reason}"


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
        table.add_row(escape(indent + run.name), f"[{color}]{run.state_name}[/]", seconds)
    return table


def _run_seconds(run: FlowRun) -> float:
    assert run.start_time is not None  # noqa: S101 - asked of started runs only
    return ((run.end_time or datetime.now(UTC)) - run.start_time).total_seconds()
