"""Creating the child runs of one parent: bounded, and each exactly once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
)
from prefect.exceptions import ObjectNotFound
from prefect.states import Pending, Scheduled

from deployments._errors import ChildNotDeployed
from deployments._orphans import cancel_run
from deployments._results import collect_task_run_inputs

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

# The embedded SQLite server does not bear parallel creation: 100 runs one after another took
# 9 s, at once 137 s, and three of them were lost to "database is locked".
SUBMISSIONS_AT_ONCE = 1


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a parent asks for: a deployment, run with these parameters.

    Attributes:
        deployment: `flow-name/deployment-name`.
        parameters: As JSON data.
        inputs: The same before they became JSON; they may be other children's results.
        name: Of the run.
        tags: For the run, besides the deployment's.
        job_variables: For the run, over the deployment's.
        key: The identity of the call, where its parameters are not.
    """

    deployment: str
    parameters: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    tags: tuple[str, ...] = ()
    job_variables: dict[str, Any] | None = None
    key: str | None = None

    def digest(self) -> str:
        """Return a short hash of what makes this call the same call in a retried parent."""
        identity = self.parameters if self.key is None else self.key
        text = json.dumps([self.deployment, identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Submitter:
    """Create the child runs of one attempt of a parent run.

    Args:
        client: The client to create with.
        parent: The parent's run.
    """

    def __init__(self, client: PrefectClient, parent: FlowRun) -> None:
        self._client = client
        self._parent = parent
        self._slots = asyncio.Semaphore(SUBMISSIONS_AT_ONCE)
        self._deployments: dict[str, DeploymentResponse] = {}
        self._calls: Counter[str] = Counter()

    async def submit(self, call: Call) -> FlowRun:
        """Create the run of a call, or find the one that an earlier attempt created.

        Raises:
            ChildNotDeployed: The deployment does not exist.
        """
        digest = call.digest()
        self._calls[digest] += 1  # before any await: identical calls are told apart by order
        key = f"{self._parent.id}:{digest}:{self._calls[digest]}"
        async with self._slots:
            # Shielded: a run can't be cancelled before its id is known.
            creation = asyncio.ensure_future(self._create(call, key))
            try:
                return await asyncio.shield(creation)
            except asyncio.CancelledError:
                flow_run = await creation
                await cancel_run(self._client, flow_run.id)
                raise

    async def _create(self, call: Call, key: str) -> FlowRun:
        """Do what `arun_deployment(as_subflow=True, timeout=0)` does, but repeatably.

        That function numbers the task run, which ties a child to its parent, by a counter of
        the attempt: a retried parent would tie its new children to the task runs of old ones.
        It also reads the deployment anew for each run.
        """
        deployment = await self._read_deployment(call.deployment)
        task = Task[[], None](name=call.deployment, fn=lambda: None, version=deployment.version)
        task.task_key = f"deployments.child.{call.deployment}"
        inputs = {name: await collect_task_run_inputs(value) for name, value in call.inputs.items()}
        task_run = await self._client.create_task_run(
            task,
            flow_run_id=self._parent.id,
            dynamic_key=key,
            name=call.name or call.deployment,
            task_inputs={name: list(runs) for name, runs in inputs.items() if runs},
            state=Pending(),
        )
        return await self._client.create_flow_run_from_deployment(
            deployment.id,
            parameters=call.parameters,
            state=Scheduled(),
            name=call.name,
            tags=call.tags,
            idempotency_key=key,
            parent_task_run_id=task_run.id,
            job_variables=call.job_variables,
        )

    async def _read_deployment(self, name: str) -> DeploymentResponse:
        if name not in self._deployments:
            try:
                self._deployments[name] = await self._client.read_deployment_by_name(name)
            except ObjectNotFound:
                raise ChildNotDeployed(await self._explain_missing(name)) from None
        return self._deployments[name]

    async def _explain_missing(self, name: str) -> str:
        flow_name = name.split("/")[0]
        deployed = await self._client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name]))
        )
        there = ", ".join(sorted(f"{flow_name}/{other.name}" for other in deployed))
        return (
            f"{name} is not deployed on {self._client.api_url}"
            + (f" (there is {there})" if there else "")
            + ": declare it in prefect.yaml and run `prefect deploy --all`"
        )
