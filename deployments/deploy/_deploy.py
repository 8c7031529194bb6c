"""Bringing prefect.yaml to a server: pools and queues, then Prefect's own `prefect deploy`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.collections import deep_merge
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from deployments.deploy._changes import (
    PROJECT,
    Change,
    changed,
    mark_of,
    plain_automation,
    read_fields,
)
from deployments.deploy._schedules import is_paused
from deployments.project import ROOT, Manifest, WorkPool
from deployments.servers import tell_versions

Declared = dict[str, Any]
Tell = Callable[[Change], None]
# Where these are not declared, `prefect deploy` leaves on the server what was there.
DEFAULTS = {"paused": False, "enforce_parameter_schema": True}
FRAMES = r"\A(?: .*\n)*"  # of a traceback, below its first line


async def deploy_manifest(
    manifest: Manifest, env: Mapping[str, str], tell: Tell = lambda _: None
) -> None:
    """Bring deployments and what they need to the server.

    Args:
        manifest: Of prefect.yaml: all of it, or a part.
        env: The environment of `prefect deploy`.
        tell: Gets what that did with each thing, also where it fails midway.

    Raises:
        RuntimeError: `prefect deploy` failed; with what it said.
        ValueError: A flow can't be imported.
    """
    async with get_client() as client:
        await create_definitions(client, manifest, tell)
        declared, before, fields = {}, {}, {}
        for each in manifest.deployments:
            name = f"{each.load_flow().name}/{each.name}"
            there = await _read(client, name)
            declared[name] = _complete(manifest.name, each.declared, there)
            before[name] = there.schedules if there else []
            fields[name] = await read_fields(client, there, _schedules(each.declared))
        failure = None
        try:
            await asyncio.to_thread(_deploy, manifest, list(declared.values()), env)
        except RuntimeError as error:
            failure = error
        for name, was in fields.items():
            if there := await _read(client, name):
                schedules = _schedules(declared[name])
                await _mend(client, there, schedules, before[name])
                after = await read_fields(client, await _read(client, name), schedules)
                tell(Change(f"deployment {name}", not was, changed(was, after)))
        if failure:
            refused = "HTTPStatusError" in str(failure)
            raise RuntimeError(f"{failure}{await tell_versions(client) if refused else ''}")


def _complete(project: str, declared: Declared, there: DeploymentResponse | None) -> Declared:
    """Say what `prefect deploy` would leave as it is on the server, or turn on again.

    Args:
        project: The name of the manifest.
        declared: The deployment.
        there: The same on the server.
    """
    complete = declared | {key: each for key, each in DEFAULTS.items() if declared.get(key) is None}
    if there and _schedules(declared):
        complete["schedules"] = [
            each | ({"active": False} if is_paused(each, there.schedules) else {})
            for each in _schedules(declared)
        ]
    if project:
        pool = complete["work_pool"]
        variables = {PROJECT: project} | (pool.get("job_variables") or {})
        complete["work_pool"] = pool | {"job_variables": variables}
    return complete


def _schedules(declared: Declared) -> list[Declared]:
    return declared.get("schedules") or []


async def _read(client: PrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _deploy(manifest: Manifest, deployments: list[Declared], env: Mapping[str, str]) -> None:
    """Run `prefect deploy` for some deployments: its own choice is by name, which many share."""
    part = manifest.model_dump(include={"name", "build", "push", "pull"}, exclude_unset=True)
    part["deployments"] = deployments
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "prefect.yaml"
        file.write_text(yaml.safe_dump(part, sort_keys=False), encoding="utf-8")
        run_prefect_deploy(env, "--all", "--prefect-file", str(file))


async def _mend(
    client: PrefectClient,
    there: DeploymentResponse,
    schedules: list[Declared],
    before: list[DeploymentSchedule],
) -> None:
    """Change what `prefect deploy` leaves otherwise than prefect.yaml says.

    Args:
        client: The client of the server.
        there: The deployment.
        schedules: As prefect.yaml has them.
        before: Those that the deployment had.
    """
    if there.description == "None":  # DeploymentCreate makes text of None
        await client.update_deployment(there.id, DeploymentUpdate(description=None))
    untouched = {(each.id, each.updated) for each in before}
    left = [each for each in there.schedules if (each.id, each.updated) in untouched]
    if len(left) < len(there.schedules) or not schedules:  # else it failed before this one
        for each in left:  # RunnerDeployment._update keeps what is not declared
            await client.delete_deployment_schedule(there.id, each.id)


async def create_definitions(
    client: PrefectClient, manifest: Manifest, tell: Tell = lambda _: None
) -> None:
    """Create what deployments need and is missing, and change what differs.

    That is the work pools, with their queues and the queues' limits, and the automations.

    Args:
        client: The client of the server.
        manifest: That declares them.
        tell: Gets what was done with each.
    """
    mark = mark_of(manifest.name) if manifest.name else None
    for name, pool in manifest.definitions.work_pools.items():
        tell(await _create_work_pool(client, name, pool, mark))
        for queue, declared in pool.queues.items():
            limit = declared.concurrency_limit
            tell(await _create_work_queue(client, name, queue, limit, mark))
    for automation in manifest.definitions.automations:
        what = f"automation {automation.name}"
        tags = {"tags": [*automation.tags, *([mark] if mark else [])]}
        # With its defaults: PrefectClient.update_automation leaves out what is unset.
        wanted = AutomationCore.model_validate(plain_automation(automation) | tags)
        existing = await client.read_automations_by_name(automation.name)
        if not existing:
            await client.create_automation(wanted)
            tell(Change(what, created=True))
            continue
        fields = changed(plain_automation(existing[0]), plain_automation(wanted))
        if fields:
            await client.update_automation(existing[0].id, wanted)
        tell(Change(what, fields=fields))


async def _create_work_pool(
    client: PrefectClient, name: str, pool: WorkPool, mark: str | None
) -> Change:
    what = f"work pool {name}"
    default = await get_default_base_job_template_for_infrastructure_type(pool.type)
    template = deep_merge(default or {}, pool.base_job_template)
    try:
        there = await client.read_work_pool(name)
    except ObjectNotFound:
        wanted = WorkPoolCreate(
            name=name, type=pool.type, base_job_template=template, description=mark
        )
        with contextlib.suppress(ObjectAlreadyExists):  # a worker was faster
            await client.create_work_pool(wanted)
        return Change(what, created=True)
    # A deploy can't change the type: `check --server` says what to do.
    if pool.base_job_template and there.type == pool.type and there.base_job_template != template:
        await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
        return Change(what, fields=("base job template",))
    return Change(what)


async def _create_work_queue(
    client: PrefectClient, pool: str, name: str, limit: int | None, mark: str | None
) -> Change:
    what, created = f"work queue {pool}/{name}", False
    try:
        there = await client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        there = await client.create_work_queue(name, description=mark, work_pool_name=pool)
        created = True
    if there.concurrency_limit == limit:
        return Change(what, created)
    await client.update_work_queue(there.id, concurrency_limit=limit)
    return Change(what, created, ("concurrency limit",))


def run_prefect_deploy(env: Mapping[str, str], *arguments: str) -> str:
    """Run `prefect deploy` with those arguments in that environment, and return what it said.

    Raises:
        RuntimeError: It failed; with why.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *arguments],
        env=dict(env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"`prefect deploy` failed: {_read_failure(done.stdout)}")
    return done.stdout.strip()


def _read_failure(output: str) -> str:
    """Return why `prefect deploy` failed: in a line, or what the step that failed has said."""
    said = output.rpartition("╯\n")[2]  # after the box that names the deployment, if there are many
    progress, raised, rest = said.partition("Traceback (most recent call last):\n")
    if not raised:
        return " ".join(said.split())
    # Of the first exception, which led to the others.
    first = re.split(r"\n\n(?:The above|During handling)|\nAn exception occurred", rest)[0]
    step = progress.rpartition(" > Running ")[2].partition("\n")[2]
    text = f"{step}{re.sub(FRAMES, '', first)}".strip()
    return f"\n{text}" if "\n" in text else text
