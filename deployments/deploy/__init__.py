"""Bringing `prefect.yaml` to a server, and taking away what it no longer declares."""

from deployments.deploy._build import build
from deployments.deploy._definitions import create_definitions
from deployments.deploy._deploy import deploy_manifest
from deployments.deploy._prune import deploy_and_prune, find_leftovers
from deployments.deploy._safety_net import QUEUE, state_of_lost, with_safety_net

__all__ = [
    "QUEUE",
    "build",
    "create_definitions",
    "deploy_and_prune",
    "deploy_manifest",
    "find_leftovers",
    "state_of_lost",
    "with_safety_net",
]
