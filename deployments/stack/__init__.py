"""Prefect's server on Postgres and Redis, and its workers, in containers."""

from deployments.stack._stack import down, up

__all__ = [
    "down",
    "up",
]
