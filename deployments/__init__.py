"""Call child deployments from parent flows as if they were coroutines."""

from deployments.parent import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildNotDeployed,
    ChildResultUnavailable,
    ChildRun,
    ChildTimedOut,
    RunInfo,
    child,
    parent_flow,
    raise_failures,
)

__all__ = [
    "ChildCancelled",
    "ChildCrashed",
    "ChildError",
    "ChildFailed",
    "ChildNotDeployed",
    "ChildResultUnavailable",
    "ChildRun",
    "ChildTimedOut",
    "RunInfo",
    "child",
    "parent_flow",
    "raise_failures",
]
