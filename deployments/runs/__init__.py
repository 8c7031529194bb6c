"""Runs on a server: asking it until it answers, cancelling runs, why they wait."""

from deployments.runs._cancel import (
    ALIVE,
    LEAVE_RUNNING,
    UNFINISHED,
    cancel_children,
    cancel_run,
    name_all,
    read_children,
    settle,
    settle_children,
)
from deployments.runs._client import (
    Server,
    get_eager_client,
    is_passing,
    read_all,
    read_pages,
    unreachable,
)
from deployments.runs._waiting import explain_unstarted, online_workers

__all__ = [
    "ALIVE",
    "LEAVE_RUNNING",
    "UNFINISHED",
    "Server",
    "cancel_children",
    "cancel_run",
    "explain_unstarted",
    "get_eager_client",
    "is_passing",
    "name_all",
    "online_workers",
    "read_all",
    "read_children",
    "read_pages",
    "settle",
    "settle_children",
    "unreachable",
]
