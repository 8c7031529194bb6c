"""Running a deployment and following it: on the server in use, or on one for a demo."""

from deployments.run._demo import run_demo
from deployments.run._prepare import prepare
from deployments.run._run import Outcome, run_here, write_json

__all__ = [
    "Outcome",
    "prepare",
    "run_demo",
    "run_here",
    "write_json",
]
