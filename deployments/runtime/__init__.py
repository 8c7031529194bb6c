"""What lives inside a parent's run, with its one door.

`deployments` hands on what flows use; the commands, the fixtures and the maintenance flow use the
rest. Nothing here imports any of them.
"""

from deployments.runtime._child import child, stand_ins
from deployments.runtime._errors import (
    ChildCancelled,
    ChildCrashed,
    ChildError,
    ChildFailed,
    ChildNotDeployed,
    ChildResultUnavailable,
    ChildTimedOut,
    raise_failures,
)
from deployments.runtime._info import RunInfo
from deployments.runtime._orphans import (
    ALIVE,
    UNFINISHED,
    cancel_children,
    cancel_run,
    read_children,
    settle,
    settle_children,
)
from deployments.runtime._parameters import find_refused, to_json, type_hints, validate_some
from deployments.runtime._parent import is_parent, parent_flow
from deployments.runtime._patience import is_passing, read_all
from deployments.runtime._results import read_value
from deployments.runtime._returns import Returns, Unreadable
from deployments.runtime._run import ChildRun
from deployments.runtime._unstarted import explain_unstarted, online_workers

__all__ = [
    "ALIVE",
    "UNFINISHED",
    "ChildCancelled",
    "ChildCrashed",
    "ChildError",
    "ChildFailed",
    "ChildNotDeployed",
    "ChildResultUnavailable",
    "ChildRun",
    "ChildTimedOut",
    "Returns",
    "RunInfo",
    "Unreadable",
    "cancel_children",
    "cancel_run",
    "child",
    "explain_unstarted",
    "find_refused",
    "is_parent",
    "is_passing",
    "online_workers",
    "parent_flow",
    "raise_failures",
    "read_all",
    "read_children",
    "read_value",
    "settle",
    "settle_children",
    "stand_ins",
    "to_json",
    "type_hints",
    "validate_some",
]
