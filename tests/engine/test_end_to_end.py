"""The shipped flows as deployments, on a real server with a real worker."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
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

from deployments.commands._check_server import check_server
from deployments.commands._deploy import run_prefect_deploy
from deployments.commands._manifest import ROOT, Manifest, WorkPool
from deployments.commands._processes import TemporaryServer
from flows.delay_report import DelayReport
from tests.engine.waiting import children_of, read_graph, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker")]

AIRPORTS = ["EWR", "JFK", "LGA"]


@pytest.fixture
def pipes(tmp_path: Path) -> Path:
    """The flights as named pipes: a child that reads one holds until somebody writes."""
    for airport in AIRPORTS:
        os.mkfifo(tmp_path / f"{airport}.csv.gz")
    return tmp_path


async def fill(pipe: Path) -> None:
    """Write the real file into a pipe, as soon as there is a reader."""

    async def opened() -> int | None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no reader yet
            return None

    descriptor = await wait_for(opened, f"a child reads {pipe.name}")
    os.set_blocking(descriptor, True)

    def write() -> None:
        with open(descriptor, "wb") as file:
            file.write((ROOT / "data" / "flights" / pipe.name).read_bytes())

    await asyncio.to_thread(write)


async def run_parent(parameters: dict[str, Any]) -> FlowRun:
    return await arun_deployment(
        "flight-delays/local", parameters=parameters, timeout=120, poll_interval=0.5
    )


async def test_the_parent_runs_its_children_side_by_side_and_gets_their_results(
    pipes: Path,
) -> None:
    parent = await arun_deployment(
        "flight-delays/local", parameters={"data_dir": str(pipes)}, timeout=0
    )
    async with get_client() as client:

        async def all_run() -> bool:
            children = await children_of(client, parent)
            return [child.state_name for child in children] == ["Running"] * 3

        # No child can end before all of them run, unless the parent did not gather them.
        await wait_for(all_run, "all three children run at once")
        await asyncio.gather(*(fill(pipes / f"{airport}.csv.gz") for airport in AIRPORTS))

        async def final() -> FlowRun | None:
            run = await client.read_flow_run(parent.id)
            return run if run.state and run.state.is_final() else None

        parent = await wait_for(final, "the parent ends")
        children = await children_of(client, parent)
        graph = await read_graph(client, parent)
        task_runs = await client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[parent.id]))
        )
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=["delay-report"]),
                flow_run_id=ArtifactFilterFlowRunId(any_=[child.id for child in children]),
            )
        )

    assert parent.state is not None
    assert parent.state.is_completed(), parent.state
    assert parent.name == "delays 2013-01"
    by_name = {child.name: child for child in children}
    assert set(by_name) == {"EWR 2013-01", "JFK 2013-01", "LGA 2013-01", "report 2013-01"}
    assert all(child.state and child.state.is_completed() for child in children)

    # Each in a process of its own.
    assert len({run.infrastructure_pid for run in [parent, *children]}) == 5

    # Their execution windows overlap.
    report_run = by_name.pop("report 2013-01")
    starts = [run.start_time for run in by_name.values() if run.start_time]
    ends = [run.end_time for run in by_name.values() if run.end_time]
    assert len(starts) == len(ends) == 3
    assert max(starts) < min(ends)
    assert report_run.start_time
    assert report_run.start_time > max(ends)

    # An arrow from each airport's run to the report's, and each child once.
    assert set(graph) == {run.id for run in children}
    assert graph[report_run.id] == {run.id for run in by_name.values()}

    # Prefect's UI shows no task runs at all where one has an input of another type.
    inputs = [each for run in task_runs for runs in run.task_inputs.values() for each in runs]
    assert {each.input_type for each in inputs} == {"task_run"}
    assert {str(run.state_name) for run in task_runs} == {"Completed"}

    report = DelayReport.model_validate(await parent.state.aresult())
    assert [(row.airport, row.flights, row.cancelled) for row in report.ranking] == [
        ("EWR", 9893, 238),
        ("JFK", 9161, 100),
        ("LGA", 7950, 183),
    ]
    assert (report.ranking[0].mean_dep_delay, report.ranking[0].share_delayed) == (14.91, 0.2494)

    (artifact,) = artifacts
    assert (artifact.key, artifact.flow_run_id) == ("delay-report", report_run.id)
    assert "| 1 | EWR | 9,893 |" in str(artifact.data)


async def test_a_failed_child_fails_the_parent_with_its_name_and_message() -> None:
    parent = await run_parent({"airports": ["EWR", "XXX"], "month": 2})

    assert parent.state is not None
    assert parent.state.is_failed()
    assert "airport-delays/local 'XXX 2013-02' failed" in str(parent.state.message)
    assert "data/flights/XXX.csv.gz does not exist" in str(parent.state.message)
    async with get_client() as client:
        children = await children_of(client, parent)
        assert {child.name for child in children} == {"EWR 2013-02", "XXX 2013-02"}


async def test_bad_parameters_create_no_run() -> None:
    async with get_client() as client:
        before = await client.read_flow_runs()
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            await run_parent({"month": 13})
        assert len(await client.read_flow_runs()) == len(before)


async def test_check_finds_nothing_wrong_with_this_server() -> None:
    async with get_client() as client:
        assert [
            finding async for finding in check_server(client, Manifest.load().named("local"))
        ] == []


async def test_check_tells_what_the_server_lacks(tmp_path: Path) -> None:
    text = (ROOT / "prefect.yaml").read_text()
    assert "parents: {}" in text
    (tmp_path / "prefect.yaml").write_text(
        text.replace("parents: {}", "parents: {}\n        vip: {}")
    )
    manifest = Manifest.load(tmp_path / "prefect.yaml").named("local")
    manifest.definitions.work_pools["other"] = WorkPool(type="docker", queues={})
    manifest.deployments[0].name = "elsewhere"
    async with get_client() as client:
        findings = [finding async for finding in check_server(client, manifest)]
        assert findings[:3] == [
            "work queue local/vip does not exist: `python -m deployments deploy`",
            "work pool other does not exist: `python -m deployments deploy`",
            "flight-delays/elsewhere is not deployed: `python -m deployments deploy elsewhere`",
        ]
        # It would call its children as it is called itself.
        assert [finding.split(": ")[1:] for finding in findings[3:]] == [
            [
                f"calls {flow}/elsewhere, which is not on {client.api_url}",
                f"did you mean {flow}/local?",
            ]
            for flow in ("airport-delays", "delay-report")
        ]


async def test_check_looks_up_the_children_that_are_called_by_name(tmp_path: Path) -> None:
    (tmp_path / "by_name.py").write_text(
        "from deployments import child, parent_flow\n"
        "@parent_flow\n"
        "async def by_name() -> None:\n"
        "    await child('airport-delays/local')(airport='EWR', month=1)\n"
        "    await child('airport-delay/local')(airport='EWR', month=1)\n"
        "    await child('unheard-of/anywhere')()\n"
    )
    manifest = Manifest.load().named("local")
    manifest.deployments[0].entrypoint = f"{tmp_path}/by_name.py:by_name"
    async with get_client() as client:
        findings = [finding async for finding in check_server(client, manifest)]
    assert [finding.partition("by_name.py:")[2] for finding in findings[1:]] == [
        f"5: calls airport-delay/local, which is not on {client.api_url}: "
        "did you mean airport-delays/local?",
        f"6: calls unheard-of/anywhere, which is not on {client.api_url}: deploy it there",
    ]
    assert findings[0].startswith("by-name/local is not deployed")


async def test_a_schedule_makes_runs_that_run(
    prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    """Prefect's cron takes seconds as a sixth field, so nobody waits for the next minute."""
    deployment = {
        "name": "scheduled",
        "entrypoint": "tests/engine/faults/flows.py:step",
        "parameters": {"name": "by cron"},
        "schedules": [{"cron": "* * * * * */10"}],
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "work_pool": {
            "name": "local",
            "job_variables": {
                "working_dir": str(ROOT),
                "command": ".venv/bin/python -m prefect.engine",
            },
        },
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
