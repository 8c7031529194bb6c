"""What the job variables of deployments in containers say: their network, and where results go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from deployments.commands._manifest import Deployment, Manifest

# Where results go, by either name of each setting (ResultsSettings).
STORAGE_BLOCK = ("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK")
STORAGE_PATH = ("PREFECT_LOCAL_STORAGE_PATH", "PREFECT_RESULTS_LOCAL_STORAGE_PATH")
PLACE = "work_pool.job_variables"


def check_container(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    """Yield why the results of a deployment in containers would end with them."""
    pool = manifest.definitions.work_pools.get(deployment.work_pool.name)
    if pool is None or pool.type == "process":
        return
    try:
        env, volumes = _read(deployment)
    except ValueError as error:
        yield str(error)
        return
    if not any(env.get(name) for name in STORAGE_BLOCK) and not _find_results(env, volumes):
        yield (
            "its results would end with its container: set PREFECT_LOCAL_STORAGE_PATH to a "
            "directory in one of its volumes, or PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, in "
            f"{PLACE}.env"
        )


def find_results_volume(deployment: Deployment) -> str | None:
    """Return the volume that holds the results of a deployment in containers, if it is one.

    Raises:
        ValueError: Its job variables can't be read.
    """
    volume = _find_results(*_read(deployment))
    return None if volume is None or "/" in volume else volume  # that is a directory of the machine


def find_network(manifest: Manifest) -> str:
    """Return the network of the deployments in containers.

    Raises:
        ValueError: They have none in common.
    """
    networks = [
        deployment.work_pool.job_variables.get("networks") or []
        for deployment in manifest.of_type("docker").deployments
    ]
    for network in networks[0]:
        if all(network in each for each in networks):
            return str(network)
    raise ValueError(
        f"prefect.yaml: {PLACE}.networks: the deployments in work pools of type docker must have "
        "one in common, in which they reach the server"
    )


def _find_results(env: dict[str, Any], volumes: list[tuple[str, str]]) -> str | None:
    path = next((env[name] for name in STORAGE_PATH if env.get(name)), None)
    for volume, directory in volumes:
        if path is not None and PurePosixPath(path).is_relative_to(directory):
            return volume
    return None


def _read(deployment: Deployment) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return a deployment's environment variables, and its volumes with their directories.

    Raises:
        ValueError: They are not what they should be.
    """
    job_variables = deployment.work_pool.job_variables
    env = job_variables.get("env") or {}
    volumes = job_variables.get("volumes") or []
    if not isinstance(env, dict):
        raise ValueError(f"{PLACE}.env: it must be a mapping, of names to values")  # noqa: TRY004
    if not isinstance(volumes, list):
        raise ValueError(f"{PLACE}.volumes: it must be a list, of `volume:/directory`")  # noqa: TRY004
    mounts = []
    for each in volumes:
        volume, _, rest = str(each).partition(":")
        directory = rest.split(":")[0]
        if not directory.startswith("/"):
            raise ValueError(f"{PLACE}.volumes: {each!r} must be `volume:/directory`")
        mounts.append((volume, directory))
    return env, mounts
