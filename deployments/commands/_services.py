"""The workers of docker/compose.yaml, which has to repeat the work pools of prefect.yaml."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deployments.commands._manifest import ROOT, Manifest

COMPOSE_FILE = Path("docker") / "compose.yaml"
WORKER = "worker-"  # and its work pool: the name of its service
TYPES = ("docker", "process")  # of the pools whose workers the stack can run


def read_workers(path: Path = ROOT / COMPOSE_FILE) -> dict[str, list[str]]:
    """Return the services that are workers, each with its command.

    Raises:
        ValueError: The file can't be read; in one line.
    """
    try:
        services: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
        commands = {
            name: service["command"]
            for name, service in services.items()
            if name.startswith(WORKER)
        }
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(repr(error).split())
        raise ValueError(f"{COMPOSE_FILE}: it can't be read: {reason}") from error
    return {
        name: shlex.split(command) if isinstance(command, str) else command
        for name, command in commands.items()
    }


def check_services(manifest: Manifest, path: Path) -> Iterator[str]:
    """Yield where the workers of a Compose file, if it is there, differ from the work pools."""
    if not path.exists():
        return
    try:
        workers = read_workers(path)
    except ValueError as error:
        yield str(error)
        return
    pools = manifest.definitions.work_pools
    for name, pool in pools.items():
        if pool.type in TYPES and WORKER + name not in workers:
            yield (
                f"{COMPOSE_FILE}: no service {WORKER}{name}, for the work pool {name} of "
                "prefect.yaml: add it, as the other workers are"
            )
    for service, command in workers.items():
        name = service.removeprefix(WORKER)
        if name not in pools:
            yield (
                f"{COMPOSE_FILE}: {service}: prefect.yaml has no work pool {name}: rename the "
                "service, or remove it"
            )
            continue
        for option, expected in (("--pool", name), ("--type", pools[name].type)):
            if (option, expected) not in itertools.pairwise(command):
                yield f"{COMPOSE_FILE}: {service}: its command must have `{option} {expected}`"
