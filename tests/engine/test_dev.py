"""`dev`: in a project of its own, with real servers and workers."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.dev import _files
from deployments.runs import DURABLE
from deployments.servers._log import check_server_log
from deployments.servers._processes import free_port
from tests.engine.conftest import MANIFEST, USERS, copy_repository, replace, run_command
from tests.engine.waiting import (
    assert_none_went_on,
    children_of,
    ended,
    in_states,
    processes_of,
    wait_until,
)

pytestmark = pytest.mark.anyio

# Longer than any answer takes, and shorter than a server on SQLite stands still (60 s).
ANSWER_SECONDS = 40
UP = "Ctrl-C ends it"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose flows are those of these tests."""
    copy = copy_repository(tmp_path / "my flows", *USERS, "tests")
    shutil.copy(MANIFEST, copy / "prefect.yaml")
    replace(copy / "prefect.yaml", "tests/engine/words.py", "flows/words.py")
    (copy / "flows").mkdir()
    shutil.copy(MANIFEST.with_name("words.py"), copy / "flows")
    return copy


class Dev:
    """The command while it runs.

    Attributes:
        process: Its own.
        log: What it has said.
        home: Where its server has its data.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, home: Path) -> None:
        self.process, self.log, self.home = process, log, home
        self._read = 0

    def says(self, *what: str) -> str:
        """Wait until it says something new, each after the other, and return it all."""
        for pattern in what:
            self._wait_for(pattern)
            found = self._find(pattern)
            assert found, self.log.read_text()
            self._read += found.end()
        return self.log.read_text()

    def _wait_for(self, pattern: str) -> None:
        wait_until(
            lambda: bool(self._find(pattern)) or self.process.poll() is not None,
            f"it says {pattern!r}",
            instead=lambda: self.log.read_text()[self._read :],
        )

    def _find(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.log.read_text()[self._read :])

    @property
    def url(self) -> str:
        (url,) = re.findall(r"The Prefect UI is at (\S+)\.", self.log.read_text())
        return str(url)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[PrefectClient]:
        with temporary_settings({PREFECT_API_URL: f"{self.url}/api"}):
            async with get_client() as client:
                yield client

    def ends(self, status: int = 0) -> str:
        """Wait until it has ended, and nothing of it is left, and return what it has said."""
        assert self.process.wait(120) == status, self.log.read_text()
        assert processes_of(str(self.home)) == []
        assert status or "Traceback" not in self.log.read_text(), self.log.read_text()
        return self.log.read_text()


@contextlib.contextmanager
def running_dev(project: Path, env: dict[str, str], port: int | None = None) -> Iterator[Dev]:
    log = project.parent / f"log-{len(list(project.parent.glob('log-*')))}"
    options = ["--port", str(port)] if port else []
    with log.open("wb") as output:
        process = subprocess.Popen(
            [".venv/bin/python", "-m", "deployments", "dev", *options],
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Dev(process, log, project / ".dev")
    finally:
        process.terminate()
        process.wait(120)
        for left in processes_of(str(project / ".dev")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(left), signal.SIGKILL)


@contextlib.contextmanager
def always_answering(url: str) -> Iterator[None]:
    """Ask a server all the while, which must answer each time."""
    failures: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.5):
            try:
                httpx.get(f"{url}/api/health", timeout=ANSWER_SECONDS).raise_for_status()
            except httpx.HTTPError as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
    assert failures == []


async def start(client: PrefectClient, words: list[str], *tags: str, **more: Any) -> FlowRun:
    parameters = {"words": words} | more
    return await arun_deployment(
        "measure-all/local", client=client, parameters=parameters, tags=tags, timeout=0
    )


def test_one_terminal_and_a_second_one_that_finds_it(
    project: Path, clean_env: dict[str, str]
) -> None:
    # The profile of another server, as `prefect cloud login` makes it, does not count.
    profiles = Path(clean_env["HOME"]) / ".prefect" / "profiles.toml"
    profiles.parent.mkdir()
    other = 'active = "other"\n[profiles.other]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    profiles.write_text(other)
    stack = contextlib.ExitStack()
    with contextlib.suppress(OSError):  # taken by somebody else
        stack.enter_context(socket.create_server(("127.0.0.1", 4200)))
    with stack, running_dev(project, clean_env) as dev:
        dev.says(
            r"a Prefect server at \d+, since 4200 is taken",
            "created: deployment measure-all/local\n",
            UP,
        )
        done = run_command(["run", "measure-all", "--json"], project, clean_env)
        assert done.returncode == 0, done.stderr
        assert '"total": 6' in done.stdout
        assert done.stderr.startswith(f"On the server of `make dev`, {dev.url}\n")
        link = rf"  {dev.url}/runs/flow-run/\S{{36}}\n"
        dev.says(f"  words x1 started{link}", rf"  words x1 Completed after \d+\.\d s{link}")
        again = run_command(["dev"], project, clean_env)
        assert again.stderr == (
            f"error: `make dev` is up already, at {dev.url}: Ctrl-C in its terminal ends it\n"
        )
        dev.process.send_signal(signal.SIGINT)
        said = dev.ends()
    # Each parent, and nobody else.
    assert said.count(" started ") == 1
    check_server_log(dev.home / "server.log")
    done = run_command(["run", "measure-all"], project, clean_env)
    assert "On the server" not in done.stderr
    assert done.returncode == 1


@pytest.mark.slow
async def test_it_follows_changes(project: Path, clean_env: dict[str, str]) -> None:
    flows, manifest = project / "flows" / "words.py", project / "prefect.yaml"
    (project / "flows" / "helper.py").write_text("def help() -> int:\n    return 1\n")
    port = free_port()
    with running_dev(project, clean_env, port) as dev:
        dev.says(f"The Prefect UI is at http://127.0.0.1:{port}. .*{UP}")
        async with dev.client() as client:
            with always_answering(dev.url):
                await start(client, [*"abcdefghijklmnopqrst"])
                dev.says("words x1 Completed after")
        # The body of a function, and the signature of another one.
        replace(project / "flows" / "helper.py", "return 1", "return 2")
        replace(flows, "times: Times = 1", "times: Times = 2")
        dev.says("flows/words.py changed\n", "measure-all/local: .*parameter schema")
        replace(flows, "async def measure_all", "asynk def measure_all")
        dev.says("flows/words.py changed\n", "words.py:53: SyntaxError.*\n", "Not deployed")
        replace(flows, "asynk def measure_all", "async def measure_all")
        dev.says("flows/words.py changed\n", "Deployed")
        replace(manifest, "concurrency_limit: 8", "concurrency_limit: 8a")
        dev.says("prefect.yaml changed\n", "error: .*prefect.yaml: .*concurrency_limit", "Not dep")
        replace(manifest, "concurrency_limit: 8a", "concurrency_limit: 2")
        dev.says("prefect.yaml changed\n", "changed: work queue .*children: concurrency")
        async with dev.client() as client:
            await start(client, ["bad"])
            dev.says("words x2 started", "words x2 Failed after .*ChildFailed.*'bad x2' failed")
            kill_worker(dev)
            dev.says("The worker of .* ended by itself. Its log ends with:\n", "The next deploy")
            manifest.touch()
            dev.says("prefect.yaml changed\n", "Deployed")
            await start(client, ["a"])
            dev.says("words x2 started", "words x2 Completed")
        server = int((dev.home / "processes.lock").read_text().splitlines()[1])
        os.kill(server, signal.SIGKILL)
        dev.says(r"error: the server ended by itself \(-9\); its log ends with:\n")
        said = dev.ends(1)
    assert "helper.py" not in said
    check_server_log(dev.home / "server.log")


def kill_worker(dev: Dev) -> None:
    for line in (dev.home / "processes.lock").read_text().splitlines()[1:]:
        command = Path(f"/proc/{line}/cmdline")
        if command.exists() and b"worker" in command.read_bytes():
            os.kill(int(line), signal.SIGKILL)


@pytest.mark.slow
async def test_runs_that_were_under_way_are_told_at_the_next_start(
    project: Path, clean_env: dict[str, str]
) -> None:
    replace(project / "prefect.yaml", "concurrency_limit: 8", "concurrency_limit: 2")
    hold = project / "hold"
    with running_dev(project, clean_env, free_port()) as dev:
        dev.says(UP)
        async with dev.client() as client:
            first = await start(client, ["a", "bb", "ccc"], hold=str(hold))
            await in_states(client, first, "Running", "Running", "Scheduled")
            in_an_hour = datetime.now(UTC) + timedelta(hours=1)
            later = await arun_deployment(
                "measure/local",
                client=client,
                parameters={"word": "a", "times": 1},
                scheduled_time=in_an_hour,
                timeout=0,
            )
        dev.process.kill()
        dev.process.wait()
        again = run_command(["dev"], project, clean_env)
        assert again.returncode == 1
        assert f"was killed, and what it started is up still, at {dev.url}: end" in again.stderr
        (ids,) = re.findall(r"end it by `kill ([\d ]+)`\n", again.stderr)
        for process_id in ids.split():
            os.kill(int(process_id), signal.SIGTERM)
        wait_until(lambda: processes_of(str(dev.home)) == [], "all has ended")
    with running_dev(project, clean_env, free_port()) as dev:
        dev.says("^Starting a Prefect server ...\n", UP)
        async with dev.client() as client:
            # Some may have had the time to say so, while their server was ending, too.
            assert set(await states(client, first)) <= {"Cancelled", "Crashed"}
            assert (await client.read_flow_run(later.id)).state_name == "Scheduled"
            second = await start(client, ["a", "bb", "ccc"], DURABLE, hold=str(hold))
            await in_states(client, second, "Running", "Running", "Scheduled")
        for ending in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            dev.process.send_signal(ending)
        dev.ends()
        assert "Stopping ..." in dev.log.read_text()
    with running_dev(project, clean_env, free_port()) as dev:
        dev.says(UP)
        async with dev.client() as client:
            hold.touch()
            dev.says("words x1 Completed")
            final = await ended(client, second)
            assert (final.state_name, final.run_count) == ("Completed", 2)
            await assert_none_went_on(client, first)
        dev.process.send_signal(signal.SIGTERM)
        assert " started " in dev.ends()
    check_server_log(dev.home / "server.log")


async def states(client: PrefectClient, parent: FlowRun) -> list[str]:
    runs = [await client.read_flow_run(parent.id), *await children_of(client, parent)]
    return sorted(run.state_name or "" for run in runs)


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_server_that_is_named_is_not_hidden_by_another(
    project: Path, clean_env: dict[str, str], where: str
) -> None:
    url = "http://me:secret@127.0.0.1:9/api"
    if where == ".env":
        (project / ".env").write_text(f"PREFECT_API_URL={url}\n")
    else:
        clean_env["PREFECT_API_URL"] = url
    done = run_command(["dev"], project, clean_env)
    assert done.returncode == 1
    assert done.stderr.startswith("error: PREFECT_API_URL names http://127.0.0.1:9/api: go on ")
    assert done.stderr.count("\n") == 1
    assert not (project / ".dev").exists()


def test_a_port_that_was_asked_for_is_needed(project: Path, clean_env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command(["dev", "--port", str(port)], project, clean_env)
    assert done.returncode == 1
    assert done.stderr == (f"error: port {port} can't be used: choose another, or leave PORT out\n")


BEFORE = '''
@flow(name="a")
def a(x: int = 1) -> int:
    """What it is."""
    return x

class B:
    y: int = 1
    async def c(self) -> int:
        return self.y
'''


@pytest.mark.parametrize(
    ("old", "new", "deploys"),
    [
        ("return x", "y = x\n    return y", False),
        ("return self.y", "return 2", False),
        ("\nclass", "# a comment\n\nclass", False),
        ("x: int = 1", "x: int = 2", True),
        ("-> int", "-> float", True),
        ("What it is", "What it was", True),
        ('name="a"', 'name="b"', True),
        ("y: int = 1", "y: int = 2", True),
        ("def a", "deff a", True),
    ],
)
def test_a_deploy_depends_on_all_but_the_bodies_of_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, deploys: bool
) -> None:
    monkeypatch.setattr(_files, "ROOT", tmp_path)
    for folder in ("flows/deep", "tests", "deployments", ".hidden", "env"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text(BEFORE)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    before = _files.look({})
    assert before.keys() == {"flows/deep/a.py"}
    write(tmp_path / "flows/deep/a.py", lambda text: text.replace(old, new, 1))
    after = _files.look(before)
    assert _files.compare(before, after) == (["flows/deep/a.py"] if deploys else [])
    assert before != after


def write(file: Path, change: Callable[[str], str]) -> None:
    """Change a file, and its time of modification, of which there are some thousands a second."""
    modified = file.stat().st_mtime_ns
    file.write_text(change(file.read_text()))
    os.utime(file, ns=(modified + 10**9, modified + 10**9))
