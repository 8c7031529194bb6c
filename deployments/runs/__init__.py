"""Runs on a server: asking it until it answers, cancelling and restarting runs, why they wait."""

from deployments.runs._cancel import (
    ALIVE,
    LEAVE_RUNNING,
    UNFINISHED,
    cancel_children,
    cancel_run,
    confirm_cancelled,
    name_all,
    read_children,
    read_ends,
    wait_until_cancelled,
)
from deployments.runs._client import (
    PatientClient,
    get_eager_client,
    read_all,
    read_everything,
    read_pages,
    unreachable,
)
from deployments.runs._restart import (
    DURABLE,
    PAUSES,
    RESTART,
    count_restarts,
    is_durable,
    will_restart,
)
from deployments.runs._waiting import explain_waiting, online_workers

__all__ = [
    "ALIVE",
    "DURABLE",
    "LEAVE_RUNNING",
    "PAUSES",
    "RESTART",
    "UNFINISHED",
    "PatientClient",
    "cancel_children",
    "cancel_run",
    "confirm_cancelled",
    "count_restarts",
    "explain_waiting",
    "get_eager_client",
    "is_durable",
    "name_all",
    "online_workers",
    "read_all",
    "read_children",
    "read_ends",
    "read_everything",
    "read_pages",
    "unreachable",
    "wait_until_cancelled",
    "will_restart",
]
