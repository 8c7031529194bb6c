"""Runs on a server: asking it until it answers, cancelling runs, why they wait."""

from deployments.runs._cancel import (
    ALIVE,
    LEAVE_RUNNING,
    UNFINISHED,
    cancel_children,
    cancel_run,
    confirm_cancelled,
    name_all,
    read_children,
    wait_until_cancelled,
)
from deployments.runs._client import (
    PatientClient,
    get_eager_client,
    is_passing,
    read_all,
    read_everything,
    read_pages,
    unreachable,
)
from deployments.runs._waiting import explain_waiting, online_workers

__all__ = [
    "ALIVE",
    "LEAVE_RUNNING",
    "UNFINISHED",
    "PatientClient",
    "cancel_children",
    "cancel_run",
    "confirm_cancelled",
    "explain_waiting",
    "get_eager_client",
    "is_passing",
    "name_all",
    "online_workers",
    "read_all",
    "read_children",
    "read_everything",
    "read_pages",
    "unreachable",
    "wait_until_cancelled",
]
