"""The page that a parent publishes: two artifacts of its run, whatever becomes of it."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.states import AwaitingRetry, Running

from deployments import child
from deployments.parent import _page
from tests.engine.faults.conftest import InProcess, start
from tests.engine.faults.proxy import FaultyProxy
from tests.engine.faults.steps import step
from tests.engine.waiting import children_of, ended, in_states, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def artifacts_of(client: PrefectClient, run: FlowRun) -> list[Artifact]:
    """Return a run's progress and its table, in this order."""
    artifacts = await client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
            type=ArtifactFilterType(any_=["progress", "markdown"]),
        )
    )
    return sorted(artifacts, key=lambda artifact: artifact.type or "", reverse=True)


async def page_of(client: PrefectClient, run: FlowRun) -> tuple[Any, str]:
    progress, table = await artifacts_of(client, run)
    return progress.data, str(table.data)


async def test_a_parent_shows_how_its_children_ended(client: PrefectClient) -> None:
    steps = [{"name": "a"}, {"name": "b"}, {"name": "bad|one", "do": "raise"}]
    parent = await ended(client, await start("family", steps=steps))
    progress, table = await page_of(client, parent)
    assert progress == 100
    assert table.startswith("**3 of 3 ended: 1 Failed, 2 Completed**")
    first = table.splitlines()[4]
    (bad,) = [run for run in await children_of(client, parent) if run.name == "bad|one"]
    assert first.startswith(r"| [bad\|one](")
    assert f"/runs/flow-run/{bad.id})" in first
    assert first.endswith(r"ValueError: bad\|one broke |")


async def test_the_page_of_a_parent_is_live(
    proxy: FaultyProxy,
    in_process: InProcess,
    client: PrefectClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is updated in place, and not while nothing changes."""
    monkeypatch.setattr(_page, "REQUEST_SECONDS", 0.2)

    def sent(end: str) -> int:
        return sum(path.rpartition("/api/")[2].startswith(end) for _, path in proxy.requests)

    async def shows(text: str) -> list[Artifact]:
        async def there() -> list[Artifact] | None:
            assert in_process.run is not None
            found = await artifacts_of(client, in_process.run)
            return found if len(found) == 2 and text in str(found[1].data) else None

        return await wait_for(there, f"the page shows {text}")

    async def code() -> list[Artifact]:
        runs = [await child(step, deployment="nobody").submit(name) for name in "ab"]
        first = await shows("**0 of 2 ended: 2 Scheduled**")
        await client.set_flow_run_state(runs[0].id, Running())
        running = await shows("**0 of 2 ended: 1 Running, 1 Scheduled**")
        assert "As of " in str(running[1].data)
        requests, reads = sent("artifacts"), sent("flow_runs/filter")

        async def looked() -> bool:
            return sent("flow_runs/filter") > reads + 10

        await wait_for(looked, "it looks some more times")
        assert sent("artifacts") == requests
        return first

    first = await in_process(code)
    assert in_process.run is not None
    last = await artifacts_of(client, in_process.run)
    assert [one.id for one in last] == [one.id for one in first]
    assert "Cancel" in str(last[1].data)


async def test_nested_parents_show_their_own_counts(client: PrefectClient) -> None:
    oldest = await ended(client, await start("grandparent", steps=[{"name": "a"}, {"name": "b"}]))
    _, table = await page_of(client, oldest)
    assert "| Completed (2 of 2 ended: 2 Completed) |" in table
    (family,) = await children_of(client, oldest)
    assert (await page_of(client, family))[0] == 100


async def test_a_retried_parent_goes_on_with_its_page(
    client: PrefectClient, tmp_path: Path
) -> None:
    steps = [{"name": "good"}, {"name": "bad", "do": "raise", "unless": str(tmp_path / "once")}]
    parent = await ended(client, await start("family", steps=steps))
    before = await artifacts_of(client, parent)
    await client.set_flow_run_state(parent.id, AwaitingRetry(message="Retry from the UI"))

    async def completed() -> bool:
        run = await client.read_flow_run(parent.id)
        return run.state is not None and run.state.is_completed()

    await wait_for(completed, "the parent completes")
    after = await artifacts_of(client, parent)
    assert [one.id for one in after] == [one.id for one in before]
    table = str(after[1].data)
    assert table.startswith("**2 of 2 ended: 2 Completed**")
    assert "Of an earlier attempt: 1 used again." in table


async def test_a_page_can_be_turned_off(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> int:
        return await child(step)("a")

    assert await in_process(code, page=False) == 1
    assert in_process.run is not None
    assert await artifacts_of(client, in_process.run) == []


async def test_a_server_that_refuses_the_page(
    proxy: FaultyProxy, in_process: InProcess, client: PrefectClient
) -> None:
    proxy.unknown = ("/artifacts/",)

    async def code() -> int:
        return await child(step)("a")

    assert await in_process(code) == 1
    assert in_process.run is not None
    proxy.unknown = ()
    await in_states(client, in_process.run, "Completed")
    assert any("/artifacts/" in path for _, path in proxy.requests)
    assert await artifacts_of(client, in_process.run) == []
