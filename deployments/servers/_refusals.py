"""Why a server can't be used, in one line: it is away, is another thing, or refuses us."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import prefect
from prefect.client.base import ServerType
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import get_current_settings
from rich.console import Console


async def require_server(client: PrefectClient, console: Console, seconds: float = 0) -> None:
    """Ask a server for something that only a Prefect API has, and only for those it knows.

    One that does not answer may just have been started: it has some seconds for it.

    Raises:
        httpx.HTTPError: It does not answer, or refuses us: for `explain`.
        RuntimeError: It is no Prefect API.
    """
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            await client.read_work_pools(limit=1)
        except (httpx.NetworkError, httpx.TimeoutException):
            if time.monotonic() > deadline:
                raise
        except ValueError as error:
            raise RuntimeError(_no_api(client.api_url.copy_with(userinfo=b""))) from error
        else:
            return
        if not told:
            console.print(f"Waiting {seconds:g} s for {client.api_url.host} ...", soft_wrap=True)
            told = True
        await asyncio.sleep(1)


async def explain(error: Exception) -> str:
    """Say why a request failed, and what to do."""
    cause: Exception = getattr(error, "http_exc", error)  # of Prefect's ObjectNotFound and such
    api_url = get_current_settings().api.url or "none"
    if not isinstance(cause, httpx.HTTPError) or not str(cause.request.url).startswith(api_url):
        return " ".join((str(error) or repr(error)).split())  # also of the demo's own server
    async with get_client() as client:
        url = client.api_url.copy_with(userinfo=b"")  # which may be a password
        if not isinstance(cause, httpx.HTTPStatusError):
            return (
                f"{url} does not answer: {cause!r}. Start it (`prefect server start`), or correct "
                "PREFECT_API_URL in .env"
            )
        status = cause.response.status_code
        if status in (401, 403):
            is_cloud = client.server_type == ServerType.CLOUD
            variable = "PREFECT_API_KEY" if is_cloud else "PREFECT_API_AUTH_STRING"
            return f"{url} refuses us ({status}): set {variable} in .env, or correct it there"
        if status == 429:
            return f"{url} has had too many requests ({status}): try again later"
        if status in (404, 405) and "/api" not in url.path:
            return _no_api(url)
        what = f"{cause.request.method} {cause.request.url.path}"
        text = " ".join(cause.response.text.split())
        return f"{url} answers {status} to {what}: {text}{await tell_versions(client)}"


async def tell_versions(client: PrefectClient) -> str:
    """Return a hint, where the server's Prefect is another than ours."""
    if client.server_type == ServerType.CLOUD:
        return ""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        version = await client.api_version()
        if version != prefect.__version__:
            return (
                f". The server is Prefect {version}, this is {prefect.__version__}: use the same "
                "for both"
            )
    return ""


def _no_api(url: httpx.URL) -> str:
    return f"{url} is no Prefect API: correct PREFECT_API_URL in .env, which ends with /api"
