"""Bringing prefect.yaml to a server: pools and queues, then Prefect's own `prefect deploy`."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from deployments.commands._changes import (
    LABEL,
    Change,
    changed_fields,
    find_definition_changes,
    find_deployment_change,
    find_other_template,
    make_template,
    mark_of,
    marked_automations,
    plain_automation,
    read_state,
)
from deployments.commands._manifest import ROOT, Deployment, Manifest, WorkPool


async def deploy_manifest(manifest: Manifest, env: Mapping[str, str]) -> list[Change]:
    """Bring deployments and what they need to the server, and return what that changed there.

    What is certain to be as prefect.yaml says is not deployed again.

    Args:
        manifest: Of prefect.yaml: all of it, or a part.
        env: The environment of `prefect deploy`.

    Raises:
        RuntimeError: `prefect deploy` failed; with what it said.
        ValueError: A flow can't be imported.
    """
    async with get_client() as client:
        done = [change async for change in find_definition_changes(client, manifest)]
        await create_definitions(client, manifest)
        changes = {}
        for deployment in manifest.deployments:
            flow = deployment.load_flow()
            change = await find_deployment_change(client, manifest, deployment, flow, env)
            changes[f"{flow.name}/{deployment.name}"] = deployment, change
        chosen = [deployment for deployment, change in changes.values() if not change.nothing]
        before = {name: await read_state(client, name) for name in changes}
        if chosen:
            await asyncio.to_thread(_deploy, manifest, chosen, env)
        for name, (_, change) in changes.items():
            if change.nothing:
                done.append(change)
                continue
            await _leave_mark(client, manifest.name, name)
            was, now = before[name], await read_state(client, name)
            assert now is not None  # noqa: S101 - it was just deployed
            done.append(Change(change.what, was is None, changed_fields(was or now, now)))
    return done


def _deploy(manifest: Manifest, chosen: list[Deployment], env: Mapping[str, str]) -> None:
    """Run `prefect deploy` for some deployments: its own choice is by name, which many share."""
    part = manifest.model_dump(include={"name", "build", "push", "pull"}, exclude_unset=True)
    part["deployments"] = [deployment.declared for deployment in chosen]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "prefect.yaml"
        file.write_text(yaml.safe_dump(part, sort_keys=False), encoding="utf-8")
        run_prefect_deploy(env, "--all", "--prefect-file", str(file))


async def _leave_mark(client: PrefectClient, project: str, name: str) -> None:
    """Label a deployment, which `prefect deploy` can't, once.

    Only a creation takes labels. It overwrites what it is given, and the schedules, so they are
    given as they are; and the parameters, which the server takes as given with their schema.
    """
    there = await client.read_deployment_by_name(name)
    if not project or there.labels.get(LABEL) == project:
        return
    kept = {"parameters", "parameter_openapi_schema", "enforce_parameter_schema"}
    schedule = {"schedule", "active", "parameters", "slug"}
    body = there.model_dump(mode="json", include={"name", "flow_id", *kept})
    body["schedules"] = [each.model_dump(mode="json", include=schedule) for each in there.schedules]
    body["labels"] = {**there.labels, LABEL: project}
    await client.request("POST", "/deployments/", json=body)


async def create_definitions(client: PrefectClient, manifest: Manifest) -> None:
    """Create what deployments need and is missing, and change what differs.

    That is the work pools, with their queues and the queues' limits, and the automations.
    """
    mark = mark_of(manifest.name) if manifest.name else None
    for name, pool in manifest.definitions.work_pools.items():
        await _create_work_pool(client, name, pool, mark)
    for automation in marked_automations(manifest):
        existing = await client.read_automations_by_name(automation.name)
        if not existing:
            await client.create_automation(automation)
        elif plain_automation(existing[0]) != plain_automation(automation):
            await client.update_automation(existing[0].id, automation)


async def _create_work_pool(
    client: PrefectClient, name: str, pool: WorkPool, mark: str | None
) -> None:
    try:
        existing = await client.read_work_pool(name)
    except ObjectNotFound:
        wanted = WorkPoolCreate(
            name=name,
            type=pool.type,
            base_job_template=await make_template(pool),
            description=mark,
        )
        with contextlib.suppress(ObjectAlreadyExists):  # a worker was faster
            await client.create_work_pool(wanted)
    else:
        if template := await find_other_template(pool, existing):
            await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    for queue_name, queue in pool.queues.items():
        try:
            there = await client.read_work_queue_by_name(queue_name, work_pool_name=name)
        except ObjectNotFound:
            there = await client.create_work_queue(
                queue_name, description=mark, work_pool_name=name
            )
        if there.concurrency_limit != queue.concurrency_limit:
            await client.update_work_queue(there.id, concurrency_limit=queue.concurrency_limit)


def run_prefect_deploy(env: Mapping[str, str], *arguments: str) -> str:
    """Run `prefect deploy` with those arguments in that environment, and return what it said.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    command = ["prefect", "--no-prompt", "deploy", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=dict(env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stdout.strip()}")
    return done.stdout.strip()
