"""Durable flows, which write down what they do: what ran twice, or beside itself, is seen there."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from prefect import flow, suspend_flow_run, task

from deployments import child, parent_flow


def note(file: str, *words: object) -> None:
    """Add a line to a file, at once."""
    with Path(file).open("a") as lines:
        lines.write(" ".join(map(str, words)) + "\n")


@flow(flow_run_name="{name}")
def record(name: str, file: str, go: str, seconds: float = 0) -> int:
    """Write down start and end, and take some time and wait for a file in between."""
    for line in Path(file).read_text().splitlines() if Path(file).exists() else []:
        what, who, pid = line.split()
        if (what, who) == ("start", name) and Path(f"/proc/{pid}").exists():
            note(file, "overlap", name, pid)
    note(file, "start", name, os.getpid())
    time.sleep(seconds)
    while not Path(go).exists():
        time.sleep(0.1)
    note(file, "end", name, os.getpid())
    return len(name)


@task
def prepare(file: str) -> int:
    """Be done once."""
    note(file, "task", "prepare", os.getpid())
    return 1


@parent_flow(flow_run_name="lasting")
async def lasting(
    file: str, names: list[str], go: str, kind: str | None = None, seconds: float = 0
) -> list[int]:
    """Do a task, then gather records, of another deployment if that is said."""
    note(file, "start", "lasting", os.getpid())
    prepare(file)
    call = child(record, deployment=kind)
    calls = [call(name, file, f"{go}-{name}", seconds) for name in names]
    return list(await asyncio.gather(*calls))


@parent_flow(flow_run_name="lasting-again", retries=1)
async def lasting_again(file: str, go: str) -> None:
    """Fail after a child."""
    await child(record)("a", file, f"{go}-a")
    raise RuntimeError("broke")


@parent_flow(flow_run_name="lasting-short", timeout_seconds=10)
async def lasting_short(file: str, go: str) -> int:
    """Exceed its own timeout."""
    note(file, "start", "lasting", os.getpid())
    return await child(record)("a", file, f"{go}-a")


@parent_flow(flow_run_name="lasting-pause")
async def lasting_pause(file: str, go: str) -> int:
    """Start a child, be suspended, and wait for it after that."""
    run = await child(record).submit("a", file, f"{go}-a")
    await suspend_flow_run(key="once")  # type: ignore[misc]
    return await run.result()


@parent_flow(flow_run_name="over")
async def over(file: str, names: list[str], go: str) -> list[int]:
    """Call a parent that calls children."""
    note(file, "start", "over", os.getpid())
    return await child(lasting)(file, names, go)


async def tell(flow: Any, flow_run: Any, state: Any) -> None:
    """Take longer than a restart would wait without its worker's word."""
    note(flow_run.parameters["file"], "hook", "begins", os.getpid())
    await asyncio.sleep(9)
    note(flow_run.parameters["file"], "hook", "ends", os.getpid())


@flow(flow_run_name="hooked", on_crashed=[tell])
def hooked(file: str, go: str) -> int:
    """Have a hook that takes its time."""
    return record.fn("hooked", file, f"{go}-hooked")


@flow(flow_run_name="stubborn")
def stubborn(file: str, deaths: int) -> int:
    """Die so many times."""
    note(file, "start", "stubborn", os.getpid())
    if Path(file).read_text().count("start stubborn") <= deaths:
        os.kill(os.getpid(), 9)
    return deaths


@parent_flow(flow_run_name="trusting")
async def trusting(file: str, deaths: int) -> Any:
    """Wait for a child that dies."""
    return await child(stubborn, deployment="durable")(file, deaths)
