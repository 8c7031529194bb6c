"""`run`, on a server and a worker, in a copy of the repository."""

import asyncio
import contextlib
import fcntl
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed, Pending, Running
from prefect.tasks import Task

from deployments._console import PlainConsole
from deployments.project import Manifest
from deployments.run import _run
from deployments.run._tree import Tree
from deployments.servers import TemporaryServer, temporary_server
from deployments.servers._processes import free_port
from tests.engine.conftest import copy_repository, run_command
from tests.engine.faults.conftest import FAULTS, deploy_faults
from tests.engine.waiting import ended, wait_until

pytestmark = pytest.mark.anyio

NOTHING = Task(fn=lambda: None, name="child")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository in which the flows that go wrong are the user's."""
    copy = copy_repository(tmp_path_factory.mktemp("faulty") / "flows", "tests/template")
    shutil.copy(FAULTS, copy / "prefect.yaml")
    return copy


@pytest.fixture
def env(prefect_server: TemporaryServer) -> dict[str, str]:
    return dict(prefect_server.env)


@pytest.fixture
async def client(prefect_server: TemporaryServer) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


@pytest.fixture(scope="module")
async def nobody(prefect_server: TemporaryServer, deployed: Manifest) -> None:
    """Deploy `step/nobody`, whose runs no worker starts: a test moves them on."""
    await deploy_faults(prefect_server)


def words(given: str, *more: str) -> list[str]:
    return ["run", "measure-all/local", "-p", f"words={given}", *more]


