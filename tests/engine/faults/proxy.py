"""A proxy before a Prefect server that injects faults."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn
import websockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.servers._processes import free_port

NOT_FORWARDED = {"host", "content-length", "transfer-encoding", "content-encoding", "connection"}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class FaultyProxy:
    """Forwards everything, but for the faults that are set.

    Attributes:
        requests: Method and path of each request that arrived.
        unavailable_until: Until this time (`time.monotonic()`) requests are answered with 503.
        delay: Seconds before each answer.
        hangs: Whether requests wait, as at a server that stands still.
        twice: Requests whose path ends so are sent on twice.
        unknown: Requests whose path ends so are answered with 404.
        sockets: How many websockets were opened.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.removesuffix("/api")
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/api"
        self.requests: list[tuple[str, str]] = []
        self.unavailable_until = 0.0
        self.delay = 0.0
        self.hangs = False
        self.twice: tuple[str, ...] = ()
        self.unknown: tuple[str, ...] = ()
        self.sockets = 0
        self._open: set[WebSocket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        routes = [
            Route("/{path:path}", self._forward, methods=METHODS),
            WebSocketRoute("/{path:path}", self._forward_socket),
        ]
        server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=routes),
                port=self._port,
                log_level="error",
                timeout_graceful_shutdown=1,
            )
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the proxy does not start"
            time.sleep(0.05)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()

    def drop_sockets(self, code: int) -> int:
        """Close all websockets, and return how many there were."""
        sockets = list(self._open)
        assert self._loop is not None
        for socket in sockets:
            asyncio.run_coroutine_threadsafe(socket.close(code), self._loop).result(10)
        return len(sockets)

    async def _forward(self, request: Request) -> Response:
        path = request.url.path
        self.requests.append((request.method, path))
        if time.monotonic() < self.unavailable_until:
            return Response(status_code=503)
        if path.endswith(self.unknown):
            return Response(status_code=404)
        await asyncio.sleep(self.delay)
        while self.hangs:  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.05)
        body = await request.body()
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in NOT_FORWARDED]
        async with httpx.AsyncClient(base_url=self._upstream, timeout=60) as client:
            for _ in range(2 if path.endswith(self.twice) else 1):
                answer = await client.request(
                    request.method,
                    path,
                    params=str(request.query_params),
                    content=body,
                    headers=headers,
                )
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in NOT_FORWARDED}
        return Response(answer.content, answer.status_code, kept)

    async def _forward_socket(self, socket: WebSocket) -> None:
        self._loop = asyncio.get_running_loop()
        upstream = self._upstream.replace("http", "ws") + socket.url.path
        async with websockets.connect(
            upstream, subprotocols=[websockets.Subprotocol("prefect")]
        ) as server:
            await socket.accept(subprotocol="prefect")
            self.sockets += 1
            self._open.add(socket)

            async def down() -> None:
                async for message in server:
                    await socket.send_text(message if isinstance(message, str) else "")

            pump = asyncio.create_task(down())
            try:
                while True:
                    await server.send(await socket.receive_text())
            except (WebSocketDisconnect, RuntimeError):
                pass
            finally:
                self._open.discard(socket)
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
