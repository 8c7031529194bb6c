"""The block documents that prefect.yaml names: where results go, and the values of placeholders."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from prefect.blocks.core import Block, UnknownBlockType
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.utilities.templating import apply_values, find_placeholders

from deployments.check._containers import PLACE, STORAGE_BLOCK
from deployments.project import Deployment, Manifest

PREFIX = "prefect.blocks."
STEPS = ("build", "push", "pull")  # when these run, blocks are loaded; elsewhere, at the deploy
SLUG = re.compile(r"[^/\s]+/[^/\s]+")


def check_blocks(deployment: Deployment) -> Iterator[str]:
    """Yield what a deployment names as a block, and can't be one."""
    for place, slug in _find_storages(deployment):
        if not SLUG.fullmatch(slug):
            yield f"{place}: {slug!r} must be `block-type/block-name`"
    for place, name in find_placeholder_places(deployment.declared):
        if not name.startswith(PREFIX):
            continue
        if not _slug(name):
            yield f"{place}: {name} must be `{PREFIX}block-type.block-name`"
        elif name.startswith(f"{PREFIX}secret.") and place.split(".")[0] not in STEPS:
            yield (
                f"{place}: {name} would be there for everybody to read: let the flow load it "
                "(deployments/RECIPES.md, Secrets)"
            )


async def check_blocks_of_server(
    client: PrefectClient, manifest: Manifest, deployments: Mapping[str, Deployment]
) -> AsyncIterator[str]:
    """Yield one line for each block that the server lacks, or that this Python can't load.

    Args:
        client: The client of the server.
        manifest: Whose steps are those of deployments that have none of their own.
        deployments: Of the manifest, by their full names.
    """
    places: dict[str, str] = {}  # the first of each block
    storages = set()
    shared = {kind: getattr(manifest, kind) for kind in STEPS}
    for name, deployment in deployments.items():
        for place, slug in _find_storages(deployment):
            if SLUG.fullmatch(slug):
                places.setdefault(slug, f"{name}: {place}")
                storages.add(slug)
        steps = {kind: shared[kind] for kind in shared if kind not in deployment.declared}
        for owner, declared in ((f"{name}: ", deployment.declared), ("", steps)):
            for place, placeholder in find_placeholder_places(declared):
                block = _slug(placeholder) if placeholder.startswith(PREFIX) else None
                if block:
                    places.setdefault(block, f"{owner}{place}")
    for slug, place in places.items():
        problem = await _check_block(client, slug, loaded=slug in storages)
        if problem:
            yield f"{manifest.path.name}: {place}: block {slug} {problem}"


async def _check_block(client: PrefectClient, slug: str, *, loaded: bool) -> str | None:
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


def _find_storages(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Yield the place and the value of each block that is to hold results."""
    for variable in STORAGE_BLOCK:
        declared = deployment.work_pool.job_variables.env.get(variable)
        value: Any = apply_values(declared, dict(os.environ), remove_notset=False)
        if value and "{{" not in str(value):
            yield f"{PLACE}.env.{variable}", str(value)


def find_placeholder_places(declared: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each placeholder."""
    if isinstance(declared, str):
        yield from (
            (place, name) for name in sorted(each.name for each in find_placeholders(declared))
        )
    elif isinstance(declared, (dict, list)):
        parts = declared.items() if isinstance(declared, dict) else enumerate(declared)
        for key, value in parts:
            yield from find_placeholder_places(value, f"{place}.{key}" if place else str(key))


def _slug(placeholder: str) -> str | None:
    """Return the block of a placeholder: `block-type/block-name`."""
    parts = placeholder.removeprefix(PREFIX).split(".")
    return "/".join(parts[:2]) if len(parts) > 1 and all(parts[:2]) else None
