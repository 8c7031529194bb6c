"""Call child deployments from parent flows as if they were coroutines."""

from deployments._child import child
from deployments._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildNotDeployed,
    ChildResultUnavailable,
    ChildTimedOut,
    raise_failures,
)
from deployments._parent import parent_flow
from deployments._run import ChildRun

__all__ = [
    "ChildCancelled",
    "ChildCrashed",
    "ChildError",
    "ChildFailed",
    "ChildNotDeployed",
    "ChildResultUnavailable",
    "ChildRun",
    "ChildTimedOut",
    "child",
    "parent_flow",
    "raise_failures",
]
