"""Requests that outlast a server that restarts, or is too busy to answer for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger

from deployments._errors import ChildError

T = TypeVar("T")

PAUSE_SECONDS = 2.0

logger = get_logger("deployments")


def is_passing(error: Exception) -> bool:
    """Tell whether a request that failed so may well succeed later."""
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx.TransportError)


async def persist(request: Callable[[], Awaitable[T]], give_up_after: float) -> T:
    """Repeat a request that may be sent twice until the server answers it.

    Prefect's client gives up after PREFECT_CLIENT_MAX_RETRIES; this goes on after that.

    Args:
        request: Makes the request.
        give_up_after: Seconds without an answer after which it fails.

    Raises:
        ChildError: The server did not answer in that time.
    """
    started = time.monotonic()
    while True:
        try:
            return await request()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            if not is_passing(error):
                raise
            silence = time.monotonic() - started
            if silence > give_up_after:
                raise ChildError(unreachable(silence, error)) from error
            logger.warning("The Prefect server has not answered for %.0f s: %r", silence, error)
            await asyncio.sleep(PAUSE_SECONDS)


def unreachable(silence: float, error: Exception) -> str:
    """Say that the server is given up."""
    return (
        f"gave up after {silence:.0f} s without an answer of the Prefect server ({error!r}): "
        "the limit is `give_up_after` of @parent_flow"
    )
