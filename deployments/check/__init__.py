"""What is wrong with `prefect.yaml`, its flows, and what a server has of them."""

from deployments.check._check import check_manifest, required_parameters
from deployments.check._server import check_server

__all__ = [
    "check_manifest",
    "check_server",
    "required_parameters",
]
