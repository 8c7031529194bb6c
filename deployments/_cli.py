"""The commands of `python -m deployments`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import httpx
from cyclopts import App, Parameter, validators
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings

from deployments import stack
from deployments._console import PlainConsole
from deployments.check import check_manifest, check_server
from deployments.deploy import deploy_and_prune
from deployments.dev import run_dev, use_server
from deployments.project import ROOT, Manifest, write_flow
from deployments.run import Outcome, prepare, run_demo, run_here, write_json
from deployments.servers import explain, require_server

app = App(
    name="python -m deployments",
    help="Prefect parent flows and their child deployments.",
    version=lambda: (ROOT / "deployments/CHANGELOG.md").read_text().split("\n## ")[1].split()[0],
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
)
progress = PlainConsole(stderr=True)
PORTS = validators.Number(gte=1, lte=65535)
Param = Annotated[list[str] | None, Parameter(name=["--param", "-p"])]


@app.command
def demo(name: str | None = None, /, *, param: Param = None, json: bool = False) -> None:
    """See a parent run, on a temporary server that touches nothing of yours.

    That is the first deployment in prefect.yaml whose flow is a parent, and whose work pool is of
    type process, which needs no Docker.

    Args:
        name: The name of another flow, or `flow-name/deployment-name`.
        param: A parameter, as `key=value`; the value is JSON, or else text. May be repeated.
        json: Print only the result, as JSON, on standard output.
    """
    # Whatever ends us, the server and the worker are stopped first. SIGINT, too: a script's
    # background jobs inherit that it is ignored. The others become it, for which asyncio is made.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: signal.raise_signal(signal.SIGINT))
    with contextlib.redirect_stdout(sys.stderr):  # where flows print when they are imported
        prepared = prepare(name, param or [], "process")
        outcome = run_demo(prepared, progress, partial(_print_outcome, json=json))
    if not (outcome.completed and json):
        hint = "`make dev` keeps a Prefect server and its UI up, to look at runs and start them."
        progress.print(f"\n{hint}", style="dim")
    sys.exit(_read_status(outcome, json))


@app.command
def dev(*, port: Annotated[int | None, Parameter(validator=PORTS)] = None) -> None:
    """Work on your flows: a server, workers, and what prefect.yaml declares, until Ctrl-C.

    What changes is checked and deployed again, and each run without a parent is told as it starts
    and ends. Data and logs are kept in .dev.

    Args:
        port: The server's; by default 4200, or the next one that is free.
    """
    run_dev(port, progress)


@app.command
def run(name: str, /, *, param: Param = None, json: bool = False) -> None:
    """Run a deployment of prefect.yaml on your server, watch it and its children, show its result.

    Ctrl-C asks whether to cancel the run, to leave it running, or to go on watching. Without a
    terminal to ask on, and at SIGTERM, it is left running.

    The exit status is 0 only if the run completed, and 130 if it is left running. With --json, it
    is also 1 where the run completed and its result can't be read from here.

    Args:
        name: The name of a flow, or `flow-name/deployment-name`.
        param: A parameter, as `key=value`; the value is JSON, or else text. May be repeated.
        json: Print only the result, as JSON, on standard output.
    """
    _require_url()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with contextlib.redirect_stdout(sys.stderr):  # as above
        outcome = run_here(prepare(name, param or []), progress)
    if outcome is None:
        sys.exit(130)
    _print_outcome(outcome, json)
    sys.exit(_read_status(outcome, json))


@app.command
def flow(name: str, /, *, parent: bool = False) -> None:
    """Write a flow, its test, and its entries at the end of prefect.yaml.

    Args:
        name: The flow's name, in kebab-case or snake_case.
        parent: Make it a parent, whose children are the last flow that takes one text.
    """
    progress.print(f"Wrote {', '.join(write_flow(name, parent))}.")
    again = "; run it: make demo ARGS=" + name.replace("_", "-") if parent else ""
    progress.print(f"Write what it does; then: make check && make test{again}", soft_wrap=True)


@app.command
def deploy(*names: str, prune: bool = False, yes: bool = False) -> None:
    """Bring prefect.yaml to your server: `check`, work pools and queues, `prefect deploy`.

    It tells what that changed there.

    Args:
        names: The names of deployments; by default, all in work pools of type process, which
            need no Docker.
        prune: Delete what deploys of this project made, and prefect.yaml no longer declares:
            deployments, automations, queues and pools. Asks before, and keeps what is in use.
        yes: Don't ask.
    """
    _require_url()
    manifest = _choose(Manifest.load(), names)
    _refuse(check_manifest(manifest))
    sys.exit(asyncio.run(deploy_and_prune(manifest, progress, prune=prune, yes=yes)))


@app.command
def check(*names: str, server: bool = False) -> None:
    """Find what is wrong with prefect.yaml and the flows that it deploys: one line each.

    Args:
        names: The names of deployments to look for on the server; by default, all in work
            pools of type process.
        server: Look at the configured server, too: pools and their workers, automations,
            deployments, and the blocks that prefect.yaml names.
    """
    if server:
        _require_url()
    manifest = Manifest.load()
    _refuse(check_manifest(manifest))
    if server:
        _refuse(asyncio.run(_check_server(_choose(manifest, names))))
    progress.print(f"prefect.yaml{', the server' if server else ''} and the flows agree.")


@app.command
def up(*, server: bool = False) -> None:
    """Start a server on Postgres and Redis with a worker, and deploy what runs in containers.

    Args:
        server: Only the server, for workers on other machines; then `deploy` is up to you.
    """
    manifest = Manifest.load()
    _refuse(check_manifest(manifest))
    stack.up(manifest, progress, server)


@app.command
def down(*, volumes: bool = False, yes: bool = False) -> None:
    """Stop what `up` started, and the runs in its containers.

    Args:
        volumes: Forget all data, too: the database and the results. Asks before.
        yes: Don't ask.
    """
    stack.down(Manifest.load(), progress, volumes=volumes, yes=yes)


def main() -> None:
    """Run the command that was asked for, and say in a line why it can't be done."""
    try:
        app()
    except (RuntimeError, ValueError) as error:
        message = str(error)
    except subprocess.CalledProcessError as error:
        message = f"`{' '.join(error.cmd)}` failed, see above"
    except (httpx.HTTPError, PrefectException) as error:
        message = asyncio.run(explain(error))
    _print_error(message)
    sys.exit(1)


