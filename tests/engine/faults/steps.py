"""Flows that go wrong as they are told, for the fault tests."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, suspend_flow_run, task
from prefect.concurrency import _leases
from pydantic import BaseModel, BeforeValidator, Field, Json

from deployments import ChildError, child, parent_flow, raise_failures

# Runs that hold a limit renew their lease of 300 s every 6 s, in place of 225: tests won't wait.
_leases._RENEWAL_FRACTION = 0.02

OPTIONS = {"deployment", "job_variables"}
What = Literal["return", "raise", "kill", "hold", "hog", "function", "text"]


@flow(flow_run_name="{name}")
def step(name: str, do: What = "return", unless: str | None = None) -> int:
    """Do as told, unless a file exists; `hold` waits for the file, `raise` leaves it behind."""
    while do == "hold" and not (unless and Path(unless).exists()):
        time.sleep(0.1)
    if unless and Path(unless).exists():
        return len(name)
    if do == "raise":
        if unless:
            Path(unless).touch()
        raise ValueError(f"{name} broke")
    if do == "hog":
        return len(b"x" * 2**32)
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    odd: Any = {"function": lambda: None, "text": "a text"}
    return odd.get(do, len(name))  # type: ignore[no-any-return]


@flow(flow_run_name="region")
def region() -> str:
    """Tell what a job variable said."""
    return os.environ["REGION"]


class Renamed(BaseModel):
    """Written under another name than it is read under."""

    width: int = Field(0, serialization_alias="Width")


def split(text: str) -> list[str]:
    """Take a text, and nothing else."""
    return text.split(",")


Words = Annotated[list[str], BeforeValidator(split, json_schema_input_type=str)]


@flow(flow_run_name="echo")
def echo(first: int, /, words: Words, numbers: Json[list[int]], size: Renamed) -> list[Any]:
    """Tell what arrived."""
    return [first, words, numbers, size.width]


@flow(flow_run_name="variadic")
def variadic(first: int, *rest: int, **named: str) -> list[Any]:
    """Tell what arrived."""
    return [first, list(rest), named]


@flow(flow_run_name="slow", timeout_seconds=1)
async def slow() -> None:
    """Exceed its own timeout."""
    await asyncio.sleep(60)


@parent_flow(flow_run_name="family")
async def family(steps: list[dict[str, Any]], then: Literal["return", "raise"] = "return") -> Any:
    """Gather steps; or raise while they run."""
    calls = [
        child(step, **{option: each.pop(option) for option in OPTIONS & set(each)})(**each)
        for each in steps
    ]
    if then == "raise":
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        raise RuntimeError("the parent broke")
    return raise_failures(await asyncio.gather(*calls, return_exceptions=True))


@parent_flow(flow_run_name="retrying", retries=1)
async def retrying(steps: list[dict[str, Any]]) -> Any:
    """Gather steps, and once more if one fails."""
    return await asyncio.gather(*(child(step)(**each) for each in steps))


@parent_flow(flow_run_name="grandparent")
async def grandparent(steps: list[dict[str, Any]]) -> Any:
    """Call a parent as a child."""
    try:
        return await child(family)(steps=steps)
    except ChildError as error:
        raise RuntimeError(f"in the family: {error}") from error


@task
async def call_step(options: dict[str, Any]) -> int:
    """Call a step, in whatever thread and loop this runs."""
    return await child(step)(**options)


@parent_flow(flow_run_name="mapped")
async def mapped(steps: list[dict[str, Any]], then: Literal["return", "raise"] = "return") -> Any:
    """Map a task over steps, and stand still until it has ended; or raise while it starts."""
    sizes: Any = call_step.map(steps)
    if then == "raise":
        raise RuntimeError("the parent broke")
    return sizes.result()


@flow(flow_run_name="silent", persist_result=False)
def silent(file: str) -> None:
    """Have an effect, and no result."""
    with Path(file).open("a") as lines:
        lines.write("once\n")


@flow(flow_run_name="plain")
async def plain(steps: list[dict[str, Any]]) -> Any:
    """Call a parent in-process."""
    return await family(steps)


@parent_flow(flow_run_name="patient")
async def patient(steps: list[dict[str, Any]]) -> Any:
    """Start steps, be suspended, and gather them after that."""
    runs = [await child(step).submit(**each) for each in steps]
    await suspend_flow_run(key="once")  # type: ignore[misc]
    return [await run.result() for run in runs]
