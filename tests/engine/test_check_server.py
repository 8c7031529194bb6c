"""`check --server` where there are several machines: blocks, and a test run on each worker."""

import contextlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.actions import (
    BlockDocumentCreate,
    BlockSchemaCreate,
    BlockTypeCreate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.filesystems import LocalFileSystem
from prefect.workers.process import ProcessWorker

from deployments.commands import _probe
from deployments.commands._check import check_manifest
from deployments.commands._check_server import check_server
from deployments.commands._deploy import deploy_manifest
from deployments.commands._leases import IN_MEMORY, check_leases
from deployments.commands._manifest import ROOT, Manifest
from deployments.commands._processes import TemporaryServer, run_process, temporary_server

pytestmark = pytest.mark.anyio

SECRET = "hunter2"  # noqa: S105 - of nothing
STEPS = "prefect.deployments.steps"


def declare(
    tmp_path: Path, pool: str, pool_type: str = "process", *steps: dict[str, Any], **env: str
) -> Manifest:
    """Declare a project in a work pool of its own, since stopped workers stay online a while."""
    command = ".venv/bin/python -I -S deployments/warm_start.py"
    job_variables = {"working_dir": str(ROOT), "command": command, "env": env}
    work_pool = {"name": pool, "work_queue_name": "parents", "job_variables": job_variables}
    orphans = "deployments/maintenance.py:cancel_orphans"
    declared = {
        "name": pool,
        "pull": [*steps, {f"{STEPS}.set_working_directory": {"directory": str(ROOT)}}],
        "definitions": {"work_pools": {pool: {"type": pool_type, "queues": {"parents": {}}}}},
        "deployments": [{"name": pool, "entrypoint": orphans, "work_pool": work_pool}],
    }
    path = tmp_path / "prefect.yaml"
    path.write_text(json.dumps(declared))
    return Manifest.load(path)


@contextlib.contextmanager
def worker(
    server: TemporaryServer, pool: str, name: str, *options: str, **env: str
) -> Iterator[None]:
    command = ["-m", "prefect", "worker", "start", "--type", "process"]
    command += ["--pool", pool, "--name", name, *options]
    log = server.home / f"worker-{pool}-{name}.log"
    with run_process(
        command,
        env={**server.env, "PREFECT_WORKER_HEARTBEAT_SECONDS": "2", **env},
        log=log,
        ready=lambda: b"started!" in log.read_bytes(),
    ):
        yield


async def findings(manifest: Manifest) -> list[str]:
    async with get_client() as client:
        found = [finding async for finding in check_server(client, manifest)]
    assert not [each for each in found if "\n" in each or SECRET in each]
    return found


async def runs_of(pool: str) -> list[FlowRun]:
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    async with get_client() as client:
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(), work_pool_filter=of_pool
        )


