"""Bringing `prefect.yaml` to a server, and taking away what it no longer declares."""

from deployments.deploy._definitions import create_definitions
from deployments.deploy._deploy import deploy_manifest
from deployments.deploy._prune import deploy_and_prune, find_leftovers
from deployments.deploy._safety_net import QUEUE, with_safety_net

__all__ = [
    "QUEUE",
    "create_definitions",
    "deploy_and_prune",
    "deploy_manifest",
    "find_leftovers",
    "with_safety_net",
]
