"""Bringing prefect.yaml to a server: pools and queues, then Prefect's own `prefect deploy`."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Mapping

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from deployments.commands._manifest import ROOT, Manifest, WorkPool


async def deploy_manifest(manifest: Manifest, env: Mapping[str, str]) -> str:
    """Bring deployments and what they need to the server, and return what Prefect said.

    Args:
        manifest: Of prefect.yaml: all of it, or a part.
        env: The environment of `prefect deploy`.

    Raises:
        RuntimeError: `prefect deploy` failed; with what it said.
    """
    async with get_client() as client:
        await create_definitions(client, manifest)
    options = [f"--name={name}" for name in manifest.names]
    return await asyncio.to_thread(run_prefect_deploy, env, *options)


async def create_definitions(client: PrefectClient, manifest: Manifest) -> None:
    """Create what deployments need and is missing, and change what differs.

    That is the work pools, with their queues and the queues' limits, and the automations.
    """
    for name, pool in manifest.definitions.work_pools.items():
        await _create_work_pool(client, name, pool)
    for automation in manifest.definitions.automations:
        existing = await client.read_automations_by_name(automation.name)
        if existing:
            await client.update_automation(existing[0].id, automation)
        else:
            await client.create_automation(automation)


async def _create_work_pool(client: PrefectClient, name: str, pool: WorkPool) -> None:
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        template = await get_default_base_job_template_for_infrastructure_type(pool.type)
        with contextlib.suppress(ObjectAlreadyExists):  # a worker was faster
            await client.create_work_pool(
                WorkPoolCreate(name=name, type=pool.type, base_job_template=template or {})
            )
    for queue_name, queue in pool.queues.items():
        try:
            there = await client.read_work_queue_by_name(queue_name, work_pool_name=name)
        except ObjectNotFound:
            there = await client.create_work_queue(queue_name, work_pool_name=name)
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
