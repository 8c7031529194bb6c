"""Bringing deployments to a server: Prefect's own `prefect deploy`, and what that leaves undone."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse

from deployments.deploy._build import build
from deployments.deploy._definitions import (
    Report,
    create_definitions,
    describe_change,
    find,
    plain_automation,
)
from deployments.deploy._safety_net import with_safety_net
from deployments.deploy._schedules import Declared, is_paused, plain_schedules
from deployments.project import ROOT, Manifest
from deployments.servers import tell_versions

# A job variable that our deploys add, and no work pool knows. Any deploy replaces all of them, so
# what has it was deployed by us last.
PROJECT = "deployments_project"
# Where these are not declared, `prefect deploy` leaves on the server what was there.
DEFAULTS = {"paused": False, "enforce_parameter_schema": True}
FRAMES = r"\A(?: .*\n)*"  # of a traceback, below its first line


async def deploy_manifest(
    manifest: Manifest, env: Mapping[str, str], report: Report = lambda _: None
) -> None:
    """Bring deployments and what they need to the server.

    Nothing there changes before all is built. `report` gets a line about each thing, also where
    the deploy fails midway.

    Raises:
        RuntimeError: A step, or `prefect deploy`, failed; with what it said.
        ValueError: A flow can't be imported.
    """
    manifest = await build(with_safety_net(manifest), report)
    async with get_client() as client:
        existing, before, declared = {}, {}, {}
        for deployment in manifest.deployments:
            name = deployment.full_name
            found = existing[name] = await find(client.read_deployment_by_name(name))
            owner = found and (found.job_variables or {}).get(PROJECT)
            if owner and owner != manifest.name:
                raise RuntimeError(
                    f"{name} is of the project {owner} on this server: give the flow or the "
                    f"deployment another name, or `prefect deployment delete {name}`"
                )
            before[name] = await _read_fields(client, found, deployment.declared) if found else {}
            declared[name] = _complete(manifest.name, deployment.declared, found)
        await create_definitions(client, manifest, report)
        failure = None
        try:
            await asyncio.to_thread(_deploy, manifest, list(declared.values()), env)
        except RuntimeError as error:
            failure = error
        for name in declared:
            if deployed := await find(client.read_deployment_by_name(name)):
                await _mend(client, deployed, declared[name], existing[name])
                deployed = await client.read_deployment_by_name(name)
                after = await _read_fields(client, deployed, declared[name])
                report(describe_change(f"deployment {name}", before[name], after))
        if failure:
            refused = "HTTPStatusError" in str(failure)
            raise RuntimeError(f"{failure}{await tell_versions(client) if refused else ''}")


async def _read_fields(
    client: PrefectClient, deployment: DeploymentResponse, declared: Declared
) -> dict[str, Any]:
    """Return what a deployment is on the server, in the words of a report."""
    related = await client.read_resource_related_automations(f"prefect.deployment.{deployment.id}")
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    return {
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "version": deployment.version,
        "tags": deployment.tags,
        "parameters": deployment.parameters,
        "parameter schema": deployment.parameter_openapi_schema,
        "enforce_parameter_schema": deployment.enforce_parameter_schema,
        "work pool": deployment.work_pool_name,
        "work queue": deployment.work_queue_name,
        "job variables": deployment.job_variables,
        "pull steps": deployment.pull_steps,
        "paused": deployment.paused,
        "concurrency limit": (limit and limit.limit, options and options.model_dump()),
        "schedules": plain_schedules(deployment.schedules, declared.get("schedules") or []),
        "triggers": sorted(map(plain_automation, related), key=repr),
    }


def _complete(project: str, declared: Declared, existing: DeploymentResponse | None) -> Declared:
    """Declare what `prefect deploy` would leave as it is on the server, or turn on again."""
    unset = {key: value for key, value in DEFAULTS.items() if declared.get(key) is None}
    complete = declared | unset
    if existing and declared.get("schedules"):
        complete["schedules"] = [
            schedule | ({"active": False} if is_paused(schedule, existing.schedules) else {})
            for schedule in declared["schedules"]
        ]
    pool = complete["work_pool"]
    variables = {PROJECT: project} | (pool.get("job_variables") or {})
    complete["work_pool"] = pool | {"job_variables": variables}
    return complete


def _deploy(manifest: Manifest, deployments: list[Declared], env: Mapping[str, str]) -> None:
    """Run `prefect deploy` for some deployments: its own choice is by name, which many share."""
    part = {"name": manifest.name, "deployments": deployments}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "prefect.yaml"
        file.write_text(yaml.safe_dump(part, sort_keys=False), encoding="utf-8")
        run_prefect_deploy(env, "--all", "--prefect-file", str(file))


async def _mend(
    client: PrefectClient,
    deployed: DeploymentResponse,
    declared: Declared,
    existing: DeploymentResponse | None,
) -> None:
    """Change what `prefect deploy` has left otherwise than prefect.yaml says."""
    if deployed.description == "None":  # DeploymentCreate makes text of None
        await client.update_deployment(deployed.id, DeploymentUpdate(description=None))
    schedules = existing.schedules if existing else []
    before = {(schedule.id, schedule.updated) for schedule in schedules}
    left = [
        schedule for schedule in deployed.schedules if (schedule.id, schedule.updated) in before
    ]
    # Where all are as before, it failed before this one: or there are to be none.
    if len(left) < len(deployed.schedules) or not declared.get("schedules"):
        for schedule in left:  # RunnerDeployment._update keeps what is not declared
            await client.delete_deployment_schedule(deployed.id, schedule.id)


def run_prefect_deploy(env: Mapping[str, str], *arguments: str) -> None:
    """Run `prefect deploy` in an environment; a RuntimeError says why it failed."""
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


def _read_failure(output: str) -> str:
    """Return why `prefect deploy` failed."""
    said = output.rpartition("╯\n")[2]  # after the box that names the deployment, if there are many
    _, raised, rest = said.partition("Traceback (most recent call last):\n")
    if not raised:
        return " ".join(said.split())
    # Of the first exception, which led to the others.
    first = re.split(r"\n\n(?:The above|During handling)|\nAn exception occurred", rest)[0]
    text = re.sub(FRAMES, "", first).strip()
    return f"\n{text}" if "\n" in text else text