async def save_secret(kind: str) -> None:
    """Save a block of a type that this Python does not know."""
    async with get_client() as client:
        made = await client.create_block_type(BlockTypeCreate(name=kind, slug=kind))
        schema = await client.create_block_schema(
            BlockSchemaCreate(fields={"type": "object"}, block_type_id=made.id)
        )
        document = {"name": "results", "data": {"key": SECRET}, "block_type_id": made.id}
        await client.create_block_document(
            BlockDocumentCreate(block_schema_id=schema.id, **document)
        )


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "s3-bucket/results"}, []),
        ({"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "{{ prefect.variables.results }}"}, []),
        (
            {"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "results"},
            [
                "work_pool.job_variables.env.PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: 'results' must "
                "be `block-type/block-name`"
            ],
        ),
        ({"TOKEN": "{{ prefect.blocks.secret.token }}"}, []),
        (
            {"TOKEN": "{{ prefect.blocks.token }}"},
            [
                "work_pool.job_variables.env.TOKEN: prefect.blocks.token must be "
                "`prefect.blocks.block-type.block-name`"
            ],
        ),
    ],
)
def test_what_names_a_block_has_its_form(
    tmp_path: Path, env: dict[str, str], expected: list[str]
) -> None:
    manifest = declare(tmp_path, "forms", "process", **env)
    place = "prefect.yaml: cancel-orphans/forms: "
    assert list(check_manifest(manifest.path)) == [place + each for each in expected]


async def test_blocks_that_are_missing_or_of_a_type_unknown_here(
    prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    async with get_client() as client:
        api_url = client.api_url
    await save_secret("acme")
    found = await findings(
        declare(
            tmp_path,
            "blocks",
            "process",
            {f"{STEPS}.git_clone": {"access_token": "{{ prefect.blocks.secret.clone.token }}"}},
            PREFECT_DEFAULT_RESULT_STORAGE_BLOCK="s3-bucket/nowhere",
            PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK="acme/results",
            KEY="{{ prefect.blocks.acme.results.key }}",  # needs no package
            NAME="a {{ prefect.blocks.acme.other }}",
        )
    )
    env = "cancel-orphans/blocks: work_pool.job_variables.env"
    missing = f"is not on {api_url}: save it: see docker/README.md"
    assert [each for each in found if "block " in each] == [
        f"prefect.yaml: {env}.PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: block s3-bucket/nowhere "
        f"{missing}",
        f"prefect.yaml: {env}.PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK: block acme/results can't be "
        "loaded by this Python, which has no package with acme: add that to pyproject.toml, and "
        "`make lock`",
        f"prefect.yaml: {env}.NAME: block acme/other {missing}",
        f"prefect.yaml: pull.0.{STEPS}.git_clone.access_token: block secret/clone {missing}",
    ]


@pytest.mark.slow
async def test_each_worker_has_a_run_whose_result_is_read(
    prefect_server: TemporaryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One keeps its results to itself, one takes no run, and one was just stopped."""
    monkeypatch.setattr(_probe, "RUNS_PER_WORKER", 3)
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.setenv("HOME", str(here))
    await LocalFileSystem(basepath="~/results").asave("of-each-home")
    block = {"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": "local-file-system/of-each-home"}
    manifest = declare(tmp_path, "homes", "process", **block)
    await deploy_manifest(manifest, prefect_server.env)
    with (
        worker(prefect_server, "homes", "near", HOME=str(here)),
        worker(prefect_server, "homes", "far", HOME=str(there)),
        worker(prefect_server, "homes", "busy", "--work-queue", "other"),
    ):
        with worker(prefect_server, "homes", "stopped"):
            pass
        unreadable, idle = await findings(manifest)
    assert unreadable.startswith(
        "the result of cancel-orphans/homes on worker far can't be reached from here, in block "
        "local-file-system/of-each-home: "
    )
    assert re.match(r"worker busy of work pool homes took none of \d+ test runs, and is not", idle)
    runs = await runs_of("homes")
    (told,) = [run for run in runs if str(run.id) in unreadable]
    assert told.labels["prefect.worker.name"] == "far"
    assert {run.state_name for run in runs} == {"Completed"}


@pytest.mark.slow
async def test_a_run_that_no_worker_takes_is_told_and_cancelled(
    prefect_server: TemporaryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_probe, "TAKE_SECONDS", 1)
    manifest = declare(tmp_path, "paused")
    await deploy_manifest(manifest, prefect_server.env)
    async with get_client() as client:
        queue = await client.read_work_queue_by_name("parents", work_pool_name="paused")
        await client.update_work_queue(queue.id, is_paused=True)
    with worker(prefect_server, "paused", "one"):
        (finding,) = await findings(manifest)
    assert finding.startswith("cancel-orphans/paused does not complete: it is still Scheduled (")
    assert "work queue parents of pool paused is paused" in finding
    (run,) = await runs_of("paused")
    assert (run.state_name, str(run.id) in finding) == ("Cancelled", True)


@pytest.mark.slow
async def test_a_run_that_can_not_be_submitted_is_told_without_the_secret(
    prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    await save_secret("hidden")
    template: Any = deepcopy(ProcessWorker.get_default_base_job_template())
    labels = template["variables"]["properties"]["labels"]
    labels["default"] = {"of": "{{ prefect.blocks.hidden.results }}"}  # which is a mapping
    async with get_client() as client:
        pool = WorkPoolCreate(name="secrets", type="process", base_job_template=template)
        await client.create_work_pool(pool)
    manifest = declare(tmp_path, "secrets")
    await deploy_manifest(manifest, prefect_server.env)
    with worker(prefect_server, "secrets", "one"):
        (finding,) = await findings(manifest)
    assert finding.startswith("cancel-orphans/secrets does not complete")
    assert "it is Crashed (" in finding
    (run,) = await runs_of("secrets")
    assert run.state
    assert SECRET in str(run.state.message)


@pytest.mark.slow
async def test_results_in_volumes_of_two_workers_may_be_out_of_reach(
    prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    """Processes in place of containers: what counts is the type of the work pool."""
    template = ProcessWorker.get_default_base_job_template()
    async with get_client() as client:
        await client.create_work_pool(
            WorkPoolCreate(name="volumes", type="docker", base_job_template=template)
        )
    manifest = declare(tmp_path, "volumes", "docker")
    await deploy_manifest(manifest, prefect_server.env)
    with worker(prefect_server, "volumes", "a"), worker(prefect_server, "volumes", "b"):
        (finding,) = await findings(manifest)
    assert "on the machine of each of its workers (a, b): if that is not the same" in finding


@pytest.mark.slow
async def test_a_server_that_keeps_limits_in_its_memory(
    prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    """Said where a deployment has a limit: its runs would not outlive a restart."""
    free, limited = declare(tmp_path, "limited"), declare(tmp_path, "limited")
    limited.deployments[0].declared["concurrency_limit"] = 1

    async def found(manifest: Manifest) -> list[str]:
        async with get_client() as client:
            return [finding async for finding in check_leases(client, manifest)]

    assert not await found(limited)
    own = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": IN_MEMORY}
    with temporary_server(tmp_path, own=own) as forgetful, forgetful.used():
        assert not await found(free)
        (finding,) = await found(limited)
        assert "runs of limited crash" in finding
