"""The shipped flows as deployments, on a real server with a real worker."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.exceptions import PrefectHTTPStatusError

from deployments.check import check_server
from deployments.deploy._deploy import run_prefect_deploy
from deployments.project import ROOT, Manifest, WorkPool
from deployments.servers import TemporaryServer
from deployments.values import Returns, read_value
from tests.engine.conftest import MANIFEST
from tests.engine.waiting import SECONDS, children_of, ended, in_states, read_graph, wait_for
from tests.engine.words import Sizes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker")]


async def run_parent(parameters: dict[str, Any]) -> FlowRun:
    return await arun_deployment(
        "measure-all/local", parameters=parameters, timeout=SECONDS, poll_interval=0.5
    )


async def test_the_parent_runs_its_children_side_by_side_and_gets_their_results(
    tmp_path: Path,
) -> None:
    go_on = tmp_path / "go-on"
    parent = await arun_deployment("measure-all/local", parameters={"hold": str(go_on)}, timeout=0)
    async with get_client() as client:
        # No child can end before all of them run, unless the parent did not gather them.
        await in_states(client, parent, "Running", "Running", "Running")
        go_on.touch()
        parent = await ended(client, parent)
        children = await children_of(client, parent)
        graph = await read_graph(client, parent)
        task_runs = await client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[parent.id]))
        )
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=["sizes"]),
                flow_run_id=ArtifactFilterFlowRunId(any_=[child.id for child in children]),
            )
        )

    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    assert parent.name == "words x1"
    by_name = {child.name: child for child in children}
    assert set(by_name) == {"a x1", "bb x1", "ccc x1", "sum of a"}
    assert all(child.state and child.state.is_completed() for child in children)

    # Each in a process of its own.
    assert len({run.infrastructure_pid for run in [parent, *children]}) == 5

    # Their execution windows overlap.
    sum_run = by_name.pop("sum of a")
    starts = [run.start_time for run in by_name.values() if run.start_time]
    ends = [run.end_time for run in by_name.values() if run.end_time]
    assert len(starts) == len(ends) == 3
    assert max(starts) < min(ends)
    assert sum_run.start_time
    assert sum_run.start_time > max(ends)

    # An arrow from each measured word's run to the sum's, and each child once.
    assert set(graph) == {run.id for run in children}
    assert graph[sum_run.id] == {run.id for run in by_name.values()}

    # Prefect's UI shows no task runs at all where one has an input of another type.
    inputs = [each for run in task_runs for runs in run.task_inputs.values() for each in runs]
    assert {each.input_type for each in inputs} == {"task_run"}
    assert {str(run.state_name) for run in task_runs} == {"Completed"}

    sizes: Sizes = await read_value(parent.state, Returns(Sizes))
    assert [(size.word, size.length, size.initial) for size in sizes.sizes] == [
        ("ccc", 3, "c"),
        ("bb", 2, "b"),
        ("a", 1, "a"),
    ]
    assert sizes.total == 6

    (artifact,) = artifacts
    assert (artifact.key, artifact.flow_run_id) == ("sizes", sum_run.id)
    assert "The sum is **6**" in str(artifact.data)


async def test_a_failed_child_fails_the_parent_with_its_name_and_message() -> None:
    parent = await run_parent({"words": ["a", "bad"], "times": 2})

    assert parent.state is not None
    assert parent.state.is_failed()
    assert "measure/local 'bad x2' failed" in str(parent.state.message)
    assert "bad can't be measured" in str(parent.state.message)
    async with get_client() as client:
        children = await children_of(client, parent)
        assert {child.name for child in children} == {"a x2", "bad x2"}


async def test_bad_parameters_create_no_run() -> None:
    async with get_client() as client:
        before = await client.read_flow_runs()
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            await run_parent({"times": 13})
        assert len(await client.read_flow_runs()) == len(before)


async def findings_of(client: PrefectClient, manifest: Manifest) -> list[str]:
    """What is wrong, but for leftovers: the flows that go wrong are in a file of their own."""
    found = [finding async for finding in check_server(client, manifest)]
    return [finding for finding in found if not finding.startswith("no longer declared: ")]


async def test_check_finds_nothing_wrong_with_this_server(deployed: Manifest) -> None:
    async with get_client() as client:
        assert await findings_of(client, deployed) == []


async def test_check_tells_what_the_server_lacks(tmp_path: Path) -> None:
    text = MANIFEST.read_text()
    assert "parents: {}" in text
    (tmp_path / "prefect.yaml").write_text(
        text.replace("parents: {}", "parents: {}\n        vip: {}", 1)
    )
    manifest = Manifest.load(tmp_path / "prefect.yaml").named("local")
    manifest.definitions.work_pools["other"] = WorkPool(type="docker", queues={})
    manifest.deployments[0] = manifest.deployments[0].model_copy(update={"name": "lokal"})
    async with get_client() as client:
        findings = await findings_of(client, manifest)
        assert findings[:3] == [
            "work queue engine-tests-local/vip does not exist: `python -m deployments deploy`",
            "work pool other does not exist: `python -m deployments deploy`",
            "measure-all/lokal is not deployed: `python -m deployments deploy lokal`",
        ]
        # It would call its children as it is called itself.
        assert [finding.split(": ")[1:] for finding in findings[3:]] == [
            [
                f"calls {flow}/lokal, which is not on {client.api_url}",
                f"did you mean {flow}/local?",
            ]
            for flow in ("measure", "add-up")
        ]


async def test_check_looks_up_the_children_that_are_called_by_name(tmp_path: Path) -> None:
    (tmp_path / "by_name.py").write_text(
        "from deployments import child, parent_flow\n"
        "@parent_flow\n"
        "async def by_name() -> None:\n"
        "    await child('measure/local')(word='a', times=1)\n"
        "    await child('measur/local')(word='a', times=1)\n"
        "    await child('unheard-of/anywhere')()\n"
    )
    manifest = Manifest.load(MANIFEST).named("local")
    other = {"entrypoint": f"{tmp_path}/by_name.py:by_name"}
    manifest.deployments[0] = manifest.deployments[0].model_copy(update=other)
    async with get_client() as client:
        findings = await findings_of(client, manifest)
    assert [finding.partition("by_name.py:")[2] for finding in findings[1:]] == [
        f"5: calls measur/local, which is not on {client.api_url}: did you mean measure/local?",
        f"6: calls unheard-of/anywhere, which is not on {client.api_url}: deploy it there",
    ]
    assert findings[0].startswith("by-name/local is not deployed")


async def test_a_schedule_makes_runs_that_run(
    prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    """Prefect's cron takes seconds as a sixth field, so nobody waits for the next minute."""
    deployment = {
        "name": "scheduled",
        "entrypoint": "tests/engine/faults/steps.py:step",
        "parameters": {"name": "by cron"},
        "schedules": [{"cron": "* * * * * */10"}],
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "work_pool": {"name": "engine-tests-local"},
    }
    file = tmp_path / "prefect.yaml"
    file.write_text(json.dumps({"deployments": [deployment]}))
    options = ["--all", "--prefect-file", str(file)]
    await asyncio.to_thread(run_prefect_deploy, prefect_server.env, *options)
    async with get_client() as client:
        deployed = await client.read_deployment_by_name("step/scheduled")
        of_schedule = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployed.id]),
            state=FlowRunFilterState(name=FlowRunFilterStateName(not_any_=["Scheduled"])),
        )

        async def final() -> FlowRun | None:
            runs = await client.read_flow_runs(flow_run_filter=of_schedule)
            return next((run for run in runs if run.state and run.state.is_final()), None)

        try:
            run = await wait_for(final, "a run of the schedule ends")
        finally:
            await client.delete_deployment(deployed.id)
    assert run.state is not None
    assert run.state.is_completed(), run.state
    assert run.auto_scheduled
    assert (run.name, await run.state.aresult()) == ("by cron", len("by cron"))
