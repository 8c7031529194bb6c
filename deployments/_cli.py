"""The commands of `python -m deployments`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, NoReturn, TextIO

import httpx
from cyclopts import App, Parameter
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings
from rich.prompt import Confirm

from deployments import stack
from deployments._console import PlainConsole
from deployments.check import check_manifest, check_server
from deployments.deploy import deploy_manifest, find_leftovers
from deployments.project import ROOT, Manifest
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
SERVER_SECONDS = 60


@app.command
def demo(
    name: str | None = None,
    /,
    *,
    param: Annotated[list[str] | None, Parameter(name=["--param", "-p"])] = None,
    keep: bool = False,
    json: bool = False,
) -> None:
    """See a parent run, on a temporary server that touches nothing of yours.

    That is the first deployment in prefect.yaml whose flow is a parent, and whose work pool is of
    type process, which needs no Docker.

    Args:
        name: Of another flow, or `flow-name/deployment-name`.
        param: A parameter, as `key=value`; the value is JSON, or else text. May be repeated.
        keep: Leave the server and the worker up until Ctrl-C, to click around in the UI.
        json: Print only the result, as JSON, on standard output.
    """
    # Whatever ends us, the server and the worker are stopped first. SIGINT, too: a script's
    # background jobs inherit that it is ignored. The others become it, for which asyncio is made.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: signal.raise_signal(signal.SIGINT))
    tell = functools.partial(_tell, json, sys.stdout)
    # What flows print when they are imported is not the result.
    with _refusing(), contextlib.redirect_stdout(sys.stderr):
        prepared = prepare(name, param or [], "process")
        outcome = run_demo(prepared, progress, tell, keep)
    if not keep and not (outcome.completed and json):
        progress.print(
            "\nGo on: `make demo ARGS=--keep` leaves the Prefect UI up, to look at the runs."
            if outcome.completed
            else "\nIts server is gone: `make demo ARGS=--keep` leaves it up, to look at the runs.",
            style="dim",
        )
    sys.exit(_status(json, outcome))


@app.command
def run(
    name: str,
    /,
    *,
    param: Annotated[list[str] | None, Parameter(name=["--param", "-p"])] = None,
    json: bool = False,
) -> None:
    """Run a deployment of prefect.yaml on your server, watch it and its children, show its result.

    Ctrl-C asks whether to cancel the run, to leave it running, or to go on watching. Without a
    terminal to ask on, and at SIGTERM, it is left running.

    The exit status is 0 only if the run completed, and 130 if it is left running. With --json, it
    is also 1 where the run completed and its result can't be read from here.

    Args:
        name: Of a flow, or `flow-name/deployment-name`.
        param: A parameter, as `key=value`; the value is JSON, or else text. May be repeated.
        json: Print only the result, as JSON, on standard output.
    """
    _require_url()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    stdout = sys.stdout
    with _refusing(), contextlib.redirect_stdout(sys.stderr):  # as above
        outcome = run_here(prepare(name, param or []), progress)
    if outcome is None:
        sys.exit(130)
    _tell(json, stdout, outcome)
    sys.exit(_status(json, outcome))


@app.command
def deploy(*names: str, prune: bool = False, yes: bool = False) -> None:
    """Bring prefect.yaml to your server: `check`, work pools and queues, `prefect deploy`.

    It tells what that changed there.

    Args:
        names: Of the deployments; by default, of those in work pools of type process, which need
            no Docker.
        prune: Delete what deploys of this project made, and prefect.yaml no longer declares:
            deployments, automations, queues and pools. Asks before.
        yes: Don't ask. A deployment with unfinished runs is then kept.
    """
    _require_url()
    with _refusing():
        manifest = _choose(Manifest.load(), names)
        _refuse(check_manifest(manifest))
        kept = asyncio.run(_deploy(manifest, prune=prune, yes=yes))
    if kept:
        sys.exit(1)


@app.command
def check(*names: str, server: bool = False) -> None:
    """Find what is wrong with prefect.yaml and the flows that it deploys: one line each.

    Args:
        names: Of the deployments to look for on the server; by default, of those in work pools
            of type process.
        server: Look at the configured server, too: pools and their workers, automations,
            deployments, and the blocks that prefect.yaml names.
    """
    if server:
        _require_url()
    with _refusing():
        manifest = Manifest.load()
        _refuse(check_manifest(manifest))
        if server:
            _refuse(asyncio.run(_check_server(_choose(manifest, names))))
    progress.print(f"prefect.yaml{', the server' if server else ''} and the flows agree.")


@app.command
def up(*, server: bool = False) -> None:
    """Start a server on Postgres and Redis with workers, in containers, and deploy prefect.yaml.

    Args:
        server: Only the server, for workers on other machines; then `deploy` is up to you.
    """
    with _refusing():
        manifest = Manifest.load()
        _refuse(check_manifest(manifest))
        stack.up(manifest, progress, server)


@app.command
def down(*, volumes: bool = False) -> None:
    """Stop what `up` started, and the runs in its containers.

    Args:
        volumes: Forget all data, too: the database and the results.
    """
    with _refusing():
        stack.down(volumes)


def _tell(json: bool, stdout: TextIO, outcome: Outcome) -> None:
    """Print a result, or why there is none."""
    if outcome.problem:
        _print_error(outcome.problem)
    else:
        print(write_json(outcome.result), file=stdout, flush=True)


def _status(json: bool, outcome: Outcome) -> int:
    """Return the exit status: who asks for JSON needs the result, too."""
    return 0 if outcome.completed and not (json and outcome.problem) else 1


def _choose(manifest: Manifest, names: tuple[str, ...]) -> Manifest:
    """Return the deployments of these names, or those that need no Docker."""
    return manifest.named(*names) if names else manifest.of_type("process")


async def _check_server(manifest: Manifest) -> list[str]:
    async with get_client() as client:
        await require_server(client, progress)
        return [finding async for finding in check_server(client, manifest)]


async def _deploy(manifest: Manifest, *, prune: bool, yes: bool) -> bool:
    """Deploy, and tell what that changed; return whether something was not pruned."""
    async with get_client() as client:
        await require_server(client, progress, SERVER_SECONDS)
        await deploy_manifest(manifest, os.environ, _say)
        leftovers = await find_leftovers(client, manifest)
        for leftover in leftovers:
            _say(leftover)
        if not (prune and leftovers):
            return False
        if not yes and not sys.stdin.isatty():
            raise RuntimeError("--prune deletes what is no longer declared: confirm it by --yes")
        if not yes and not Confirm.ask("Delete what is no longer declared?", default=False):
            return True
        # Again: somebody may have taken their time to answer, and runs go on.
        kept, shown = False, set(map(str, leftovers))
        for leftover in await find_leftovers(client, manifest):
            if leftover.runs and (yes or str(leftover) not in shown):
                why: str | None = "its runs are unfinished: let them end, or cancel them"
            else:
                why = await leftover.delete()
            _say(f"kept: {leftover.what}: {why}" if why else f"deleted: {leftover.what}")
            kept = kept or bool(why)
        return kept


def _say(line: object) -> None:
    progress.print(str(line), soft_wrap=True)


def _require_url() -> None:
    """Refuse to go on without a server, where Prefect would start one of its own."""
    if not get_current_settings().api.url:
        _fail(
            "PREFECT_API_URL is not set: write it into .env (see .env.example), or run "
            "`prefect cloud login`"
        )


def _refuse(findings: Iterable[str]) -> None:
    """Print what was found, and end, if anything was."""
    lines = list(findings)
    for line in lines:
        _say(line)
    if lines:
        sys.exit(1)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """End with one line where what was asked for can't be done, and not with a traceback."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        _fail(str(error))
    except (httpx.HTTPError, PrefectException) as error:
        _fail(asyncio.run(explain(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    _print_error(message)
    sys.exit(1)


def _print_error(message: str) -> None:
    progress.print(f"error: {message}", style="red", soft_wrap=True)