def _print_error(message: str) -> None:
    progress.print(f"error: {message}", style="red", soft_wrap=True)


def _print_outcome(outcome: Outcome, json: bool) -> None:
    """Print a result, or why there is none: that is an error where the exit status says so."""
    if outcome.problem and _read_status(outcome, json):
        _print_error(outcome.problem)
    elif outcome.problem:
        progress.print(outcome.problem, soft_wrap=True)
    else:
        print(write_json(outcome.result), file=sys.__stdout__, flush=True)


def _read_status(outcome: Outcome, json: bool) -> int:
    """Return the exit status: who asks for JSON needs the result, too."""
    return 0 if outcome.completed and not (json and outcome.problem) else 1


def _choose(manifest: Manifest, names: tuple[str, ...]) -> Manifest:
    """Return the deployments of these names, or those that need no Docker."""
    return manifest.named(*names) if names else manifest.of_type("process")


async def _check_server(manifest: Manifest) -> list[str]:
    async with get_client() as client:
        await require_server(client, progress)
        return [finding async for finding in check_server(client, manifest)]


def _require_url() -> None:
    """Refuse to go on without a server, where Prefect would start one of its own."""
    if url := use_server():
        progress.print(f"On the server of `make dev`, {url}", style="dim")
    if not get_current_settings().api.url:
        raise RuntimeError(
            "PREFECT_API_URL is not set: run `make dev` in another terminal, write it into .env "
            "(see .env.example), or run `prefect cloud login`"
        )


def _refuse(findings: Iterable[str]) -> None:
    """Print what was found, and end, if anything was."""
    lines = list(findings)
    for line in lines:
        progress.print(line, soft_wrap=True)
    if lines:
        sys.exit(1)
