"""The deployments that a parent calls, as they are on the server."""

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.runtime._errors import ChildNotDeployed
from deployments.runtime._patience import persist


class Deployments:
    """The deployments by name, each read once.

    Args:
        client: The client to read with.
        give_up_after: Seconds without an answer of the server after which reading fails.
    """

    def __init__(self, client: PrefectClient, give_up_after: float) -> None:
        self._client = client
        self._give_up_after = give_up_after
        self._read: dict[str, DeploymentResponse] = {}

    async def read(self, name: str) -> DeploymentResponse:
        """Return a deployment.

        Raises:
            ChildNotDeployed: It does not exist.
            ChildError: The server did not answer in time.
        """
        if name not in self._read:
            try:
                self._read[name] = await persist(
                    lambda: self._client.read_deployment_by_name(name), self._give_up_after
                )
            except ObjectNotFound:
                raise ChildNotDeployed(await self._explain_missing(name)) from None
        return self._read[name]

    async def _explain_missing(self, name: str) -> str:
        flow_name = name.split("/")[0]
        of_flow = FlowFilter(name=FlowFilterName(any_=[flow_name]))
        deployed = await persist(
            lambda: self._client.read_deployments(flow_filter=of_flow), self._give_up_after
        )
        there = ", ".join(sorted(f"{flow_name}/{other.name}" for other in deployed))
        return (
            f"{name} is not deployed on {self._client.api_url}"
            + (f" (there is {there})" if there else "")
            + ": declare it in prefect.yaml and run `prefect deploy`"
        )
