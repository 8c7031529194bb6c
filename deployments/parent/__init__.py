"""Inside of a parent's run: from a call to its run, and to its result."""

from deployments.parent._call import Call
from deployments.parent._child import Child, child
from deployments.parent._child_run import ChildRun
from deployments.parent._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildNotDeployed,
    ChildResultUnavailable,
    ChildTimedOut,
    RunInfo,
    raise_failures,
)
from deployments.parent._parent import is_parent, parent_flow
from deployments.parent._parent_run import ParentRun

__all__ = [
    "Call",
    "Child",
    "ChildCancelled",
    "ChildCrashed",
    "ChildError",
    "ChildFailed",
    "ChildNotDeployed",
    "ChildResultUnavailable",
    "ChildRun",
    "ChildTimedOut",
    "ParentRun",
    "RunInfo",
    "child",
    "is_parent",
    "parent_flow",
    "raise_failures",
]
