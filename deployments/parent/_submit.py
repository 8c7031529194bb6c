"""Submitting the calls of one parent: each has exactly one run that counts."""

import asyncio
from collections.abc import Callable, Iterator
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import LoggingAdapter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from deployments.parent._call import Call, next_key
from deployments.parent._create import Creator, Request
from deployments.parent._earlier import EarlierRuns, counts
from deployments.parent._errors import ChildResultUnavailable, RunInfo
from deployments.parent._undo import Canceller
from deployments.runs import PatientClient

# So many runs are created together at most: the first should not wait long for the last.
BATCH = 20


class Submitter:
    """Create the child runs of one attempt of a parent run, each exactly once.

    The key of a call and the number of its run are sent as the idempotency key, so that a request
    that is sent twice creates one run; and a retried parent finds its earlier children by it.

    One request is under way at a time, and the calls that come meanwhile share the next one:
    so it goes as fast as the server answers. More at once is no faster on Postgres, and much
    slower on the embedded SQLite server, which then loses requests to "database is locked".

    What was started for a caller that is cancelled meanwhile is undone by the canceller.

    Args:
        server: The server to ask.
        parent_id: The parent's run.
        logger: That of the parent's run.
        canceller: Undoes what nobody waits for any more.
        tell: Is told of each run, and how it is used again where an earlier attempt made it.
    """

    def __init__(
        self,
        server: PatientClient,
        parent_id: UUID,
        logger: LoggingAdapter,
        canceller: Canceller,
        tell: Callable[[FlowRun, str], None],
    ) -> None:
        self._logger = logger
        self._canceller = canceller
        self._tell = tell
        self._earlier = EarlierRuns(server, parent_id)
        self._creator = Creator(server, parent_id)
        self._waiting: list[Request] = []
        self._more = asyncio.Event()
        self._sender: asyncio.Future[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Let no more runs be created than those that are under way."""
        self._closed = True
        for request in self._waiting:
            request.created.cancel()
        self._waiting.clear()
        self._more.set()

    async def submit(self, call: Call, key: str) -> FlowRun:
        """Create the run of a call; or find that of an earlier attempt which still counts.

        A run that completed or is still alive counts; one that failed, crashed or was cancelled
        does not: it is retried where it has children, so that these count, and else made anew.

        Raises:
            ChildNotDeployed: The deployment does not exist.
            ChildError: The server refused the run.
        """
        earlier = await self._earlier.find(key)
        if earlier is None:
            return self._told("is created", call, await self._create(call, f"{key}:1"))
        if counts(earlier):
            if earlier.state is not None and earlier.state.is_completed():
                how = "has completed before, and is used again"
                return self._told(how, call, earlier, "used again")
            return self._told("is attached again", call, earlier, "attached again")
        if again := await self._retry(earlier):
            return self._told("is retried, for it has children of its own", call, again, "retried")
        return self._told("runs again", call, await self._create(call, next_key(earlier)))

    async def resubmit(
        self, call: Call, earlier: FlowRun, error: ChildResultUnavailable
    ) -> FlowRun:
        """Create another run of a call, in place of an earlier one whose result can't be read."""
        self._logger.warning("%s: it runs again", error)
        return self._told("runs again", call, await self._create(call, next_key(earlier)))

    def _told(self, how: str, call: Call, run: FlowRun, again: str = "") -> FlowRun:
        self._tell(run, again)
        info = RunInfo.of(run, call.deployment)
        self._logger.info("Child %s %s: %s", info, how, info.url)
        return run

    async def _retry(self, earlier: FlowRun) -> FlowRun | None:
        self._refuse_if_closed()
        retried = self._canceller.keep(self._earlier.retry(earlier))
        try:
            return await asyncio.shield(retried)
        except asyncio.CancelledError:
            self._canceller.undo(retried)
            raise

    async def _create(self, call: Call, key: str) -> FlowRun:
        # In the caller's context: what fails fails there, and its flow run knows the results.
        request = await Request.of(call, key)
        self._refuse_if_closed()
        self._waiting.append(request)
        self._more.set()
        if self._sender is None:
            self._sender = self._canceller.keep(self._send())
        try:
            return await asyncio.shield(request.created)
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            else:
                self._canceller.undo(request.created)
            raise

    def _refuse_if_closed(self) -> None:
        if self._closed:  # a sibling failed, and the parent with it
            raise asyncio.CancelledError("the parent has ended")

    async def _send(self) -> None:
        """Create the runs of calls as they come, those of one deployment together."""
        # No retries of Prefect's client, with pauses of 2, 4, 8 s: `PatientClient` makes them.
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
                        await self._creator.create(name, self._unless_closed(batch))
                    except Exception as error:  # noqa: BLE001 - it is the callers' to handle
                        for request in batch:
                            if not request.created.done():
                                request.created.set_exception(error)

    def _unless_closed(self, batch: list[Request]) -> Iterator[Request]:
        for request in batch:
            if self._closed:
                request.created.cancel()
            else:
                yield request
