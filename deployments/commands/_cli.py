"""The commands of `python -m deployments`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Parameter
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from deployments.commands import _demo, _stack, _update
from deployments.commands._check import check_manifest
from deployments.commands._check_server import check_server
from deployments.commands._deploy import create_definitions, run_prefect_deploy
from deployments.commands._manifest import ROOT, Manifest
from deployments.runtime import validate_some

app = App(
    name="python -m deployments",
    help="Prefect parent flows and their child deployments.",
    version_flags=[],
    default_parameter=Parameter(negative=()),
)
progress = Console(stderr=True)
SERVER_SECONDS = 60
DEFAULT_NAMES = ("local",)  # they need no Docker


@app.command
def demo(
    *,
    airports: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    month: int | None = None,
    data_dir: Path | None = None,
    keep: bool = False,
    json: bool = False,
) -> None:
    """See the example flows run, on a temporary server that touches nothing of yours.

    Args:
        airports: IATA codes, separated by spaces or commas.
        month: 1 to 12; the sample data has 1 to 3.
        data_dir: Directory with one AIRPORT.csv.gz per airport.
        keep: Leave the server and the worker up until Ctrl-C, to click around in the UI.
        json: Print only the report, as JSON, on standard output.
    """
    given = {
        "airports": ",".join(airports).split(",") if airports else None,
        "month": month,
        "data_dir": str(data_dir.resolve()) if data_dir else None,
    }
    parameters = {name: value for name, value in given.items() if value is not None}
    # Whatever ends us, the server and the worker are stopped first. SIGINT, too: a script's
    # background jobs inherit that it is ignored. The others become it, for which asyncio is made.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        show = _print_json if json else _print_report
        completed = _demo.run_demo(_check(parameters), progress, show, _print_error, keep)
    except (RuntimeError, ValueError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if not keep and not (completed and json):
        progress.print(
            "\nGo on: `make demo ARGS=--keep` leaves the Prefect UI up; README.md, "
            "“Make it yours”, says how to put your own flows in."
            if completed
            else "\nIts server is gone: `make demo ARGS=--keep` leaves it up, to look at the runs.",
            style="dim",
        )
    if not completed:
        sys.exit(1)


@app.command
def deploy(*names: str) -> None:
    """Bring prefect.yaml to your server: `check`, work pools and queues, `prefect deploy`.

    Args:
        names: Of the deployments: `local`, which is the default; `docker`; or both.
    """
    _require_server()
    names = names or DEFAULT_NAMES
    try:
        manifest = Manifest.load().named(*names)
        _refuse(check_manifest(ROOT / "prefect.yaml", *names))
        asyncio.run(_create_definitions(manifest))
        options = [f"--name={name}" for name in names]
        progress.print(run_prefect_deploy(os.environ, *options), markup=False, highlight=False)
    except (RuntimeError, ValueError) as error:
        _fail(str(error))


@app.command
def update(source: str, *, ref: str | None = None) -> None:
    """Replace the engine, deployments/ and tests/engine/, by a newer one, and show the changes.

    Args:
        source: A git URL, or the path of a repository.
        ref: A branch, tag or commit of it; by default its HEAD.
    """
    try:
        progress.print(_update.update(source, ref), markup=False, highlight=False, soft_wrap=True)
    except ValueError as error:
        _fail(str(error))


@app.command
def check(*names: str, server: bool = False) -> None:
    """Find what is wrong with prefect.yaml and the flows that it deploys: one line each.

    Args:
        names: Of the deployments to look for on the server: `local`, which is the default;
            `docker`; or both.
        server: Look at the configured server, too: pools, workers, deployments, and whether
            results of its workers can be read.
    """
    if server:
        _require_server()
    _refuse(check_manifest())
    if server:
        _refuse(asyncio.run(_check_server(names or DEFAULT_NAMES)))
    progress.print(f"prefect.yaml{', the server' if server else ''} and the flows agree.")


@app.command
def up() -> None:
    """Start a server on Postgres and Redis with workers, in containers, and deploy prefect.yaml."""
    try:
        _stack.up(progress)
    except (RuntimeError, ValueError) as error:
        _fail(str(error))


@app.command
def down(*, volumes: bool = False) -> None:
    """Stop what `up` started, and the runs in its containers.

    Args:
        volumes: Forget all data, too: the database and the results.
    """
    try:
        _stack.down(volumes)
    except RuntimeError as error:
        _fail(str(error))


async def _check_server(names: tuple[str, ...]) -> list[str]:
    async with get_client() as client:
        manifest = Manifest.load().named(*names)
        return [finding async for finding in check_server(client, manifest)]


async def _create_definitions(manifest: Manifest) -> None:
    async with get_client() as client:
        deadline = time.monotonic() + SERVER_SECONDS  # it may just have been started
        while error := await client.api_healthcheck():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no answer from {client.api_url} within {SERVER_SECONDS} s: {error!r}. Start "
                    "it (`prefect server start`), or correct PREFECT_API_URL in .env"
                )
            await asyncio.sleep(1)
        await create_definitions(client, manifest)


def _require_server() -> None:
    """Refuse to go on without a server, where Prefect would start one of its own."""
    if not get_current_settings().api.url:
        _fail(
            "PREFECT_API_URL is not set: write it into .env (see .env.example), or run "
            "`prefect cloud login`"
        )


def _check(parameters: dict[str, Any]) -> dict[str, Any]:
    """Refuse parameters before anything is started."""
    flow_name, deployment_name = _demo.PARENT.split("/")
    flow = Manifest.load().load_flow(flow_name, deployment_name)
    try:
        validate_some(flow, parameters)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}, not {first['input']!r}") from None
    return parameters


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report))  # noqa: T201 - for other programs


def _print_report(report: dict[str, Any]) -> None:
    table = Table(title=f"Departure delays, 2013-{report['month']:02d}")
    for column in ("airport", "flights", "cancelled", "mean delay", "late", "worst carrier"):
        justify = "left" if column in ("airport", "worst carrier") else "right"
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    total = {"airport": "all", "worst_carrier": None, **report}
    for row in [*report["ranking"], total]:
        mean, share, worst = row["mean_dep_delay"], row["share_delayed"], row["worst_carrier"]
        table.add_row(
            row["airport"],
            f"{row['flights']:,}",
            f"{row['cancelled']:,}",
            "" if mean is None else f"{mean:.2f} min",
            "" if share is None else f"{share:.1%}",
            worst["name"] if worst else "",
            end_section=row is report["ranking"][-1],
        )
    progress.print()
    Console().print(table)


def _refuse(findings: Iterable[str]) -> None:
    """Print what was found, and end, if anything was."""
    lines = list(findings)
    for line in lines:
        progress.print(line, markup=False, highlight=False, soft_wrap=True)
    if lines:
        sys.exit(1)


def _fail(message: str) -> NoReturn:
    _print_error(message)
    sys.exit(1)


def _print_error(message: str) -> None:
    progress.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
