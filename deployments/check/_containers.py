"""For the stack, until it has these itself."""

from __future__ import annotations

from pathlib import PurePosixPath

from deployments.check._blocks import STORAGE_PATH
from deployments.project import Deployment, Manifest


def find_results_volume(deployment: Deployment) -> str | None:
    """Return the volume that holds the results of a deployment in containers, if it is one."""
    variables = deployment.work_pool.job_variables
    path = next((variables.env[name] for name in STORAGE_PATH if variables.env.get(name)), None)
    for mount in variables.volumes:
        volume, _, rest = mount.partition(":")
        directory = rest.split(":")[0]
        if path and directory and PurePosixPath(path).is_relative_to(directory):
            return None if "/" in volume else volume  # that is a directory of the machine
    return None


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
        "prefect.yaml: work_pool.job_variables.networks: the deployments in work pools of type "
        "docker must have one in common, in which they reach the server"
    )
