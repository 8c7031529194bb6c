"""Creating the child runs of one parent: bounded, and each exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Failed, Pending, Scheduled

from deployments._errors import ChildError, ChildNotDeployed
from deployments._orphans import ALIVE, LEAVE_RUNNING, cancel_run
from deployments._patience import is_passing, persist
from deployments._results import find_inputs

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

R = TypeVar("R")

# How long the end of a parent waits for the creation of a run that is under way.
CLOSE_SECONDS = 60.0
# The embedded SQLite server does not bear parallel creation: 100 runs one after another took
# 9 s, at once 137 s, and three of them were lost to "database is locked".
SUBMISSIONS_AT_ONCE = 1
# The server's cap on the results of one read (PREFECT_API_DEFAULT_LIMIT).
PAGE = 200


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
    """Create the child runs of one attempt of a parent run, each exactly once.

    Each call has a key: the parent's run, what is called, which of several identical calls it
    is, and how often it ran before. It is sent as the idempotency key, so that a request that
    is sent twice creates one run; and a retried parent finds its earlier children by it.

    Args:
        client: The client to create with.
        parent: The parent's run.
        give_up_after: Seconds without an answer of the server after which submitting fails.
    """

    def __init__(self, client: PrefectClient, parent: FlowRun, give_up_after: float) -> None:
        self._client = client
        self._parent = parent
        self._give_up_after = give_up_after
        self._slots = asyncio.Semaphore(SUBMISSIONS_AT_ONCE)
        self._deployments: dict[str, DeploymentResponse] = {}
        self._calls: Counter[str] = Counter()
        self._earlier: dict[str, FlowRun] | None = None
        self._under_way: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def close(self) -> None:
        """Let no more runs be created, and wait a while for those that are under way."""
        self._closed = True
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way, timeout=CLOSE_SECONDS)
            if not done:
                break

    async def submit(self, call: Call) -> FlowRun:
        """Create the run of a call; or find that of an earlier attempt which still counts.

        A run that completed or is still alive counts; one that failed, crashed or was cancelled
        does not.

        Raises:
            ChildNotDeployed: The deployment does not exist.
            ChildError: The server refused the run.
        """
        digest = call.digest()
        self._calls[digest] += 1  # before any await: identical calls are told apart by order
        key = f"{self._parent.id}:{digest}:{self._calls[digest]}"
        async with self._slots:
            if self._closed:  # a sibling failed, and the parent with it
                raise asyncio.CancelledError("the parent has ended")
            if self._earlier is None:
                self._earlier = await self._read_earlier()
            earlier = self._earlier.get(key)
            if earlier is None:
                return await self._create_safely(call, f"{key}:1")
            if counts(earlier):
                return earlier
            return await self._create_safely(call, next_key(earlier))

    async def resubmit(self, call: Call, earlier: FlowRun) -> FlowRun:
        """Create another run of a call, in place of an earlier one that can't be used."""
        async with self._slots:
            return await self._create_safely(call, next_key(earlier))

    async def _read_earlier(self) -> dict[str, FlowRun]:
        """Return the latest run of each call of earlier attempts, by its key."""
        children = FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[self._parent.id])
        )
        latest: dict[str, FlowRun] = {}
        for offset in itertools.count(0, PAGE):
            runs = await persist(
                lambda offset=offset: self._client.read_flow_runs(  # type: ignore[misc]
                    flow_run_filter=children,
                    sort=FlowRunSort.ID_DESC,
                    limit=PAGE,
                    offset=offset,
                ),
                self._give_up_after,
            )
            for run in runs:
                key, _, attempt = (run.idempotency_key or "").rpartition(":")
                if not key.startswith(f"{self._parent.id}:"):
                    continue  # made by other means, such as a plain subflow
                if key not in latest or int(attempt) > attempt_of(latest[key]):
                    latest[key] = run
            if len(runs) < PAGE:
                return latest
        raise AssertionError("unreachable")

    async def _create_safely(self, call: Call, key: str) -> FlowRun:
        creation = self._keep(persist(lambda: self._create(call, key), self._give_up_after))
        try:
            # Shielded: a run can't be cancelled before its id is known.
            return await asyncio.shield(creation)
        except asyncio.CancelledError:
            await asyncio.shield(self._keep(self._undo(creation, call)))
            raise

    def _keep(self, work: Coroutine[Any, Any, R]) -> asyncio.Future[R]:
        """Do some work that goes on when its caller is cancelled."""
        future = asyncio.ensure_future(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    async def _undo(self, creation: asyncio.Future[FlowRun], call: Call) -> None:
        with contextlib.suppress(Exception):  # where nothing was created, nothing is to undo
            flow_run = await creation
            if LEAVE_RUNNING not in call.tags:
                await cancel_run(self._client, flow_run.id)

    async def _create(self, call: Call, key: str) -> FlowRun:
        """Do what `arun_deployment(as_subflow=True, timeout=0)` does, but repeatably.

        That function numbers the task run, which ties a child to its parent, by a counter of
        the attempt: a retried parent would tie its new children to the task runs of old ones.
        It also reads the deployment anew for each run.
        """
        deployment = await self._read_deployment(call.deployment)
        task = Task[[], None](name=call.deployment, fn=lambda: None, version=deployment.version)
        task.task_key = f"deployments.child.{call.deployment}"
        inputs = {name: await find_inputs(value) for name, value in call.inputs.items()}
        task_run = await self._client.create_task_run(
            task,
            flow_run_id=self._parent.id,
            dynamic_key=key,
            name=call.name or call.deployment,
            task_inputs={name: [*runs] for name, runs in inputs.items() if runs},
            state=Pending(),
        )
        try:
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
        except PrefectHTTPStatusError as error:
            if is_passing(error):
                raise
            refusal = f"{call.deployment}: the server refused the run: {error.response.text}"
            await self._client.set_task_run_state(task_run.id, Failed(message=refusal), force=True)
            raise ChildError(refusal) from error

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


def counts(run: FlowRun) -> bool:
    """Tell whether a retried parent uses an earlier run, rather than a new one."""
    state = run.state
    return state is not None and (state.is_completed() or run.state_type in ALIVE)


def attempt_of(run: FlowRun) -> int:
    """Return how many runs a call had, with this one."""
    return int((run.idempotency_key or "").rpartition(":")[2])


def next_key(run: FlowRun) -> str:
    """Return the key of the run after this one."""
    return f"{(run.idempotency_key or '').rpartition(':')[0]}:{attempt_of(run) + 1}"
