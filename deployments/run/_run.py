"""`run`: a deployment of prefect.yaml on the server in use, followed until it is final."""

from __future__ import annotations

import asyncio
import signal
import sys
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

from deployments._console import ESCAPES
from deployments.project import first_problem
from deployments.run._follow import follow
from deployments.run._prepare import Prepared
from deployments.run._tree import Tree
from deployments.servers import require_server
from deployments.values import Unreadable, read_value

QUESTION = "[c]ancel the run, [l]eave it running, or go on [w]atching? "


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        completed: Whether it did.
        result: Of the run, where there is no problem.
        problem: Why there is no result.
    """

    completed: bool
    result: Any = None
    problem: str | None = None


async def start(prepared: Prepared, console: Console) -> FlowRun:
    """Start a run, and print its link.

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
    console.print(f"{prepared.name} runs: {url_for(run)}", soft_wrap=True)
    return run


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
    return Outcome(True, problem=f"{prepared.name} completed, but its result {reason}")


def write_json(value: Any) -> str:
    """Return a result of any type as JSON, without escape sequences for a terminal."""
    otherwise: Any = {"by_alias": False, "bytes_mode": "base64", "fallback": str}
    text = to_json(value, indent=2, inf_nan_mode="null", **otherwise)
    return text.decode().translate(ESCAPES)


def run_here(prepared: Prepared, console: Console) -> Outcome | None:
    """Run a deployment on the server in use, and follow it.

    Ctrl-C asks what is to become of the run. It is left running where there is no terminal to ask
    on, at SIGTERM, and at a second Ctrl-C.

    Returns:
        How it ended; None if it is left running.

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
        tree = Tree(asyncio.run(start(prepared, console)))
    except KeyboardInterrupt:
        console.print(f"Interrupted: look in the UI whether {prepared.name} runs already.")
        return None
    cancel = False
    while True:
        try:
            run = asyncio.run(follow(tree, console, cancel=cancel))
            return asyncio.run(read_outcome(prepared, run))
        except KeyboardInterrupt:
            answer = "l" if terminated else _ask(console)
        if answer == "l":
            told = f"{tree.root.name} is left running: {url_for(tree.root)}"
            console.print(told, soft_wrap=True)
            return None
        cancel = answer == "c"


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
