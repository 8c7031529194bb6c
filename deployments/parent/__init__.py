"""Inside of a parent's run: from a call to its run, and to its result."""

from deployments.parent._child import child, stand_ins
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
    "is_parent",
    "parent_flow",
    "raise_failures",
    "stand_ins",
]
