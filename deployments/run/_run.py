"""`run`: a deployment of prefect.yaml on the server in use, followed until it is final."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for
from pydantic import ValidationError
from pydantic_core import to_json
from rich.console import Console
from rich.live import Live

from deployments._console import ESCAPES
from deployments.project import first_problem
from deployments.run._prepare import Prepared
from deployments.run._tree import Tree, draw
from deployments.runs import (
    PatientClient,
    cancel_run,
    confirm_cancelled,
    explain_waiting,
    get_eager_client,
    will_restart,
)
from deployments.servers import require_server
from deployments.values import Unreadable, read_value

QUESTION = "[c]ancel the run, [l]eave it running, or go on [w]atching? "
# The pause between two reads: the longer a run takes, the longer.
READ_SECONDS, READ_MAX_SECONDS = 0.5, 5.0
READ_PART = 0.05
# What an answer of the server may take, and how long it may be away.
ANSWER_SECONDS = 30.0
GIVE_UP_SECONDS = 600.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        completed: Whether it did.
        result: The run's result, where there is no problem.
        problem: Why there is no result.
    """

    completed: bool
    result: Any = None
    problem: str | None = None


async def start(prepared: Prepared, console: Console) -> Tree:
    """Start a run.

    Raises:
        httpx.HTTPError: The server does not answer, or refuses the run.
        RuntimeError: It does not know the deployment.
    """
    async with get_client() as client:
        await require_server(client, console)
        try:
            run = await arun_deployment(
                prepared.name, client=client, parameters=prepared.parameters, timeout=0
            )
        except ObjectNotFound:
            raise RuntimeError(
                f"{prepared.name} is not deployed on {client.api_url}: "
                f"`make deploy ARGS={prepared.name.split('/')[1]}`"
            ) from None
    return Tree(run)


def print_link(prepared: Prepared, tree: Tree, console: Console) -> None:
    """Print where the run is in the UI."""
    console.print(f"{prepared.name} runs: {url_for(tree.root)}", soft_wrap=True)


async def follow(tree: Tree, console: Console, *, cancel: bool = False) -> FlowRun:
    """Show a run and all runs below it until it is final, and return it as it ended.

    On a terminal the picture is live; elsewhere it is printed once, in the end.

    Raises:
        RuntimeError: The run was deleted, or the server did not answer for `GIVE_UP_SECONDS`.
    """

    def warn(line: str) -> None:
        console.print(line, style="yellow", soft_wrap=True)

    async def all_runs() -> list[FlowRun]:
        return [tree.root, *tree.below]

    try:
        async with get_client() as client, get_eager_client() as eager:
            server = PatientClient(eager, GIVE_UP_SECONDS, RuntimeError, warn, ANSWER_SECONDS)
            with Live(console=console, get_renderable=lambda: draw(tree)):
                if cancel:
                    await server.ask(lambda client: cancel_run(client, tree.root.id))
                explaining = asyncio.create_task(explain_waiting(client, all_runs, warn))
                try:
                    await _read_until_final(server, tree)
                finally:
                    explaining.cancel()
    except ObjectNotFound:
        raise RuntimeError(f"the run {tree.root.name} was deleted") from None
    finally:
        if not console.is_terminal:
            console.line()  # elsewhere `Live` leaves the last line open
    return tree.root


async def _read_until_final(server: PatientClient, tree: Tree) -> None:
    started = time.monotonic()
    while True:
        await server.ask(tree.read)
        final = tree.root.state and tree.root.state.is_final()
        if final and not await server.ask(lambda client: will_restart(client, tree.root)):
            await server.ask(tree.read)  # children that ended with it
            return
        # Nobody else may do so.
        await server.ask(lambda client: confirm_cancelled(client, [tree.root]))
        pause = READ_SECONDS + READ_PART * (time.monotonic() - started)
        await asyncio.sleep(min(pause, READ_MAX_SECONDS))


async def read_outcome(prepared: Prepared, run: FlowRun) -> Outcome:
    """Return the result of a run that has ended, or why there is none."""
    state = run.state
    if state is None or not state.is_completed():
        ended = f"{prepared.name} ended as {state and state.name}: {state and state.message}"
        return Outcome(False, problem=ended)
    try:
        return Outcome(True, await read_value(state, prepared.returns))
    except ValidationError as error:
        reason = f"is not what it should be: {first_problem(error)}"
    except Unreadable as error:
        reason = " ".join(str(error).split())
    return Outcome(True, problem=f"{prepared.name} completed. Its result {reason}")


def write_json(value: Any) -> str:
    """Return a result of any type as JSON, without escape sequences for a terminal."""
    otherwise: Any = {"by_alias": False, "bytes_mode": "base64", "fallback": str}
    text = to_json(value, indent=2, inf_nan_mode="null", **otherwise)
    return text.decode().translate(ESCAPES)


def run_here(prepared: Prepared, console: Console) -> Outcome | None:
    """Run a deployment on the server in use, follow it, and return how it ended.

    Ctrl-C asks what is to become of the run. It is left running, which returns None, where there
    is no terminal to ask on, at SIGTERM, and at a second Ctrl-C.

    Raises:
        RuntimeError: It could not be started, it was deleted, or the server stays away.
    """
    terminated = False

    def terminate(*_: Any) -> None:
        nonlocal terminated
        terminated = True
        signal.raise_signal(signal.SIGINT)  # for which asyncio is made

    signal.signal(signal.SIGTERM, terminate)
    try:
        tree = asyncio.run(start(prepared, console))
    except KeyboardInterrupt:
        console.print(f"Interrupted: look in the UI whether {prepared.name} runs already.")
        return None
    answer = ""
    while answer != "l":
        try:
            if not answer:  # who interrupts because of what it says is asked
                print_link(prepared, tree, console)
            run = asyncio.run(follow(tree, console, cancel=answer == "c"))
            return asyncio.run(read_outcome(prepared, run))
        except KeyboardInterrupt:
            answer = "l" if terminated else _ask(console)
    console.print(f"{tree.root.name} is left running: {url_for(tree.root)}", soft_wrap=True)
    return None


def _ask(console: Console) -> str:
    """Ask what is to become of a run that is under way."""
    if not (sys.stdin.isatty() and console.is_terminal):
        return "l"
    answer = ""
    try:
        while answer not in ("c", "l", "w"):
            answer = console.input(QUESTION).strip().lower()[:1]
    except (EOFError, KeyboardInterrupt):
        console.line()
        return "l"
    return answer
