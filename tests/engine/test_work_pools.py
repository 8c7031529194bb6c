"""What a deploy makes of work pools: the job variables that runs share, queues, the safety net."""

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowFilter
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Running

from deployments.deploy import deploy_manifest
from deployments.project import ROOT, Manifest
from deployments.servers import TemporaryServer, temporary_worker
from tests.engine.waiting import wait_for

pytestmark = pytest.mark.anyio

FLOWS = """
import os
from prefect import flow
from deployments import parent_flow

@flow
def surroundings(names: list[str] = []) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}

@parent_flow
async def chief() -> None: ...
"""
PROJECT = "pools"  # also the name of its work pool
COMMAND = ".venv/bin/python -I -S deployments/warm_start.py"


class Project:
    """A project of one work pool, on the session's server."""

    def __init__(self, path: Path, server: TemporaryServer) -> None:
        self.file, self.server = path / "prefect.yaml", server
        (path / "flows_of_pools.py").write_text(FLOWS)
        self.pool: dict[str, Any] = {
            "type": "process",
            "queues": {"parents": {}, "children": {}},
            "job_variables": {"working_dir": ".", "command": COMMAND},
        }
        self.child: dict[str, Any] = {}

    def manifest(self) -> Manifest:
        steps = "prefect.deployments.steps.set_working_directory"
        entries = {"surroundings": ("children", self.child), "chief": ("parents", {})}
        declared = {
            "name": PROJECT,
            "pull": [{steps: {"directory": str(ROOT)}}],
            "definitions": {"work_pools": {PROJECT: self.pool}},
            "deployments": [
                {
                    "name": PROJECT,
                    "entrypoint": f"{self.file.with_name('flows_of_pools.py')}:{flow}",
                    "work_pool": {"name": PROJECT, "work_queue_name": queue, **more},
                }
                for flow, (queue, more) in entries.items()
            ],
        }
        self.file.write_text(json.dumps(declared))
        return Manifest.load(self.file)

    async def deploy(self) -> list[str]:
        """Deploy, and return what that tells, but for what is as it was."""
        said: list[str] = []
        await deploy_manifest(self.manifest(), self.server.env, said.append)
        return [line for line in said if not line.startswith("unchanged: ")]

    def deploy_plainly(self) -> subprocess.CompletedProcess[str]:
        """Deploy as somebody does who does not use our command."""
        self.manifest()
        command = [
            "-m",
            "prefect",
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            str(self.file),
        ]
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=dict(self.server.env),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
async def client(prefect_server: TemporaryServer) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


@pytest.fixture
async def project(
    prefect_server: TemporaryServer, client: PrefectClient, tmp_path: Path
) -> AsyncIterator[Project]:
    yield Project(tmp_path, prefect_server)
    for deployment in await client.read_deployments():
        if deployment.work_pool_name == PROJECT:
            await client.delete_deployment(deployment.id)
    with contextlib.suppress(ObjectNotFound):
        await client.delete_work_pool(PROJECT)


