"""Pytest fixtures to test parents with: a real server and worker, or stubs for the children.

`pyproject.toml` loads them for every test here (`-p deployments.testing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.flows import Flow
from prefect.logging.handlers import APILogWorker

from deployments.deploy import deploy_manifest
from deployments.parent import Call, Child, ParentRun
from deployments.project import ROOT, Manifest
from deployments.servers import TemporaryServer, temporary_server, temporary_worker
from deployments.values import validate

__all__ = ["ROOT", "Stubs", "deployed", "prefect_server", "stubs", "worker"]


def pytest_configure() -> None:
    """Let SIGTERM end the tests as Ctrl-C does: servers and workers are stopped first."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A job in the background inherits that SIGINT is ignored, and so would its workers, which
    # SIGTERM could then not end: they make SIGINT of it (setup_signal_handlers_worker).
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # another one does not keep the rest from stopping
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporaryServer]:
    """Run a Prefect server for the session, and make it the one that flows and clients use.

    In the end the session fails if the server has logged an error.
    """
    with (
        temporary_server(tmp_path_factory.mktemp("prefect")) as server,
        server.used(),
    ):
        yield server
        # Or they try to reach a server that is gone: logs and events of runs in this process.
        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


@pytest.fixture(scope="session")
def deployed(prefect_server: TemporaryServer) -> Manifest:
    """Deploy what prefect.yaml has in work pools of type process to the session's server."""
    manifest = Manifest.load().of_type("process")
    asyncio.run(deploy_manifest(manifest, prefect_server.env))
    return manifest


@pytest.fixture(scope="session")
def worker(prefect_server: TemporaryServer, deployed: Manifest) -> Iterator[None]:
    """Run a worker for each work pool of what is deployed."""
    with contextlib.ExitStack() as stack:
        for pool in deployed.definitions.work_pools:
            stack.enter_context(temporary_worker(prefect_server, pool))
        yield


@dataclass
class Stubs:
    """Stand-ins for children: a parent that runs in-process calls them, without any worker.

    Each call is a real flow run under the parent, of the child's flow.

    Attributes:
        calls: The flow's name and the parameters of each call, in order.
    """

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _flows: dict[str, Flow[..., Coroutine[Any, Any, Any]]] = field(default_factory=dict)

    def returns(self, child: Flow[..., Any] | str, value: Any) -> None:
        """Let a child, given as its flow or the flow's name, return a value."""
        self.runs(child, lambda **_: value)

    def raises(self, child: Flow[..., Any] | str, error: Exception) -> None:
        """Let a child fail with an exception."""

        def fail(**_: Any) -> None:
            raise error

        self.runs(child, fail)

    def runs(self, child: Flow[..., Any] | str, function: Callable[..., Any]) -> None:
        """Let a child run a function, async or not, which gets its parameters by name."""
        name = child if isinstance(child, str) else child.name

        async def stand_in(**parameters: Any) -> Any:
            self.calls.append((name, parameters))
            value = function(**parameters)
            return await value if inspect.isawaitable(value) else value

        serializer = "json" if isinstance(child, str) else child.result_serializer
        options: Any = {"name": name, "persist_result": True, "result_serializer": serializer}
        self._flows[name] = flow(**options)(stand_in)

    async def _run(self, child: Child[..., Any], call: Call) -> FlowRun:
        stand_in, parameters = self._flows[call.flow_name], call.parameters
        if child.flow is not None:  # as the child would get them
            parameters = validate(child.flow, parameters)
        if (name := call.name) is not None:
            stand_in = stand_in.with_options(flow_run_name=lambda: name)
        state = await stand_in(**parameters, return_state=True)
        async with get_client() as client:
            return await client.read_flow_run(state.state_details.flow_run_id)


@pytest.fixture
def stubs(prefect_server: TemporaryServer, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    """Give children stand-ins for one test."""
    stubs = Stubs()
    # A stand-in runs on the loop that the child is called on, where the test may wait for it.
    caller: ContextVar[tuple[asyncio.AbstractEventLoop, Child[..., Any]]] = ContextVar("caller")
    call_child, start_run = Child.submit, ParentRun.submit

    async def call_from_here(child: Child[..., Any], *args: Any, **kwargs: Any) -> Any:
        caller.set((asyncio.get_running_loop(), child))
        return await call_child(child, *args, **kwargs)

    async def start_stand_in(parent: ParentRun, call: Call, key: str) -> FlowRun:
        if call.flow_name not in stubs._flows:
            return await start_run(parent, call, key)
        loop, child = caller.get()
        run = asyncio.run_coroutine_threadsafe(stubs._run(child, call), loop)
        return await asyncio.wrap_future(run)

    monkeypatch.setattr(Child, "submit", call_from_here)
    monkeypatch.setattr(ParentRun, "submit", start_stand_in)
    return stubs
