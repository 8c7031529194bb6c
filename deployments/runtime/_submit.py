"""Creating the child runs of one parent, each exactly once, and cancelling them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task
from prefect.client.schemas.actions import DeploymentFlowRunCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Failed, Pending, Scheduled, to_state_create
from prefect.utilities.urls import url_for

from deployments.runtime._deployed import Deployments
from deployments.runtime._earlier import EarlierRuns, counts, next_key
from deployments.runtime._errors import ChildError
from deployments.runtime._orphans import LEAVE_RUNNING, cancel_run
from deployments.runtime._patience import persist
from deployments.runtime._results import find_inputs

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

R = TypeVar("R")

# How long the end of a parent waits for the creation of a run that is under way.
CLOSE_SECONDS = 60.0
# So many runs are created together at most: the first should not wait long for the last.
BATCH = 20
# Seconds until it is tried again where nothing came of it.
BULK_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a parent asks for: a deployment, run with these parameters.

    Attributes:
        deployment: `flow-name/deployment-name`.
        parameters: As JSON data.
        inputs: The same before they became JSON; they may be other children's results.
        name: Of the run.
        tags: For the run, besides the deployment's.
        job_variables: For the run, over the deployment's, as JSON data.
        key: The identity of the call, where its parameters and job variables are not.
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
        identity = [self.parameters, self.job_variables] if self.key is None else self.key
        text = json.dumps([self.deployment, identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(eq=False)
class Request:
    """A call whose run is to be created.

    Attributes:
        call: What is called.
        key: The idempotency key of the run.
        fields: Of the run, as JSON data.
        inputs: The children whose results its parameters hold.
        created: Becomes the run.
    """

    call: Call
    key: str
    fields: dict[str, Any]
    inputs: dict[str, list[Any]]
    created: asyncio.Future[FlowRun]


class Submitter:
    """Create the child runs of one attempt of a parent run, each exactly once, and cancel them.

    Each call has a key: the parent's run, what is called, which of several identical calls it
    is, and how often it ran before. It is sent as the idempotency key, so that a request that
    is sent twice creates one run; and a retried parent finds its earlier children by it.

    One request is under way at a time, and the calls that come meanwhile share the next one:
    so it goes as fast as the server answers. More at once is no faster on Postgres, and much
    slower on the embedded SQLite server, which then loses requests to "database is locked".

    Args:
        client: The client to create with, made by `get_eager_client`.
        parent: The parent's run.
        give_up_after: Seconds without an answer of the server after which submitting fails.
    """

    def __init__(self, client: PrefectClient, parent: FlowRun, give_up_after: float) -> None:
        self._client = client
        self._parent = parent
        self._logger = flow_run_logger(parent)
        self._give_up_after = give_up_after
        self._deployments = Deployments(client, give_up_after)
        self._calls: Counter[str] = Counter()
        self._claimed: set[str] = set()
        self._earlier = EarlierRuns(client, parent, give_up_after)
        self._cancelling = asyncio.Lock()
        self._waiting: list[Request] = []
        self._more = asyncio.Event()
        self._sender: asyncio.Future[None] | None = None
        self._under_way: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def close(self) -> None:
        """Let no more runs be created, and wait a while for those that are under way."""
        self._closed = True
        for request in self._waiting:
            request.created.cancel()
        self._waiting.clear()
        self._more.set()
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way, timeout=CLOSE_SECONDS)
            if not done:
                break

    def claim(self, call: Call) -> None:
        """Take the key that a call was given.

        Raises:
            ValueError: Another call has it: a retried parent could not tell them apart.
        """
        if call.key is not None:
            digest = call.digest()
            if digest in self._claimed:
                raise ValueError(
                    f"{call.deployment}: key {call.key!r} is that of an earlier call: give each "
                    "call its own"
                )
            self._claimed.add(digest)

    async def submit(self, call: Call) -> FlowRun:
        """Create the run of a call; or find that of an earlier attempt which still counts.

        A run that completed or is still alive counts; one that failed, crashed or was cancelled
        does not: it is retried where it has children, so that these count, and else made anew.

        Raises:
            ChildNotDeployed: The deployment does not exist.
            ChildError: The server refused the run.
        """
        digest = call.digest()
        self._calls[digest] += 1  # before any await: identical calls are told apart by order
        key = f"{self._parent.id}:{digest}:{self._calls[digest]}"
        earlier = await self._earlier.find(key)
        if earlier is None:
            return self._told("is created", call, await self._create(call, f"{key}:1"))
        if counts(earlier):
            done = earlier.state is not None and earlier.state.is_completed()
            how = "has completed before, and is used again" if done else "is attached again"
            return self._told(how, call, earlier)
        if again := await self._retry(call, earlier):
            return self._told("is retried, for it has children of its own", call, again)
        return self._told("runs again", call, await self._create(call, next_key(earlier)))

    async def _retry(self, call: Call, earlier: FlowRun) -> FlowRun | None:
        self._refuse_if_closed()
        retried = self._keep(self._earlier.retry(earlier))
        try:
            return await asyncio.shield(retried)
        except asyncio.CancelledError:
            await asyncio.shield(self._keep(self._undo(call, retried)))
            raise

    def _told(self, how: str, call: Call, run: FlowRun) -> FlowRun:
        self._logger.info("Child %s %r %s: %s", call.deployment, run.name, how, url_for(run))
        return run

    async def resubmit(self, call: Call, earlier: FlowRun) -> FlowRun:
        """Create another run of a call, in place of an earlier one that can't be used."""
        return self._told("runs again", call, await self._create(call, next_key(earlier)))

    async def cancel(self, run_id: UUID) -> None:
        """Ask for a run's cancellation, also if this is cancelled itself."""
        await asyncio.shield(self._keep(self._cancel(run_id)))

    async def _cancel(self, run_id: UUID) -> None:
        async def one_at_a_time() -> None:  # for the same reason as above
            async with self._cancelling:
                await cancel_run(self._client, run_id)

        await persist(one_at_a_time, self._give_up_after)

    async def _create(self, call: Call, key: str) -> FlowRun:
        self._refuse_if_closed()
        # In the caller's context: what fails fails there, and its flow run knows the results.
        inputs = {name: await find_inputs(value) for name, value in call.inputs.items()}
        fields = DeploymentFlowRunCreate(
            parameters=call.parameters,
            name=call.name,
            tags=[*call.tags],
            idempotency_key=key,
            job_variables=call.job_variables,
        ).model_dump(mode="json", exclude_unset=True)
        created = asyncio.get_running_loop().create_future()
        request = Request(call, key, fields, inputs, created)
        self._waiting.append(request)
        self._more.set()
        if self._sender is None:
            self._sender = self._keep(self._send())
        try:
            # Shielded: a run can't be cancelled before its id is known.
            return await asyncio.shield(request.created)
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            elif not request.created.cancelled():
                await asyncio.shield(self._keep(self._undo(call, request.created)))
            raise

    def _keep(self, work: Coroutine[Any, Any, R]) -> asyncio.Future[R]:
        """Do some work that goes on when its caller is cancelled."""
        future = asyncio.ensure_future(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def _refuse_if_closed(self) -> None:
        if self._closed:  # a sibling failed, and the parent with it
            raise asyncio.CancelledError("the parent has ended")

    async def _undo(self, call: Call, started: Awaitable[FlowRun | None]) -> None:
        with contextlib.suppress(Exception):  # where nothing was started, nothing is to undo
            flow_run = await started
            if flow_run and LEAVE_RUNNING not in call.tags:
                await self._cancel(flow_run.id)

    async def _send(self) -> None:
        """Create the runs of calls as they come, those of one deployment together."""
        # No retries of Prefect's client, with their pauses of 2, 4, 8 s: `persist` makes them.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            while not self._closed:
                await self._more.wait()
                self._more.clear()
                while self._waiting:
                    name = self._waiting[0].call.deployment
                    batch = [one for one in self._waiting if one.call.deployment == name][:BATCH]
                    for request in batch:
                        self._waiting.remove(request)
                    try:
                        await self._create_batch(name, batch)
                    except Exception as error:  # noqa: BLE001 - it is the callers' to handle
                        for request in batch:
                            if not request.created.done():
                                request.created.set_exception(error)

    async def _create_batch(self, name: str, batch: list[Request]) -> None:
        """Do what `arun_deployment(as_subflow=True, timeout=0)` does, but repeatably.

        That function numbers the task run, which ties a child to its parent, by a counter of
        the attempt: a retried parent would tie its new children to the task runs of old ones.
        It also reads the deployment anew for each run.
        """
        deployment = await self._deployments.read(name)
        creations: dict[Request, dict[str, Any]] = {}
        for request in batch:
            if self._closed:
                request.created.cancel()
            else:
                try:
                    creations[request] = await self._prepare(deployment, request)
                except PrefectHTTPStatusError as error:
                    request.created.set_exception(_refused(name, error))
        created: dict[str, FlowRun] = {}
        if len(creations) > 1:
            created = await self._create_in_bulk(deployment, [*creations.values()])
        for request, creation in creations.items():
            if run := created.get(request.key):
                request.created.set_result(run)
                continue
            try:
                run = await self._create_alone(deployment, name, creation)
            except ChildError as error:
                request.created.set_exception(error)
            else:
                request.created.set_result(run)

    async def _prepare(self, deployment: DeploymentResponse, request: Request) -> dict[str, Any]:
        """Create the task run that ties a run to its parent, and return all the run's fields."""
        call = request.call
        task = Task[[], None](name=call.deployment, fn=lambda: None, version=deployment.version)
        task.task_key = f"deployments.child.{call.deployment}"
        task_run = await persist(
            lambda: self._client.create_task_run(
                task,
                flow_run_id=self._parent.id,
                dynamic_key=request.key,
                name=call.name or call.deployment,
                task_inputs={name: runs for name, runs in request.inputs.items() if runs},
                state=Pending(),
            ),
            self._give_up_after,
        )
        return request.fields | {"parent_task_run_id": task_run.id}

    async def _create_in_bulk(
        self, deployment: DeploymentResponse, creations: list[dict[str, Any]]
    ) -> dict[str, FlowRun]:
        """Create runs with one request, and return those that are there then, by their keys."""
        state = to_state_create(Scheduled()).model_dump(mode="json", exclude_unset=True)
        body = [
            creation | {"parent_task_run_id": str(creation["parent_task_run_id"]), "state": state}
            for creation in creations
        ]
        # What counts is what is there then. The answer may call runs created that the transaction
        # then lost; and where the database was locked, it says 200, and nothing is there.
        keys = FlowRunFilterIdempotencyKey(any_=[each["idempotency_key"] for each in creations])
        for pause in BULK_PAUSES:
            try:
                await persist(
                    lambda: self._client.request(  # it has no method for this
                        "POST",
                        "/deployments/{id}/create_flow_run/bulk",  # type: ignore[arg-type]
                        path_params={"id": deployment.id},
                        json=body,
                    ),
                    self._give_up_after,
                )
            except PrefectHTTPStatusError:
                break  # the server does not know it, or refuses all of them for one
            runs = await persist(
                lambda: self._client.read_flow_runs(
                    flow_run_filter=FlowRunFilter(idempotency_key=keys)
                ),
                self._give_up_after,
            )
            if runs:
                return {run.idempotency_key: run for run in runs if run.idempotency_key}
            await asyncio.sleep(pause)
        return {}

    async def _create_alone(
        self, deployment: DeploymentResponse, name: str, creation: dict[str, Any]
    ) -> FlowRun:
        try:
            return await persist(
                lambda: self._client.create_flow_run_from_deployment(
                    deployment.id, state=Scheduled(), **creation
                ),
                self._give_up_after,
            )
        except PrefectHTTPStatusError as error:
            refusal = _refused(name, error)
            await persist(
                lambda: self._client.set_task_run_state(
                    creation["parent_task_run_id"], Failed(message=str(refusal)), force=True
                ),
                self._give_up_after,
            )
            raise refusal from error


def _refused(name: str, error: PrefectHTTPStatusError) -> ChildError:
    return ChildError(f"{name}: the server refused the run: {error.response.text}")
