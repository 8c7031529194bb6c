"""Creating runs as children of a parent's run: together in one request, or each alone."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from prefect import Task
from prefect.client.schemas.actions import DeploymentFlowRunCreate
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Failed, Pending, Scheduled, to_state_create

from deployments.parent._call import Call
from deployments.parent._errors import ChildError, ChildNotDeployed
from deployments.parent._lineage import find_caller, find_inputs, find_trace
from deployments.runs import PatientClient

# Seconds until the next try, where nothing came of one.
BULK_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(eq=False)
class Request:
    """A call whose run is to be created.

    Attributes:
        call: What is called.
        key: The idempotency key of the run.
        fields: The fields of the run, as JSON data.
        inputs: The children whose results its parameters hold.
        created: Becomes the run.
    """

    call: Call
    key: str
    fields: dict[str, Any]
    inputs: dict[str, list[Any]]
    created: asyncio.Future[FlowRun]

    @classmethod
    async def of(cls, call: Call, key: str) -> Self:
        """Return the request of a call; to be called in its context, which knows the inputs."""
        inputs = {name: await find_inputs(value) for name, value in call.inputs.items()}
        fields = DeploymentFlowRunCreate(
            parameters=call.parameters,
            name=call.name,
            tags=[*call.tags],
            idempotency_key=key,
            job_variables=call.job_variables,
            work_queue_name=call.work_queue_name,
            labels=find_trace(),
        ).model_dump(mode="json", exclude_unset=True)
        inputs["__parents__"] = find_caller()  # as `arun_deployment` does
        return cls(call, key, fields, inputs, asyncio.get_running_loop().create_future())


class Creator:
    """Create runs of deployments as children of a parent's run.

    It does what `arun_deployment(as_subflow=True, timeout=0)` does, but repeatably. That
    function numbers the task run, which ties a child to its parent, by a counter of the
    attempt: a retried parent would tie its new children to the task runs of old ones. It
    also reads the deployment anew for each run.
    """

    def __init__(self, server: PatientClient, parent_id: UUID) -> None:
        self._server = server
        self._parent_id = parent_id
        self._deployments: dict[str, DeploymentResponse] = {}

    async def create(self, name: str, requests: Iterable[Request]) -> None:
        """Create the runs of requests for one deployment, each one when it is its turn.

        Raises:
            ChildNotDeployed: The deployment does not exist.
            ChildError: The server did not answer in time.
        """
        deployment = await self._find(name)
        prepared: list[Request] = []
        for request in requests:
            if pinned := await self.pin(request.call):
                request.fields["job_variables"] = (request.call.job_variables or {}) | pinned
            try:
                await self._tie_to_parent(deployment, request)
            except PrefectHTTPStatusError as error:
                request.created.set_exception(_refused(name, error))
            else:
                prepared.append(request)
        together = len(prepared) > 1
        created = await self._create_in_bulk(deployment.id, prepared) if together else {}
        for request in prepared:
            try:
                run = created.get(request.key) or await self._create_alone(request)
            except ChildError as error:
                request.created.set_exception(error)
            else:
                request.created.set_result(run)

    async def pin(self, call: Call) -> dict[str, str]:
        """Return the job variables by which a run has its parent's own image, where it should.

        What is deployed meanwhile is of the same name, and has another tag: a pipeline that is
        under way keeps its code.
        """
        if not call.image or "image" in (call.job_variables or {}):
            return {}
        deployed = str((await self._find(call.deployment)).job_variables.get("image"))
        return {"image": call.image} if _name(deployed) == _name(call.image) else {}

    async def _find(self, name: str) -> DeploymentResponse:
        if name not in self._deployments:
            try:
                deployment = await self._server.ask(
                    lambda client: client.read_deployment_by_name(name)
                )
            except ObjectNotFound:
                raise ChildNotDeployed(await self._explain_missing(name)) from None
            self._deployments[name] = deployment
        return self._deployments[name]

    async def _explain_missing(self, name: str) -> str:
        flow_name = name.split("/")[0]
        of_flow = FlowFilter.model_validate({"name": {"any_": [flow_name]}})
        deployed = await self._server.ask(
            lambda client: client.read_deployments(flow_filter=of_flow)
        )
        others = ", ".join(sorted(f"{flow_name}/{deployment.name}" for deployment in deployed))
        return (
            f"{name} is not deployed on {self._server.client.api_url}"
            + (f" (there is {others})" if others else "")
            + ": declare it in prefect.yaml and run `make deploy`"
        )

    async def _tie_to_parent(self, deployment: DeploymentResponse, request: Request) -> None:
        """Create the task run that ties a run to its parent."""
        call = request.call
        task = Task[[], None](name=call.deployment, fn=lambda: None, version=deployment.version)
        task.task_key = f"deployments.child.{call.deployment}"
        task_run = await self._server.ask(
            lambda client: client.create_task_run(
                task,
                flow_run_id=self._parent_id,
                dynamic_key=request.key,
                name=call.name or call.deployment,
                task_inputs={name: runs for name, runs in request.inputs.items() if runs},
                state=Pending(),
            )
        )
        request.fields["parent_task_run_id"] = str(task_run.id)

    async def _create_in_bulk(
        self, deployment_id: UUID, requests: list[Request]
    ) -> dict[str | None, FlowRun]:
        """Create runs with one request, and return those that exist then, by their keys."""
        body = []
        for request in requests:
            state = to_state_create(_scheduled(request.call))
            dumped = state.model_dump(mode="json", exclude_unset=True)
            body.append(request.fields | {"state": dumped})
        # The answer is not asked. It may call runs created that the transaction then lost; and
        # where the database was locked, it says 200, and nothing exists.
        keys = [request.key for request in requests]
        created = FlowRunFilter.model_validate({"idempotency_key": {"any_": keys}})
        for pause in BULK_PAUSES:
            try:
                await self._server.ask(
                    lambda client: client.request(  # it has no method for this
                        "POST",
                        "/deployments/{id}/create_flow_run/bulk",  # type: ignore[arg-type]
                        path_params={"id": deployment_id},
                        json=body,
                    )
                )
            except PrefectHTTPStatusError:
                break  # the server does not know it, or refuses all of them for one
            runs = await self._server.ask(
                lambda client: client.read_flow_runs(flow_run_filter=created)
            )
            if runs:
                return {run.idempotency_key: run for run in runs}
            await asyncio.sleep(pause)
        return {}

    async def _create_alone(self, request: Request) -> FlowRun:
        name = request.call.deployment
        known = name in self._deployments
        try:
            deployment = await self._find(name)
            return await self._server.ask(
                lambda client: client.create_flow_run_from_deployment(
                    deployment.id, state=_scheduled(request.call), **request.fields
                )
            )
        except PrefectHTTPStatusError as error:
            if known and error.response.status_code == 404:  # deleted, and perhaps made anew
                del self._deployments[name]
                return await self._create_alone(request)
            refusal = _refused(name, error)
        except ChildNotDeployed as error:
            refusal = error
        failed: State[Any] = Failed(message=str(refusal))
        await self._server.ask(
            lambda client: client.set_task_run_state(
                UUID(request.fields["parent_task_run_id"]), failed, force=True
            )
        )
        raise refusal


def _scheduled(call: Call) -> State[Any]:
    return Scheduled(scheduled_time=call.scheduled_time)


def _name(image: str) -> str:
    """Return the name of an image, without its tag; a registry may have a port."""
    return re.sub("[:@][^/]*$", "", image)


def _refused(name: str, error: PrefectHTTPStatusError) -> ChildError:
    return ChildError(f"{name}: the server refused the run: {error.response.text}")
