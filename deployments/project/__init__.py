"""`prefect.yaml` as data, and the flows that it names."""

from deployments.project._manifest import (
    ROOT,
    Deployment,
    JobVariables,
    Manifest,
    WorkPool,
    WorkQueue,
    check_name,
    first_problem,
    is_installed,
)
from deployments.project._new_flow import write_flow

__all__ = [
    "ROOT",
    "Deployment",
    "JobVariables",
    "Manifest",
    "WorkPool",
    "WorkQueue",
    "check_name",
    "first_problem",
    "is_installed",
    "write_flow",
]
