"""The deployments that a parent calls, as they are on the server."""

from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.parent._errors import ChildNotDeployed
from deployments.runs import PatientClient


async def read_deployment(server: PatientClient, name: str) -> DeploymentResponse:
    """Return a deployment.

    Raises:
        ChildNotDeployed: It does not exist.
        ChildError: The server did not answer in time.
    """
    try:
        return await server.ask(lambda client: client.read_deployment_by_name(name))
    except ObjectNotFound:
        raise ChildNotDeployed(await _explain_missing(server, name)) from None


async def _explain_missing(server: PatientClient, name: str) -> str:
    flow_name = name.split("/")[0]
    of_flow = FlowFilter(name=FlowFilterName(any_=[flow_name]))
    deployed = await server.ask(lambda client: client.read_deployments(flow_filter=of_flow))
    there = ", ".join(sorted(f"{flow_name}/{other.name}" for other in deployed))
    return (
        f"{name} is not deployed on {server.client.api_url}"
        + (f" (there is {there})" if there else "")
        + ": declare it in prefect.yaml and run `make deploy`"
    )
