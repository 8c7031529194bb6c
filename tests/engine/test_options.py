"""What `child` takes besides its target, and what becomes of it: as with `run_deployment`."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prefect import get_client, task
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY, temporary_settings

from deployments import ChildTimedOut, child, parent_flow
from deployments.deploy import deploy_manifest
from deployments.project import Manifest
from deployments.servers import TemporaryServer
from tests.engine.conftest import MANIFEST
from tests.engine.waiting import SECONDS, read_holders
from tests.engine.words import Size, measure

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("idle")]

# In a work pool that no worker serves, of a project whose automations replace no others.
IDLE = "idle"


@pytest.fixture(scope="module")
def idle(prefect_server: TemporaryServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = MANIFEST.read_text().replace("engine-tests", "idle-tests")
    path = tmp_path_factory.mktemp("idle") / "prefect.yaml"
    path.write_text(text.replace("name: local", f"name: {IDLE}"))
    asyncio.run(deploy_manifest(Manifest.load(path).named(IDLE), prefect_server.env))


async def start_all(calls: dict[str, Any]) -> dict[str, FlowRun]:
    """Start children together, and return their runs as they are before their parent ends."""
    async with get_client() as client:
        started = await asyncio.gather(*(call.submit(word, 1) for word, call in calls.items()))
        return {run.name: await client.read_flow_run(run.id) for run in started}


@pytest.mark.parametrize("together", [True, False])
async def test_children_start_when_and_where_they_are_told_to(together: bool) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    calls = {
        "now": child(measure, deployment=IDLE),
        "later": child(measure, deployment=IDLE, scheduled_time=tomorrow),
        "elsewhere": child(measure, deployment=IDLE, work_queue_name="parents"),
        "both": child(measure, deployment=IDLE, scheduled_time=tomorrow, work_queue_name="parents"),
    }

    @parent_flow
    async def parent() -> dict[str, FlowRun]:
        if together:
            return await start_all(calls)
        runs: dict[str, FlowRun] = {}
        for word, call in calls.items():
            runs |= await start_all({word: call})
        return runs

    runs = await parent()
    places = {name: (run.expected_start_time, run.work_queue_name) for name, run in runs.items()}
    at_once, children = places.pop("now x1")
    assert at_once is not None
    assert at_once < datetime.now(UTC)
    assert children == "children"
    elsewhere, _ = places.pop("elsewhere x1")
    assert elsewhere is not None
    assert elsewhere < datetime.now(UTC)
    assert places == {"later x1": (tomorrow, "children"), "both x1": (tomorrow, "parents")}
    assert runs["elsewhere x1"].work_queue_name == "parents"


async def test_the_same_call_at_another_time_is_the_same_call() -> None:
    """A retried parent asks for another time, and finds its child."""

    @parent_flow(retries=1)
    async def parent() -> list[UUID]:
        soon = datetime.now(UTC) + timedelta(hours=1)
        run = await child(
            measure, deployment=IDLE, scheduled_time=soon, work_queue_name="parents"
        ).submit("again", 1)
        ids.append(run.id)
        if len(ids) == 1:
            raise ValueError("once")
        return ids

    ids: list[UUID] = []
    first, second = await parent()
    assert first == second


async def test_a_timeout_counts_from_a_time_that_is_over() -> None:
    @parent_flow
    async def parent() -> None:
        past = datetime.now(UTC) - timedelta(days=1)
        await child(measure, deployment=IDLE, scheduled_time=past, timeout=3)("past", 1)

    async with asyncio.timeout(SECONDS):
        with pytest.raises(ChildTimedOut, match="did not finish within 3 s"):
            await parent()


async def test_a_trace_goes_on_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    @parent_flow(name="traced")
    async def parent() -> None:
        for run in (await start_all({"alone": child(measure, deployment=IDLE)})).values():
            run_flow(measure, run, parameters=run.parameters)  # as its process does
        both = await start_all(
            {"one": child(measure, deployment=IDLE), "other": child(measure, deployment=IDLE)}
        )
        for run in both.values():
            run_flow(measure, run, parameters=run.parameters)

    with temporary_settings({PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY: True}):
        await parent()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    root = next(span for span in spans.values() if span.parent is None)
    children = [spans[f"{word} x1"] for word in ("alone", "one", "other")]
    assert root.context is not None
    assert {span.parent and span.parent.span_id for span in children} == {root.context.span_id}
    assert {span.context and span.context.trace_id for span in children} == {root.context.trace_id}


async def test_a_task_holds_the_child_that_it_calls() -> None:
    @task
    async def call() -> tuple[str, UUID]:
        return task_run.id, (await child(measure, deployment=IDLE).submit("inside", 1)).id

    @parent_flow
    async def parent() -> list[Any]:
        beside = await child(measure, deployment=IDLE).submit("beside", 1)
        return [flow_run.id, beside.id, *await call()]

    parent_id, beside, task_id, inside = await parent()
    async with get_client() as client:
        holders = await read_holders(client, UUID(parent_id))
    assert (holders[beside], holders[inside]) == (set(), {UUID(task_id)})


@pytest.mark.usefixtures("worker")
async def test_a_child_that_starts_later_is_not_late(caplog: pytest.LogCaptureFixture) -> None:
    """Its timeout counts from then, and nobody tells that it waits."""
    start = datetime.now(UTC) + timedelta(seconds=15)

    @parent_flow
    async def parent() -> tuple[Size, FlowRun]:
        run = await child(measure, scheduled_time=start, timeout=14).submit("later", 2)
        size = await run.result()
        async with get_client() as client:
            return size, await client.read_flow_run(run.id)

    with caplog.at_level(logging.WARNING):
        size, run = await parent()
    assert size.length == 10
    assert run.start_time is not None
    assert run.start_time > start - timedelta(seconds=1)  # the server says how long, in seconds
    assert [record.message for record in caplog.records] == []
