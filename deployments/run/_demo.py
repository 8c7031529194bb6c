"""`demo`: a run of a parent on a server and workers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from prefect.client.orchestration import get_client
from rich.console import Console

from deployments.deploy import create_definitions, deploy_manifest
from deployments.project import Manifest
from deployments.run._prepare import Prepared
from deployments.run._run import Outcome, follow, print_link, read_outcome, start
from deployments.servers import TemporaryServer, tail, temporary_server, temporary_worker


def run_demo(prepared: Prepared, console: Console, tell: Callable[[Outcome], None]) -> Outcome:
    """Run a parent on a temporary server with a worker for each work pool, and stop them.

    `tell` gets how it ended, before they are stopped.

    Raises:
        RuntimeError: The server, the worker or the deployment failed.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefect-demo-")))
        with console.status("Starting a temporary Prefect server ..."):
            server = stack.enter_context(temporary_server(home, check_log=False))
        stack.enter_context(server.used())
        with console.status("Deploying prefect.yaml, and starting a worker ..."):
            asyncio.run(_deploy(prepared.manifest, server, stack))
        # Last in, first out: from here on a second Ctrl-C does not keep the rest from stopping.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        tree = asyncio.run(start(prepared, console))
        print_link(prepared, tree, console)
        outcome = asyncio.run(read_outcome(prepared, asyncio.run(follow(tree, console))))
        if not outcome.completed:
            log = tail(home / f"worker-{prepared.pool}.log")
            problem = f"{outcome.problem}\nThe worker's log ends with:\n{log}"
            outcome = dataclasses.replace(outcome, problem=problem)
        tell(outcome)
    return outcome


async def _deploy(manifest: Manifest, server: TemporaryServer, stack: contextlib.ExitStack) -> None:
    """Deploy, and start the workers meanwhile: all of them import Prefect, which takes long."""
    async with get_client() as client:
        await create_definitions(client, manifest)  # workers look for their pools
    workers = [temporary_worker(server, pool) for pool in manifest.definitions.work_pools]
    await asyncio.gather(
        deploy_manifest(manifest, server.env),
        *(asyncio.to_thread(stack.enter_context, worker) for worker in workers),
    )
