"""Requests that outlast a server that restarts, or is too busy to answer for a while."""

import asyncio
import functools
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterState
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import get_logger
from prefect.utilities.collections import batched_iterable

T = TypeVar("T")

# From the first pause, doubled each time, to the longest one.
PAUSE_SECONDS = 0.05
PAUSE_MAX_SECONDS = 2.0
# So many ids one request asks about: SQLite and Postgres take some 32,000 parameters. And so many
# where it returns all of them: by default the server returns no more (PREFECT_API_DEFAULT_LIMIT).
MANY = 5_000
PAGE = 200

logger = get_logger("deployments")


async def read_everything(read: Callable[..., Awaitable[list[T]]]) -> list[T]:
    """Return all that a request lists, however few the server returns at once.

    No `limit`: the server refuses one above its own (PREFECT_API_DEFAULT_LIMIT).

    Args:
        read: The request, which takes an `offset`: such as `client.read_deployments`.
    """
    found: list[T] = []
    while some := await read(offset=len(found)):
        found += some
    return found


async def read_all(client: PrefectClient, flow_run_filter: FlowRunFilter) -> list[FlowRun]:
    """Return all runs that a filter finds."""
    read = functools.partial(
        client.read_flow_runs, flow_run_filter=flow_run_filter, sort=FlowRunSort.ID_DESC
    )
    # One that is created meanwhile moves the others on, so that some are read twice.
    return list({run.id: run for run in await read_everything(read)}.values())


async def read_pages(
    client: PrefectClient, run_ids: Iterable[UUID], state: FlowRunFilterState | None = None
) -> AsyncIterator[list[FlowRun]]:
    """Yield runs by their ids, of each request as many as the server returns at once."""
    left = set(run_ids)
    while left:
        some = list(itertools.islice(left, MANY if state else PAGE))
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=some), state=state)
        )
        left -= {run.id for run in runs} or set(some)  # a page may not hold all of them
        yield runs


async def count_existing(client: PrefectClient, run_ids: Iterable[UUID]) -> int:
    """Return how many runs still are on the server."""
    count = 0
    for some in batched_iterable(run_ids, MANY):
        which = FlowRunFilter(id=FlowRunFilterId(any_=[*some]))
        count += await client.count_flow_runs(flow_run_filter=which)
    return count


def get_eager_client() -> PrefectClient:
    """Return a client for `PatientClient`: what may pass is raised at once.

    Prefect's own sleeps 2 s or more after each 503, which a server on SQLite may answer when
    another request just wrote: also after the last, with PREFECT_CLIENT_MAX_RETRIES at 0
    (PrefectHttpxAsyncClient._send_with_retry). It does wait for what a server asks to wait for.
    """
    return get_client(httpx_settings={"event_hooks": {"response": [_raise_at_once]}})


async def _raise_at_once(response: httpx.Response) -> None:
    if _says_later(response) and "Retry-After" not in response.headers:
        response.raise_for_status()


def _says_later(response: httpx.Response) -> bool:
    return response.status_code >= 500 or response.status_code in (408, 429)


def _is_passing(error: Exception) -> bool:
    """Tell whether a request that failed so may well succeed later."""
    if isinstance(error, httpx.HTTPStatusError):
        return _says_later(error.response)
    return isinstance(error, httpx.TransportError | TimeoutError)


@dataclass(frozen=True)
class PatientClient:
    """The Prefect server, asked until it answers.

    Attributes:
        client: Made by `get_eager_client`.
        give_up_after: Seconds without an answer after which a request fails.
        give_up: Makes the exception of it, of a message.
        warn: Is told when the server is silent for long.
        answer_within: Seconds after which a request that got no answer is sent again.
    """

    client: PrefectClient
    give_up_after: float
    give_up: Callable[[str], Exception]
    warn: Callable[[str], object] = logger.warning
    answer_within: float | None = None

    async def ask(self, request: Callable[[PrefectClient], Awaitable[T]]) -> T:
        """Repeat a request, which may be sent twice, until the server answers it.

        Prefect's client gives up after PREFECT_CLIENT_MAX_RETRIES, about a minute; this goes on.

        Raises:
            Exception: The server did not answer in time: that of `give_up`.
        """
        last: Exception | None = None
        pause, warn_after = PAUSE_SECONDS, PAUSE_MAX_SECONDS
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.give_up_after):
                while True:
                    try:
                        async with asyncio.timeout(self.answer_within):
                            return await request(self.client)
                    except Exception as error:
                        if not _is_passing(error):
                            raise
                        last = error
                    silence = time.monotonic() - started
                    if silence >= warn_after:
                        self.warn(
                            f"The Prefect server has not answered for {silence:.0f} s: {last!r}"
                        )
                        warn_after *= 2
                    jitter = random.uniform(0.5, 1)  # noqa: S311
                    await asyncio.sleep(pause * jitter)
                    pause = min(2 * pause, PAUSE_MAX_SECONDS)
        except TimeoutError:
            raise self.give_up(unreachable(self.give_up_after, last)) from last


def unreachable(silence: float, error: Exception | None) -> str:
    """Say that the server is given up."""
    reason = f" ({error!r})" if error else ""
    return f"gave up after {silence:.0f} s without an answer of the Prefect server{reason}"
