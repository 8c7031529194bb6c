"""`demo`: a run of a parent on a server and workers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from deployments.deploy import deploy_manifest
from deployments.run._prepare import Prepared
from deployments.run._run import Outcome, follow, read_outcome, start
from deployments.servers import tail, temporary_server, temporary_worker


def run_demo(
    prepared: Prepared, console: Console, tell: Callable[[Outcome], None], keep: bool
) -> Outcome:
    """Run a parent on a temporary server with a worker for each work pool, and stop them.

    `tell` gets how it ended while the server is up; `keep` leaves that up until Ctrl-C.

    Raises:
        RuntimeError: The server, the worker or the deployment failed.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-demo-")))
        with console.status("Starting a temporary Prefect server ..."):
            server = stack.enter_context(temporary_server(home, check_log=False))
        stack.enter_context(server.used())
        with console.status("Deploying prefect.yaml ..."):
            asyncio.run(deploy_manifest(prepared.manifest, server.env))
        with console.status("Starting a worker ..."):
            for pool in prepared.manifest.definitions.work_pools:
                stack.enter_context(temporary_worker(server, pool))
        # Last in, first out: from here on a second Ctrl-C does not keep the rest from stopping.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        tree = asyncio.run(start(prepared, console))
        outcome = asyncio.run(read_outcome(prepared, asyncio.run(follow(tree, console))))
        if not outcome.completed:
            log = tail(home / f"worker-{prepared.pool}.log")
            problem = f"{outcome.problem}\nThe worker's log ends with:\n{log}"
            outcome = dataclasses.replace(outcome, problem=problem)
        tell(outcome)
        if keep:
            ui = server.api_url.removesuffix("/api")
            with contextlib.suppress(KeyboardInterrupt):
                console.print(f"\nThe Prefect UI is at {ui} until Ctrl-C.")
                signal.pause()
    return outcome
