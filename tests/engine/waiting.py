"""Waiting for something on a server, and looking at what is there."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter, EventRelatedFilter

from deployments.runs import read_all

T = TypeVar("T")

# A machine with two cores that does other things meanwhile takes its time.
SECONDS = 300


async def wait_for(
    predicate: Callable[[], Awaitable[T | None]],
    what: str,
    seconds: float = SECONDS,
    instead: Callable[[], Awaitable[str]] | None = None,
) -> T:
    """Return what the predicate returns as soon as it is true, or fail after some time.

    A failure says what `instead` tells.
    """
    deadline = time.monotonic() + seconds
    while not (value := await predicate()):
        if time.monotonic() > deadline:
            there = f"; there is: {await instead()}" if instead else ""
            raise AssertionError(f"waited {seconds:g} s in vain until {what}{there}")
        await asyncio.sleep(0.2)
    return value


def wait_until(
    true: Callable[[], bool],
    what: str,
    seconds: float = SECONDS,
    instead: Callable[[], str] | None = None,
) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        there = f"; there is: {instead()}" if instead else ""
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}{there}"
        time.sleep(0.2)


def processes_of(home: str) -> list[str]:
    """The ids of live processes whose environment names a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if home.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


async def children_of(client: PrefectClient, parent: FlowRun) -> list[FlowRun]:
    return await read_all(
        client,
        FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent.id])),
    )


async def read_graph(client: PrefectClient, parent: FlowRun) -> dict[UUID, set[UUID]]:
    """Return the runs in the parent's run graph, each with those that have an arrow to it."""
    return await _read_graph(client, parent.id, "parents")


async def read_holders(client: PrefectClient, parent_id: UUID) -> dict[UUID, set[UUID]]:
    """Return the runs in a parent's run graph, each with those that it is shown inside of."""
    return await _read_graph(client, parent_id, "encapsulating")


async def _read_graph(client: PrefectClient, parent_id: UUID, of: str) -> dict[UUID, set[UUID]]:
    response = await client.request(
        "GET", "/flow_runs/{id}/graph-v2", path_params={"id": parent_id}
    )
    return {
        UUID(node_id): {UUID(other["id"]) for other in node[of]}
        for node_id, node in response.json()["nodes"]
    }


async def ended(client: PrefectClient, parent: FlowRun, seconds: float = SECONDS) -> FlowRun:
    """Return a parent once it is final, and so are its children."""

    async def final() -> FlowRun | None:
        run = await client.read_flow_run(parent.id)
        runs = [run, *await children_of(client, parent)]
        return run if all(each.state and each.state.is_final() for each in runs) else None

    return await wait_for(
        final,
        f"{parent.name} and its children are final",
        seconds,
        lambda: describe(client, parent),
    )


async def in_states(client: PrefectClient, parent: FlowRun, *expected: str) -> list[FlowRun]:
    """Return a parent's children once the types of their states are as expected, in any order.

    The type, since Prefect renames a Scheduled run to Late after some seconds.
    """

    async def as_expected() -> list[FlowRun] | None:
        runs = await children_of(client, parent)
        types = sorted(run.state_type.value.title() for run in runs if run.state_type)
        return runs if types == sorted(expected) else None

    return await wait_for(
        as_expected,
        f"the children are {', '.join(expected)}",
        instead=lambda: describe(client, parent),
    )


async def restarts(client: PrefectClient, run: FlowRun) -> list[str]:
    """Return what the restarts of a run say."""
    states = await client.read_flow_run_states(run.id)
    messages = {state.message or "" for state in states if state.name == "AwaitingRetry"}
    return sorted(message for message in messages if message.startswith("Restart "))


def print_result(run: FlowRun) -> str:
    """Return the code that prints a run's result, for where that is stored."""
    read = f"get_client(sync_client=True).read_flow_run({str(run.id)!r}).state.result()"
    return f"from prefect import get_client; print({read})"


async def is_in(
    client: PrefectClient, run: FlowRun, *states: str, seconds: float = SECONDS
) -> FlowRun:
    """Wait until a run's state is one of these."""

    async def as_expected() -> FlowRun | None:
        found = await client.read_flow_run(run.id)
        return found if found.state_name in states else None

    return await wait_for(
        as_expected,
        f"{run.name} is {' or '.join(states)}",
        seconds,
        instead=lambda: describe(client, run),
    )


async def describe(client: PrefectClient, parent: FlowRun) -> str:
    """Say in which states a parent and its children are, and why, and since when."""
    runs = [await client.read_flow_run(parent.id), *await children_of(client, parent)]
    return "".join(
        f"\n  {run.name}: {run.state.name} since {run.state.timestamp:%H:%M:%S}, "
        f"process {run.infrastructure_pid}, {run.state.message}"
        for run in runs
        if run.state
    )


async def outcome(client: PrefectClient, parent: FlowRun) -> list[tuple[str, str | None]]:
    return sorted((run.name, run.state_name) for run in await children_of(client, parent))


async def assert_none_went_on(client: PrefectClient, parent: FlowRun) -> None:
    """No child has a state after a final one, except by a retry.

    Or by Prefect's worker: what it cancels while it starts is Crashed, then Cancelled.
    """
    for run in await children_of(client, parent):
        states = await client.read_flow_run_states(run.id)
        for before, after in itertools.pairwise(sorted(states, key=lambda state: state.timestamp)):
            allowed = not before.is_final() or after.is_scheduled()
            allowed = allowed or (before.is_crashed() and after.is_cancelled())
            assert allowed, f"{run.name} was {before.name}, then {after.name}: {after.message}"


async def exit_statuses(client: PrefectClient, runs: Iterable[FlowRun]) -> dict[UUID, str]:
    """Return how the processes of runs ended, as their workers tell it, by the runs' ids."""
    ids = [f"prefect.flow-run.{run.id}" for run in runs]
    executed = EventFilter(
        event=EventNameFilter(name=["prefect.worker.executed-flow-run"]),
        related=EventRelatedFilter(id=ids),
    )
    events = (await client.read_events(executed, limit=50)).events
    return {
        UUID(each.id.removeprefix("prefect.flow-run.")): each["prefect.infrastructure.status-code"]
        for event in events
        for each in event.related
        if each.role == "flow-run"
    }


async def assert_truthful(client: PrefectClient, parent: FlowRun) -> None:
    """Each child is in the run graph once, and no task run is left behind."""
    children = {run.id for run in await children_of(client, parent)}
    assert set(await read_graph(client, parent)) == children
    task_runs = await client.read_task_runs(
        task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[parent.id]))
    )
    assert len(task_runs) == len(children)
    assert all(run.state and run.state.is_final() for run in task_runs)
