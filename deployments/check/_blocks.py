"""Where results go, and the block documents that prefect.yaml names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import PurePosixPath
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.utilities.templating import apply_values, find_placeholders

from deployments.project import Deployment, Manifest

# Where results go, by either name of each setting (ResultsSettings).
STORAGE_BLOCK = ("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK")
STORAGE_PATH = ("PREFECT_LOCAL_STORAGE_PATH", "PREFECT_RESULTS_LOCAL_STORAGE_PATH")
PREFIX = "prefect.blocks."
# Where blocks are loaded when it is used, by a step or by a worker; elsewhere, when it is deployed.
LATE = ("build", "push", "pull", "definitions")


def check_results(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    """Yield why results of a deployment in containers would be lost."""
    pool = manifest.definitions.work_pools.get(deployment.work_pool.name)
    if pool is None or pool.type == "process" or _read_env(manifest, deployment, STORAGE_BLOCK):
        return
    path = PurePosixPath(_read_env(manifest, deployment, STORAGE_PATH) or "")
    own = deployment.work_pool.job_variables
    mounted = own if "volumes" in own.model_fields_set else pool.job_variables
    volumes = [volume.split(":") for volume in mounted.volumes]
    if not any(len(parts) > 1 and path.is_relative_to(parts[1]) for parts in volumes):
        yield (
            "its results would end with its container: set PREFECT_LOCAL_STORAGE_PATH to a "
            f"directory in one of its volumes, or {STORAGE_BLOCK[0]}, in the `env` of its work pool"
        )


def check_results_of_child(
    manifest: Manifest, parent: Deployment, child: Deployment
) -> Iterator[str]:
    """Yield why a parent might not reach the results of a child: only one has a block for them."""
    own, childs = (_read_env(manifest, found, STORAGE_BLOCK) for found in (parent, child))
    if bool(own) != bool(childs):
        whose, used = ("the child", child) if own else ("its parent", parent)
        yield (
            f"{whose} alone lacks {STORAGE_BLOCK[0]}: set it in the `env` of work pool "
            f"{used.work_pool.name}, too"
        )


def _read_env(manifest: Manifest, deployment: Deployment, names: tuple[str, ...]) -> Any:
    """Return a variable that a run has: its deployment's own, or that of its work pool."""
    pool = manifest.definitions.work_pools.get(deployment.work_pool.name)
    env = (pool.job_variables.env if pool else {}) | deployment.work_pool.job_variables.env
    return next((env[name] for name in names if env.get(name)), None)


def check_blocks(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    """Yield what a deployment or its work pool names as a block, and can't be one."""
    for place, name in _find_blocks(manifest, deployment):
        if not _slug(name):
            form = f"{PREFIX}block-type.block-name" if PREFIX in name else "block-type/block-name"
            yield f"{place}: {name} must be `{form}`"
        elif name.startswith(f"{PREFIX}secret.") and place.split(".")[0] not in LATE:
            yield (
                f"{place}: {name} would be there for everybody to read: let the flow load it "
                "(deployments/docs/recipes.md, Secrets)"
            )


async def check_blocks_of_server(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield one line for each block that the server lacks."""
    places: dict[str, str] = {}  # the first of each block
    for deployment in manifest.deployments:
        for place, name in _find_blocks(manifest, deployment):
            if slug := _slug(name):
                places.setdefault(slug, f"{deployment.full_name}: {place}")
    for slug, place in places.items():
        kind, name = slug.split("/")
        try:
            await client.read_block_document_by_name(name, kind, include_secrets=False)
        except ObjectNotFound:
            yield (
                f"{manifest.path.name}: {place}: block {slug} is not on {client.api_url}: save it: "
                "see deployments/docs/machines.md"
            )


def _find_blocks(manifest: Manifest, deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Yield the place of each block, and its name there: of one for results, or a placeholder."""
    own = deployment.work_pool
    used = [("work_pool.job_variables", own.job_variables, deployment.declared, "")]
    if pool := manifest.definitions.work_pools.get(own.name):
        place = f"definitions.work_pools.{own.name}.job_variables"
        used.append((place, pool.job_variables, pool.job_variables.model_dump(), place))
    for variables_place, variables, declared, place in used:
        for variable in STORAGE_BLOCK:
            value: Any = apply_values(variables.env.get(variable), {}, remove_notset=False)
            if isinstance(value, str) and value and "{{" not in value:
                yield f"{variables_place}.env.{variable}", value
        for found, name in find_placeholders_in(declared, place):
            if name.startswith(PREFIX):
                yield found, name


def find_placeholders_in(declared: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each placeholder."""
    if isinstance(declared, str):
        for name in sorted(placeholder.name for placeholder in find_placeholders(declared)):
            yield place, name
    elif isinstance(declared, (dict, list)):
        parts = declared.items() if isinstance(declared, dict) else enumerate(declared)
        for key, value in parts:
            yield from find_placeholders_in(value, f"{place}.{key}" if place else str(key))


def _slug(name: str) -> str | None:
    """Return a block's `block-type/block-name`, if its name has the form of one."""
    inner = name.removeprefix(PREFIX)
    # Of a placeholder, the rest is a part of its data.
    parts = name.split("/") if inner == name else inner.split(".")[:2]
    return "/".join(parts) if len(parts) == 2 and all(parts) else None
