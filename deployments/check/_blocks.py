"""The block documents that prefect.yaml names: where results go, and the values of placeholders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from prefect.blocks.core import Block, UnknownBlockType
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.utilities.templating import apply_values, find_placeholders

from deployments.check._containers import PLACE, STORAGE_BLOCK
from deployments.project import Deployment, Manifest

PREFIX = "prefect.blocks."
STEPS = ("build", "push", "pull")  # when these run, blocks are loaded; elsewhere, at the deploy


def check_blocks(deployment: Deployment) -> Iterator[str]:
    """Yield what a deployment names as a block, and can't be one."""
    for place, name in _find_blocks(deployment):
        if not _slug(name):
            form = f"{PREFIX}block-type.block-name" if PREFIX in name else "block-type/block-name"
            yield f"{place}: {name} must be `{form}`"
        elif name.startswith(f"{PREFIX}secret.") and place.split(".")[0] not in STEPS:
            yield (
                f"{place}: {name} would be there for everybody to read: let the flow load it "
                "(deployments/RECIPES.md, Secrets)"
            )


async def check_blocks_of_server(client: PrefectClient, manifest: Manifest) -> AsyncIterator[str]:
    """Yield one line for each block that the server lacks, or that this Python can't load."""
    places: dict[str, str] = {}  # the first of each block
    storages = set()
    for deployment in manifest.deployments:
        for place, name in _find_blocks(deployment):
            if slug := _slug(name):
                places.setdefault(slug, f"{deployment.full_name}: {place}")
                if not name.startswith(PREFIX):
                    storages.add(slug)
    for slug, place in places.items():
        if problem := await _find_problem(client, slug, loaded=slug in storages):
            yield f"{manifest.path.name}: {place}: block {slug} {problem}"


async def _find_problem(client: PrefectClient, slug: str, *, loaded: bool) -> str | None:
    kind, name = slug.split("/")
    try:
        document = await client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        return f"is not on {client.api_url}: save it: see docker/README.md"
    if loaded and document.block_schema:  # a placeholder takes the data alone
        try:
            Block.get_block_class_from_schema(document.block_schema)
        except UnknownBlockType:
            return (
                f"can't be loaded by this Python, which has no package with {kind}: add that to "
                "pyproject.toml, and `make lock`"
            )
    return None


def _find_blocks(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Yield the place of each block, and its name there: of one for results, or a placeholder."""
    for variable in STORAGE_BLOCK:
        declared = deployment.work_pool.job_variables.env.get(variable)
        value: Any = apply_values(declared, {}, remove_notset=False)
        if isinstance(value, str) and value and "{{" not in value:
            yield f"{PLACE}.env.{variable}", value
    for place, name in find_placeholders_in(deployment.declared):
        if name.startswith(PREFIX):
            yield place, name


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
