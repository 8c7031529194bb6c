"""`check --server`: the blocks that prefect.yaml names, and limits in the server's memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.actions import (
    BlockDocumentCreate,
    BlockSchemaCreate,
    BlockTypeCreate,
)

from deployments.check import check_manifest, check_server
from deployments.check._server import IN_MEMORY, check_leases
from deployments.project import ROOT, Manifest
from deployments.servers import TemporaryServer, temporary_server

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


async def findings(manifest: Manifest) -> list[str]:
    async with get_client() as client:
        found = [finding async for finding in check_server(client, manifest)]
    assert not [each for each in found if "\n" in each or SECRET in each]
    return found


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
                "work_pool.job_variables.env.PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: results must "
                "be `block-type/block-name`"
            ],
        ),
        ({"TOKEN": "{{ prefect.blocks.acme.token }}"}, []),
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
    assert list(check_manifest(manifest)) == [place + each for each in expected]


async def test_blocks_that_are_missing(prefect_server: TemporaryServer, tmp_path: Path) -> None:
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
            KEY="{{ prefect.blocks.acme.results.key }}",
            NAME="a {{ prefect.blocks.acme.other }}",
        )
    )
    env = "cancel-orphans/blocks: work_pool.job_variables.env"
    missing = f"is not on {api_url}: save it: see deployments/docs/machines.md"
    assert [each for each in found if "block " in each] == [
        f"prefect.yaml: {env}.PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: block s3-bucket/nowhere "
        f"{missing}",
        f"prefect.yaml: cancel-orphans/blocks: pull.0.{STEPS}.git_clone.access_token: block "
        f"secret/clone {missing}",
        f"prefect.yaml: {env}.NAME: block acme/other {missing}",
    ]


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
