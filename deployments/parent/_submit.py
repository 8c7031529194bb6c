"""Submitting the calls of one parent: each has exactly one run."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.logging.loggers import LoggingAdapter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry

from deployments.parent._call import Call, split_key
from deployments.parent._create import Creator, Request
from deployments.parent._errors import ChildCrashed, ChildError, RunInfo
from deployments.parent._undo import Canceller
from deployments.runs import ALIVE, PatientClient, read_all, will_restart

# So many runs are created together at most: the first should not wait long for the last.
BATCH = 20
# So long a run waits for another image: until its parent gives up an unanswering server.
UNTIL_IMAGE = timedelta(minutes=10)


class Submitter:
    """Create the child runs of one attempt of a parent run, each exactly once.

    The key of a call and the number of its run are sent as the idempotency key, so that a request
    that is sent twice creates one run; and a retried parent finds its earlier children by it.

    One request is under way at a time, and the calls that come meanwhile share the next one:
    so it goes as fast as the server answers. More at once is no faster on Postgres, and much
    slower on SQLite, where a server then loses requests to "database is locked".

    Args:
        server: The server to ask.
        parent_id: The id of the parent's run.
        logger: The logger of the parent's run.
        canceller: Undoes what was started for a caller that is cancelled meanwhile.
        publish: Called with each run, and how it is used again where an earlier attempt made it.
    """

    def __init__(
        self,
        server: PatientClient,
        parent_id: UUID,
        logger: LoggingAdapter,
        canceller: Canceller,
        publish: Callable[[FlowRun, str], None],
    ) -> None:
        self._server = server
        self._parent_id = parent_id
        self._logger = logger
        self._canceller = canceller
        self._publish = publish
        self._creator = Creator(server, parent_id)
        self._earlier: dict[str, FlowRun] | None = None
        self._reading = asyncio.Lock()
        self._used_again: set[UUID] = set()
        self._waiting: list[Request] = []
        self._creating = asyncio.Lock()
        self._closed = False

    def close(self) -> None:
        """Let no more runs be created than those that are under way."""
        self._closed = True
        for request in self._waiting:
            request.created.cancel()
        self._waiting.clear()

    async def submit(self, call: Call, key: str) -> FlowRun:
        """Return the run of a call: a new one, or that of an earlier attempt.

        An earlier run that completed, is still alive or will be restarted is used. One that failed,
        crashed or was cancelled is retried where it has children, so that these are used, and else
        made anew.

        Raises:
            ChildNotDeployed: The deployment does not exist.
            ChildError: The server refused the run.
        """
        earlier = (await self._read_earlier()).get(key)
        if earlier is None:
            return self._announce(call, await self._create(call, f"{key}:1"), "is created")
        if earlier.state_type == StateType.COMPLETED:
            self._used_again.add(earlier.id)
            how = "has completed before, and is used again"
            return self._announce(call, earlier, how, "used again")
        if earlier.state_type in ALIVE or await self._server.ask(
            lambda client: will_restart(client, earlier)
        ):
            self._used_again.add(earlier.id)
            return self._announce(call, earlier, "is attached again", "attached again")
        return await self._run_again(call, earlier)

    async def replace(self, call: Call, run: FlowRun, error: ChildError) -> FlowRun | None:
        """Return another run of a call, if the one without a result is of an earlier attempt.

        One that crashed now was lost together with its parent. It is the same run, where it has
        children.
        """
        if run.id not in self._used_again:
            return None
        self._used_again.discard(run.id)
        self._logger.warning("%s: it runs again", error)
        if isinstance(error, ChildCrashed):
            return await self._run_again(call, run)
        return await self._create_next(call, run)

    async def _run_again(self, call: Call, earlier: FlowRun) -> FlowRun:
        self._refuse_if_closed()
        if retried := await self._canceller.start(self._retry(call, earlier)):
            how = "is retried, for it has children of its own"
            return self._announce(call, retried, how, "retried")
        return await self._create_next(call, earlier)

    def _announce(self, call: Call, run: FlowRun, how: str, used_again: str = "") -> FlowRun:
        self._publish(run, used_again)
        info = RunInfo.of(run, call.deployment)
        self._logger.info("Child %s %s: %s", info, how, info.url)
        return run

    async def _read_earlier(self) -> dict[str, FlowRun]:
        """Return the latest run of each call of earlier attempts; they are read once."""
        async with self._reading:
            if self._earlier is None:
                children = _children_of(self._parent_id)
                runs = await self._server.ask(lambda client: read_all(client, children))
                # Others were made by other means, such as a plain subflow.
                ours = f"{self._parent_id}:"
                runs = [run for run in runs if (run.idempotency_key or "").startswith(ours)]
                runs.sort(key=lambda run: split_key(run)[1])
                self._earlier = {split_key(run)[0]: run for run in runs}
        return self._earlier

    async def _retry(self, call: Call, run: FlowRun) -> FlowRun | None:
        """Retry a run that has children of its own, as *Retry* in the UI does."""
        variables = run.job_variables or {}
        pinned = variables | await self._creator.pin(call)
        state: State[Any] = AwaitingRetry(
            scheduled_time=call.scheduled_time, message="Its parent was retried"
        )
        later: State[Any] = AwaitingRetry(scheduled_time=datetime.now(UTC) + UNTIL_IMAGE)

        async def retry_once(client: PrefectClient) -> FlowRun | None:
            if not await client.read_flow_runs(flow_run_filter=_children_of(run.id), limit=1):
                return None
            retried = await client.read_flow_run(run.id)
            if retried.state is not None and retried.state.is_final():  # else it came through
                await client.set_flow_run_state(run.id, state if pinned == variables else later)
                retried = await client.read_flow_run(run.id)
            return retried

        retried = await self._server.ask(retry_once)
        # Its parent has another image by now. The server takes it while no worker has the run.
        if retried and retried.state_type == StateType.SCHEDULED and pinned != variables:
            await self._server.ask(
                lambda client: client.update_flow_run(run.id, job_variables=pinned)
            )
            await self._server.ask(lambda client: client.set_flow_run_state(run.id, state))
        return retried

    async def _create_next(self, call: Call, earlier: FlowRun) -> FlowRun:
        key, number = split_key(earlier)
        run = await self._create(call, f"{key}:{number + 1}")
        return self._announce(call, run, "runs again")

    async def _create(self, call: Call, key: str) -> FlowRun:
        # In the caller's context: what fails fails there, and its flow run knows the results.
        request = await Request.of(call, key)
        self._refuse_if_closed()
        self._waiting.append(request)
        try:
            return await self._canceller.start(self._send(request))
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
                request.created.cancel()
            raise

    def _refuse_if_closed(self) -> None:
        if self._closed:  # a sibling failed, and the parent with it
            raise asyncio.CancelledError("the parent has ended")

    async def _send(self, request: Request) -> FlowRun:
        """Create the run of a request, together with those that wait for the same deployment."""
        async with self._creating:
            if request in self._waiting:
                name = request.call.deployment
                same = [other for other in self._waiting if other.call.deployment == name]
                batch = same[:BATCH]
                self._waiting = [other for other in self._waiting if other not in batch]
                # No pauses of Prefect's client, of 2, 4, 8 s: `PatientClient` makes shorter ones.
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                    try:
                        await self._creator.create(name, self._unless_closed(batch))
                    except Exception as error:  # noqa: BLE001 - it is the callers' to handle
                        for unanswered in batch:
                            if not unanswered.created.done():
                                unanswered.created.set_exception(error)
        return await request.created

    def _unless_closed(self, batch: list[Request]) -> Iterator[Request]:
        for request in batch:
            if self._closed:
                request.created.cancel()
            else:
                yield request


def _children_of(run_id: UUID) -> FlowRunFilter:
    return FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run_id]}})
