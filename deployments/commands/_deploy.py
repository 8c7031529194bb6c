"""Bringing prefect.yaml to a server: pools and queues, then Prefect's own `prefect deploy`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
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
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.collections import deep_merge
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from deployments.commands._changes import (
    PROJECT,
    Change,
    changed,
    mark_of,
    plain_automation,
    read_fields,
    timing,
)
from deployments.commands._manifest import ROOT, Manifest, WorkPool
from deployments.commands._refusals import tell_versions

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
            declared[name] = _complete(manifest.name, name, each.declared)
            before[name] = await _read(client, name)
            fields[name] = await _read_fields(client, before[name], declared[name])
        failure = None
        try:
            await asyncio.to_thread(_deploy, manifest, list(declared.values()), env)
        except RuntimeError as error:
            failure = error
        for name, was in before.items():
            if there := await _read(client, name):
                await _mend(client, there, declared[name], was)
                after = await _read_fields(client, await _read(client, name), declared[name])
                differs = changed(fields[name], after)
                tell(Change(f"deployment {name}", created=was is None, fields=differs))
        if failure:
            refused = "HTTPStatusError" in str(failure)
            raise RuntimeError(f"{failure}{await tell_versions(client) if refused else ''}")


def _complete(project: str, name: str, declared: Declared) -> Declared:
    """Say what `prefect deploy` would leave as it is on the server, or not find again there.

    A schedule with a slug is changed in place, and stays paused where somebody paused it. The
    others are made anew, and active.

    Raises:
        ValueError: Two schedules are the same.
    """
    complete = declared | {key: each for key, each in DEFAULTS.items() if declared.get(key) is None}
    if declared.get("schedules"):
        complete["schedules"] = [{"slug": _slug(each)} | each for each in declared["schedules"]]
    slugs = [each["slug"] for each in _schedules(complete)]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"prefect.yaml: {name}: schedules: two are the same: take one out")
    if project:
        pool = complete["work_pool"]
        variables = {PROJECT: project} | (pool.get("job_variables") or {})
        complete["work_pool"] = pool | {"job_variables": variables}
    return complete


def _slug(schedule: Declared) -> str:
    """Return a slug that stays the same while the schedule does, whether it is active or not."""
    what = sorted((key, value) for key, value in schedule.items() if key != "active")
    return f"prefect-yaml-{hashlib.sha256(repr(what).encode()).hexdigest()[:8]}"


def _schedules(declared: Declared) -> list[Declared]:
    return declared.get("schedules") or []


async def _read(client: PrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return await client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


async def _read_fields(
    client: PrefectClient, there: DeploymentResponse | None, declared: Declared
) -> dict[str, Any]:
    anchored = {each["slug"] for each in _schedules(declared) if each.get("anchor_date")}
    return await read_fields(client, there, anchored) if there else {}


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
    declared: Declared,
    was: DeploymentResponse | None,
) -> None:
    """Change what `prefect deploy` leaves otherwise than prefect.yaml says.

    Args:
        client: Of the server.
        there: The deployment, as it is now.
        declared: As it was deployed.
        was: The deployment before that.
    """
    if there.description == "None":  # DeploymentCreate makes text of None
        await client.update_deployment(there.id, DeploymentUpdate(description=None))
    before = was.schedules if was else []
    untouched = {(each.id, each.updated) for each in before}
    left = [each for each in there.schedules if (each.id, each.updated) in untouched]
    fresh = [each for each in there.schedules if each not in left]
    if fresh or not _schedules(declared):  # else the deploy failed before it came to this one
        for each in left:  # RunnerDeployment._update keeps what is not declared
            await client.delete_deployment_schedule(there.id, each.id)
    # Those without a slug were made anew: what somebody had paused stays so.
    paused = [timing(each) for each in before if not (each.active or each.slug)]
    silent = [each["slug"] for each in _schedules(declared) if "active" not in each]
    for each in fresh:
        if each.active and each.slug in silent and timing(each) in paused:
            await client.update_deployment_schedule(
                there.id,
                each.id,
                active=False,
                parameters=each.parameters,  # the server forgets what it isn't given
            )


async def create_definitions(
    client: PrefectClient, manifest: Manifest, tell: Tell = lambda _: None
) -> None:
    """Create what deployments need and is missing, and change what differs.

    That is the work pools, with their queues and the queues' limits, and the automations.

    Args:
        client: Of the server.
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
