"""Servers: one of our own as a process, and why another can't be used."""

from deployments.servers._processes import (
    TemporaryServer,
    is_free,
    run_process,
    tail,
    temporary_server,
    temporary_worker,
)
from deployments.servers._refusals import explain, require_server, tell_versions

__all__ = [
    "TemporaryServer",
    "explain",
    "is_free",
    "require_server",
    "run_process",
    "tail",
    "tell_versions",
    "temporary_server",
    "temporary_worker",
]
