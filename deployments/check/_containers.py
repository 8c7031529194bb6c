"""What job variables say: where results go, what runs have of prefect.toml, their network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from deployments.project import Deployment, Manifest

# Where results go, by either name of each setting (ResultsSettings).
STORAGE_BLOCK = ("PREFECT_DEFAULT_RESULT_STORAGE_BLOCK", "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK")
STORAGE_PATH = ("PREFECT_LOCAL_STORAGE_PATH", "PREFECT_RESULTS_LOCAL_STORAGE_PATH")
# What prefect.toml says of runs: those that clone the code start without that file.
OF_RUNS = (
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
)
CHECKOUT = "prefect.deployments.steps.set_working_directory"
PLACE = "work_pool.job_variables"
REPLACES = f"in {PLACE}.env, which replaces that of an anchor: to add to it, write `env.NAME: ...`"


def check_job_variables(manifest: Manifest, deployment: Deployment) -> Iterator[str]:
    """Yield what the runs of a deployment lack, for their results to arrive."""
    pool = manifest.definitions.work_pools.get(deployment.work_pool.name)
    if pool is None:
        return
    env = deployment.work_pool.job_variables.env
    if pool.type == "process":
        pull = deployment.declared.get("pull")
        lacking = [name for name in OF_RUNS if not env.get(name)]
        if lacking and pull and not any(CHECKOUT in step for step in pull):
            yield f"its runs start without prefect.toml, and lack {', '.join(lacking)} {REPLACES}"
        return
    try:
        volumes = _read_volumes(deployment)
    except ValueError as error:
        yield str(error)
        return
    if not any(env.get(name) for name in STORAGE_BLOCK) and not _find_results(env, volumes):
        yield (
            "its results would end with its container: set PREFECT_LOCAL_STORAGE_PATH to a "
            "directory in one of its volumes, or PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, in "
            f"{PLACE}.env"
        )


def check_results(ours: Deployment, theirs: Deployment) -> Iterator[str]:
    """Yield why a parent might not reach the results of a child: only one has a block for them."""
    blocks = [
        next((env[name] for name in STORAGE_BLOCK if env.get(name)), None)
        for env in (each.work_pool.job_variables.env for each in (ours, theirs))
    ]
    if None in blocks and blocks != [None, None]:
        whose = "the child" if blocks[0] else "its parent"
        yield f"{whose} alone lacks {STORAGE_BLOCK[0]} {REPLACES}"


def find_results_volume(deployment: Deployment) -> str | None:
    """Return the volume that holds the results of a deployment in containers, if it is one.

    Raises:
        ValueError: Its volumes can't be read.
    """
    env = deployment.work_pool.job_variables.env
    volume = _find_results(env, _read_volumes(deployment))
    return None if volume is None or "/" in volume else volume  # that is a directory of the machine


def find_network(manifest: Manifest) -> str:
    """Return the network of the deployments in containers.

    Raises:
        ValueError: They have none in common.
    """
    networks = [
        deployment.work_pool.job_variables.networks
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


def _read_volumes(deployment: Deployment) -> list[tuple[str, str]]:
    """Return a deployment's volumes with their directories.

    Raises:
        ValueError: One is not what it should be.
    """
    mounts = []
    for each in deployment.work_pool.job_variables.volumes:
        volume, _, rest = each.partition(":")
        directory = rest.split(":")[0]
        if not directory.startswith("/"):
            raise ValueError(f"{PLACE}.volumes: {each!r} must be `volume:/directory`")
        mounts.append((volume, directory))
    return mounts
