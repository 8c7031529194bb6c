"""What happens to one start harms no other: starts that are cancelled, and few open files.

`make test-all` cancels a hundred starts. For more: `STARTS=1000 pytest tests/engine/starts`.
"""

import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from deployments.project import ROOT
from deployments.warm_start import find_address
from tests.engine.starts.conftest import (
    STUB,
    forks_of_warm_processes,
    parent_of,
    start,
    warm_processes,
    worker_env,
)
from tests.engine.waiting import wait_until

if sys.platform != "linux":
    pytest.skip("warm starts are Linux's", allow_module_level=True)

STARTS = int(os.environ.get("STARTS", "100"))
AT_ONCE = 8
FILES = 28
Hold = Callable[[int], set[int]]

pytestmark = pytest.mark.slow


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Start runs of a server that does not answer, and return the ids of their processes."""
    # The first start after an installation finds the warm process outdated, and is cold.
    wait_until(lambda: "starts cold" not in start(), "a start is warm")
    started: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = worker_env() | {
            "PREFECT_API_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

        def begin(count: int) -> set[int]:
            before = runs()
            for _ in range(count):
                env["PREFECT__FLOW_RUN_ID"] = str(uuid4())
                started.append(subprocess.Popen(STUB, cwd=ROOT, env=env))
            wait_until(lambda: len(runs() - before) == count, "the runs have started")
            return runs() - before

        yield begin
        for each in started:
            each.kill()
            each.wait()
    wait_until(lambda: not runs(), "no run outlives what stood for it")


def runs() -> set[int]:
    """Return the processes of this process's runs: forks of forks of the warm process."""
    forks = forks_of_warm_processes()
    return {each for each in forks if parent_of(parent_of(each)) in forks}


def test_starts_that_are_cancelled(hold: Hold) -> None:
    held = hold(2)
    (warm,) = warm_processes()

    def cancel(number: int) -> None:
        each = subprocess.Popen(STUB, cwd=ROOT, env=worker_env(), stderr=subprocess.DEVNULL)
        time.sleep(random.Random(number).uniform(0, 0.4))  # noqa: S311
        each.terminate()
        each.wait()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(cancel, range(STARTS)))
    wait_until(lambda: runs() == held, "of the cancelled, no process is left")
    assert "cold" not in start()
    assert warm_processes() == [warm]


def test_starts_while_their_worker_starts_threads(hold: Hold) -> None:
    """A thread that starts a thread or a process has all signals blocked for that moment."""
    hold(1)
    (warm,) = warm_processes()
    with ThreadPoolExecutor(2) as pool:
        starts = [pool.submit(start) for _ in range(40)]
        while not all(each.done() for each in starts):
            threading.Thread(target=int).start()
    assert not [each.result() for each in starts if "cold" in each.result()]
    assert warm_processes() == [warm]


def test_connections_that_say_nothing(hold: Hold) -> None:
    held = hold(1)
    address = find_address(os.getpid())
    for seconds in (0, 0.5):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            time.sleep(seconds)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(address)
        assert "cold" not in start()
    assert runs() == held


def test_few_open_files(hold: Hold) -> None:
    """Many runs take no more of them than one."""
    assert "cold" not in start()
    (warm,) = warm_processes()
    before = resource.prlimit(warm, resource.RLIMIT_NOFILE)
    resource.prlimit(warm, resource.RLIMIT_NOFILE, (FILES, before[1]))
    try:
        held = hold(FILES // 2)
        assert "cold" not in start()
        assert runs() == held
    finally:
        resource.prlimit(warm, resource.RLIMIT_NOFILE, before)