@pytest.mark.slow
async def test_a_deployment_adds_to_what_its_pool_shares(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do the job variables of one run."""
    monkeypatch.setenv("STAGE", "test")
    project.pool["job_variables"]["env"] = {"A": "pool", "B": "pool", "S": "{{ $STAGE }}"}
    project.child["job_variables"] = {"env": {"B": "own", "C": "own"}}
    await project.deploy()
    with temporary_worker(project.server, PROJECT):
        run = await arun_deployment(
            f"surroundings/{PROJECT}",
            parameters={"names": ["A", "B", "C", "D", "S", "PWD"]},
            job_variables={"env": {"D": "run"}},
            timeout=120,
            poll_interval=0.5,
        )
    assert run.state is not None
    assert await run.state.aresult() == {
        "A": "pool",
        "B": "own",
        "C": "own",
        "D": "run",
        "S": "test",
        "PWD": str(ROOT),
    }


async def test_a_change_of_what_a_pool_shares_is_told_and_made(
    project: Project, client: PrefectClient
) -> None:
    await project.deploy()
    assert await project.deploy() == []
    project.pool["job_variables"]["env"] = {"A": "b"}
    assert await project.deploy() == [f"changed: work pool {PROJECT}: base job template"]
    pool = await client.read_work_pool(PROJECT)
    variables = pool.base_job_template["variables"]["properties"]
    assert {name: variables[name]["default"] for name in ("env", "command", "working_dir")} == {
        "env": {"A": "b"},
        "command": COMMAND,
        "working_dir": str(ROOT),
    }


async def test_a_job_variable_that_a_pool_has_not_is_refused(
    project: Project, client: PrefectClient
) -> None:
    project.pool["job_variables"]["comand"] = COMMAND
    place = f"prefect.yaml: definitions.work_pools.{PROJECT}.job_variables: "
    with pytest.raises(RuntimeError, match=f"^{place}.* type process has no comand, only command"):
        await project.deploy()
    with pytest.raises(ObjectNotFound):
        await client.read_work_pool(PROJECT)


async def test_queues_have_the_priority_that_is_declared(
    project: Project, client: PrefectClient
) -> None:
    for parents, children in ((1, 2), (2, 1)):
        project.pool["queues"] = {
            "parents": {"priority": parents},
            "children": {"priority": children},
        }
        await project.deploy()
        assert await project.deploy() == []
        queues = {queue.name: queue for queue in await client.read_work_queues(PROJECT)}
        assert queues["parents"].priority == parents
        assert queues["children"].priority == children
    project.pool["queues"] = {"parents": {}, "children": {}}
    assert await project.deploy() == []  # the server's own order


async def test_what_another_project_has_deployed_is_not_replaced(
    project: Project, client: PrefectClient
) -> None:
    await project.deploy()
    before = await client.read_deployment_by_name(f"chief/{PROJECT}")
    manifest = project.manifest().model_copy(update={"name": "others"})
    with pytest.raises(
        RuntimeError, match=f"^surroundings/{PROJECT} is of the project {PROJECT} on this server: "
    ):
        await deploy_manifest(manifest, project.server.env)
    assert await client.read_deployment_by_name(f"chief/{PROJECT}") == before
    assert not await client.read_automations_by_name("others: mark silent runs as crashed")


@pytest.mark.slow
async def test_nobody_deploys_without_what_notices_lost_runs(
    project: Project, client: PrefectClient
) -> None:
    """Plain `prefect deploy` needs a work pool; after it, all is as it was."""
    refused = project.deploy_plainly()
    assert refused.returncode != 0
    assert f"work pool '{PROJECT}' which does not exist" in refused.stdout
    await project.deploy()
    done = project.deploy_plainly()
    assert done.returncode == 0, done.stdout
    await lose(client, f"surroundings/{PROJECT}")
    parent = await lose(client, f"chief/{PROJECT}")

    async def cleaning() -> list[FlowRun]:
        of_flow = FlowFilter.model_validate({"name": {"any_": ["cancel-orphans"]}})
        runs = await client.read_flow_runs(flow_filter=of_flow)
        return [run for run in runs if run.work_pool_name == PROJECT]

    (run,) = await wait_for(cleaning, "cancel-orphans is started")
    assert run.parameters == {"parent": f"prefect.flow-run.{parent.id}"}
    assert run.work_queue_name == "cancel-orphans"
    marks = ("mark silent runs as crashed", "mark runs that don't start as crashed")
    for name in (*marks, "clean up again"):
        (automation,) = await client.read_automations_by_name(f"{PROJECT}: {name}")
        assert automation.enabled
        assert f"'prefect.resource.name': ['{PROJECT}']" in str(automation.trigger.model_dump())


async def lose(client: PrefectClient, name: str) -> FlowRun:
    """Let a run of a deployment have crashed."""
    deployment = await client.read_deployment_by_name(name)
    run = await client.create_flow_run_from_deployment(deployment.id, state=Running())
    await client.set_flow_run_state(run.id, Crashed(), force=True)
    return run
