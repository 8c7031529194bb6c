"""`prefect.yaml` as data, and the flows that it names."""

from deployments.project._manifest import (
    ROOT,
    Definitions,
    Deployment,
    Manifest,
    Trigger,
    WorkPool,
    first_problem,
    is_installed,
)
from deployments.project._names import check_name

__all__ = [
    "ROOT",
    "Definitions",
    "Deployment",
    "Manifest",
    "Trigger",
    "WorkPool",
    "check_name",
    "first_problem",
    "is_installed",
]
