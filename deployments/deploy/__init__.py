"""Bringing `prefect.yaml` to a server, and taking away what it no longer declares."""

from deployments.deploy._deploy import deploy_manifest
from deployments.deploy._prune import find_leftovers

__all__ = [
    "deploy_manifest",
    "find_leftovers",
]