class Command:
    """The command while it runs, on a terminal of its own or on none.

    Attributes:
        raw: What it has said on standard error so far.
        text: The same, without what moves a terminal's cursor.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", output: int) -> None:
        self.process = process
        self._output = output
        self.raw = b""

    @property
    def text(self) -> str:
        while select.select([self._output], [], [], 0)[0]:
            try:
                some = os.read(self._output, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not some:
                break
            self.raw += some
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode())

    def says(self, what: str) -> str:
        wait_until(lambda: what in self.text or self.process.poll() is not None, f"says {what!r}")
        assert what in self.text, self.text
        return self.text

    def type(self, keys: str) -> None:
        os.write(self._output, keys.encode())

    def ends(self) -> int:
        """Return the exit status. What is said is read meanwhile: a full terminal holds it up."""
        wait_until(lambda: bool(self.text) and self.process.poll() is not None, "it ends")
        return self.process.wait()

    def run_id(self) -> UUID:
        self.says("/runs/flow-run/")
        wait_until(lambda: re.search(r"flow-run/\S{36}\s", self.text) is not None, "the link")
        found = re.search(r"flow-run/(\S{36})", self.text)
        assert found
        return UUID(found[1])


@contextlib.contextmanager
def running(
    arguments: list[str], cwd: Path, env: dict[str, str], *, terminal: bool = False
) -> Iterator[Command]:
    output, other = os.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments", *arguments],
        cwd=cwd,
        env=env | {"COLUMNS": "120", "LINES": "50", "TERM": "xterm"},
        stdin=other if terminal else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=other,
        start_new_session=True,
        # Its controlling terminal: there Ctrl-C becomes SIGINT.
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if terminal else None,
    )
    os.close(other)
    try:
        yield Command(process, output)
    finally:
        process.kill()
        process.wait()
        os.close(output)


def test_it_completes(checkout: Path, env: dict[str, str], worker: None) -> None:
    done = run_command(words('["a", "bb"]'), checkout, env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"total\W+3\b", done.stdout), done.stdout
    assert re.search("^words x1 +Completed", done.stderr, re.MULTILINE), done.stderr
    assert re.search("^  └ bb x1 +Completed", done.stderr, re.MULTILINE), done.stderr
    (url,) = re.findall("measure-all/local runs: (.*)", done.stderr)
    assert url.startswith(env["PREFECT_API_URL"].removesuffix("/api"))
    assert httpx.get(url, headers={"Accept": "text/html"}).status_code == 200


@pytest.mark.slow
def test_json_alone(checkout: Path, env: dict[str, str], worker: None) -> None:
    done = run_command(
        ["run", "measure", "-p", "word=abc", "-p", "times=2", "--json"], checkout, env
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"word": "abc", "length": 6, "initial": "a"}


@pytest.mark.slow
def test_it_fails(checkout: Path, env: dict[str, str], worker: None) -> None:
    done = run_command(words('["a", "bad"]'), checkout, env)
    assert done.returncode == 1
    told = " ".join(done.stderr.split())  # a terminal's width breaks lines
    assert re.search("bad x1 Failed: .* bad can't be measured", told), done.stderr
    assert re.search(
        "^error: measure-all/local ended as Failed: .*bad x1", done.stderr, re.MULTILINE
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["moon"],
            "prefect.yaml has no deployment moon, only measure-all/local, measure-all/docker",
        ),
        (["measure-all", "-p", "tines=1"], "measure-all has no parameter tines, only words, times"),
        (["measure-all/docker"], "measure-all/docker is not deployed on http"),
    ],
)
def test_it_is_refused(
    checkout: Path, env: dict[str, str], deployed: Manifest, arguments: list[str], expected: str
) -> None:
    done = run_command(["run", *arguments], checkout, env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {expected}")
    assert "docker" not in arguments[0] or line.endswith(": `make deploy ARGS=docker`")


def test_it_needs_a_server(checkout: Path, clean_env: dict[str, str]) -> None:
    done = run_command(words("[]"), checkout, clean_env)
    assert done.returncode == 1
    assert done.stderr.startswith("error: PREFECT_API_URL is not set")
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = run_command(words('["a"]'), checkout, clean_env | nowhere)
    assert done.returncode == 1
    assert done.stderr.startswith("error: http://127.0.0.1:1/api/ does not answer: ConnectError")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "status", "state"), [("c\n", 1, "Cancelled"), ("l\n", 130, "Completed")]
)
async def test_ctrl_c_asks(
    checkout: Path,
    env: dict[str, str],
    worker: None,
    client: PrefectClient,
    tmp_path: Path,
    answer: str,
    status: int,
    state: str,
) -> None:
    held = ["-p", f"hold={tmp_path / 'go'}"]
    with running(words('["a"]', *held), checkout, env, terminal=True) as command:
        run_id = command.run_id()
        command.says("└ a x1")
        command.type("\x03")
        command.says("go on [w]atching? ")
        command.type("w\n")
        run = await client.read_flow_run(run_id)
        assert run.state is not None
        assert not run.state.is_final()
        wait_until(lambda: len(command.text.split("atching? ")[-1]) > 80, "it goes on")
        command.type("\x03")
        wait_until(lambda: command.text.count("atching?") == 2, "it asks again")
        command.type(answer)
        if status == 130:
            assert command.ends() == 130
            assert "is left running: http" in command.text
            (tmp_path / "go").touch()
        run = await ended(client, run)
        assert run.state_name == state
        assert command.ends() == status, command.text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["twice", "SIGTERM", "no terminal"])
async def test_it_is_left_running(
    faulty: Path, env: dict[str, str], client: PrefectClient, nobody: None, how: str
) -> None:
    arguments = ["run", "step/nobody", "-p", "name=a"]
    with running(arguments, faulty, env, terminal=how != "no terminal") as command:
        run_id = command.run_id()
        name = r"\S+"
        if how != "no terminal":  # there it shows what it has read
            name = "renamed"
            await client.update_flow_run(run_id, name=name)
            command.says(name)
        if how == "twice":
            command.type("\x03")
            command.says("atching? ")
            command.type("\x03")
        else:
            command.process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
        assert command.ends() == 130
        assert re.search(rf"\n{name} is left running: http\S+{run_id}", command.text), command.text
        assert "Traceback" not in command.text
    run = await client.read_flow_run(run_id)
    assert run.state is not None
    assert not run.state.is_final()


async def add_child(client: PrefectClient, parent: UUID, name: str, *states: State[Any]) -> FlowRun:
    """Do what a parent does that starts a child, and move that on."""
    task_run = await client.create_task_run(
        NOTHING, flow_run_id=parent, dynamic_key=name, state=Pending()
    )
    deployment = await client.read_deployment_by_name("step/nobody")
    run = await client.create_flow_run_from_deployment(
        deployment.id, parameters={"name": name}, name=name, parent_task_run_id=task_run.id
    )
    for state in states:
        await client.set_flow_run_state(run.id, state, force=True)
    return run


@pytest.mark.slow
async def test_children_of_children(
    faulty: Path, env: dict[str, str], client: PrefectClient, nobody: None
) -> None:
    with running(["run", "step/nobody", "-p", "name=root"], faulty, env) as command:
        run_id = command.run_id()
        command.says(" not started for ")
        assert "no worker is online for work pool engine-tests-nobody" in command.text
        await client.set_flow_run_state(run_id, Running(), force=True)
        await client.update_flow_run(run_id, name="root")
        first = await add_child(client, run_id, "first", Running())
        await add_child(client, run_id, "second", Running(), Completed())
        await add_child(client, first.id, "below", Running(), Crashed(message="gone"))
        skipped: State[None] = Completed(name="Skipped [/data/in is empty]")
        await add_child(client, run_id, "third [b] \x1b]0;x\x07", Running(), skipped)
        failed: State[None] = Failed(message="\x1b[8m[/]")
        await add_child(client, run_id, "\x9b8m", Running(), failed)
        await client.set_flow_run_state(run_id, Completed(), force=True)
        assert command.ends() == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", command.raw.decode())
        assert r"└ third [b] \u001b]0;x\u0007  Skipped [/data/in is empty] " in command.text
        assert "\n" + r"\u009b8m Failed: \u001b[8m[/]" + "\n" in command.text
        lines = [" ".join(line.split()[:3]) for line in command.text.splitlines()]
        shown = lines[lines.index("run state seconds") :]
        assert [line.rstrip("0123456789. ") for line in shown[1:5]] == [
            "root Completed",
            "└ first Running",
            "└ below Crashed",
            "└ second Completed",
        ]
        assert "\n    └ below" in command.text
        assert "\nbelow Crashed: gone\n" in command.text
        assert "\nstep/nobody completed. Its result was not persisted: set " in command.text
        assert "error: " not in command.text


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--json"]])
async def test_a_result_that_is_elsewhere(
    faulty: Path, env: dict[str, str], client: PrefectClient, nobody: None, more: list[str]
) -> None:
    """As that of a run in containers is. It is an error for who asks for the result alone."""
    volume = ResultStore(result_storage=LocalFileSystem(basepath="/results"))
    completed: State[Any] = Completed(data=volume.create_result_record(None, key="0a1b"))
    with running(
        ["run", "step/nobody", "-p", "name=a", *more], faulty, env, terminal=True
    ) as command:
        await client.set_flow_run_state(command.run_id(), completed, force=True)
        assert command.ends() == len(more), command.text
        text = command.text
    told = "step/nobody completed. Its result is at /results/0a1b, which can't be reached from here"
    (line,) = [line for line in text.splitlines() if told in line]
    assert line.startswith("error: " if more else told)
    assert (b"\x1b[31m" in command.raw) == bool(more)  # red
    assert "parent" not in line


@pytest.mark.slow
async def test_more_children_than_rows(
    faulty: Path, env: dict[str, str], client: PrefectClient, nobody: None
) -> None:
    arguments = ["run", "step/nobody", "-p", "name=root", "--json"]
    with running(arguments, faulty, env, terminal=True) as command:
        run_id = command.run_id()
        await client.set_flow_run_state(run_id, Running(), force=True)
        for number in range(12):
            await add_child(client, run_id, f"bad {number}", Running(), Failed(message="broke"))
        for number in range(40):
            await add_child(client, run_id, f"good {number}")
        command.says("12 of 52 children have ended")
        assert "40 Scheduled, 12 Failed" in command.text
        await client.set_flow_run_state(run_id, Failed(message="enough"), force=True)
        assert command.ends() == 1
        last = command.text[command.text.rindex(" state ") :]
        assert last.count(" Failed: broke") == 10
        assert "and 2 more failed" in last
        assert "good" not in last
        assert "error: step/nobody ended as Failed: enough" in last


@pytest.mark.slow
async def test_a_run_that_is_deleted(
    faulty: Path, env: dict[str, str], client: PrefectClient, nobody: None
) -> None:
    with running(["run", "step/nobody", "-p", "name=a"], faulty, env) as command:
        await client.delete_flow_run(command.run_id())
        assert command.ends() == 1
        assert re.search(r"\nerror: the run \S+ was deleted", command.text), command.text
        assert "Traceback" not in command.text


@pytest.mark.slow
async def test_the_server_is_away_for_a_while(faulty: Path, tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        with temporary_server(tmp_path, port, check_log=False) as server, server.used():
            await deploy_faults(server)
            arguments = ["run", "step/nobody", "-p", "name=a"]
            command = stack.enter_context(running(arguments, faulty, dict(server.env)))
            run_id = command.run_id()
        await asyncio.to_thread(command.says, "The Prefect server has not answered for ")
        with temporary_server(tmp_path, port, check_log=False) as server, server.used():
            async with get_client() as client:
                await client.set_flow_run_state(run_id, Completed(), force=True)
            assert command.ends() == 0, command.text
        assert "Traceback" not in command.text


async def test_a_server_that_hangs_is_told_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(_run, "GIVE_UP_SECONDS", 4)
    told = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(RuntimeError, match=r"gave up after 4 s without an answer .* \(Timeout"),
        ):
            await _run.follow(Tree(FlowRun(flow_id=uuid4(), name="a")), PlainConsole(file=told))
    assert "The Prefect server has not answered for 2 s" in told.getvalue()
