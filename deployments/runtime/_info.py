"""Which run of a child: plain data that its errors carry, also to other processes."""

from dataclasses import dataclass
from typing import Self
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.urls import url_for


@dataclass(frozen=True)
class RunInfo:
    """Tell which run of a child it is.

    Attributes:
        id: Of the flow run.
        name: Of the flow run.
        deployment: `flow-name/deployment-name`.
        url: The run's page in the Prefect UI.
    """

    id: UUID
    name: str
    deployment: str
    url: str

    @classmethod
    def of(cls, run: FlowRun, deployment: str) -> Self:
        """Return what there is to know of a flow run."""
        return cls(run.id, run.name, deployment, url_for(run) or f"flow run {run.id}")

    def __str__(self) -> str:
        return f"{self.deployment} {self.name!r}"
