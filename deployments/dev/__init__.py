"""`dev`: a server and workers for this checkout, which follow its changes and tell its runs."""

from deployments.dev._dev import run_dev
from deployments.dev._home import use_server

__all__ = ["run_dev", "use_server"]
