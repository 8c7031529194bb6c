"""What `deployments.testing` does for the tests of others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.engine.waiting import processes_of, wait_until

TEST = """
import asyncio
from pathlib import Path
import pytest
from prefect.deployments import arun_deployment

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_it(prefect_server, worker):
    run = await arun_deployment("measure-all/local", timeout=300, poll_interval=0.5)
    assert run.state.is_completed(), run.state
    Path({started!r}).touch()
    await asyncio.sleep(600)
"""


def test_sigterm_stops_server_and_worker(
    checkout: Path, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    """And before that, the worker ran what prefect.yaml names `local`."""
    started, log = tmp_path / "started", tmp_path / "log"
    (tmp_path / "test_it.py").write_text(TEST.format(started=str(started)))
    options = ["-p", "deployments.testing", "-c", "/dev/null", "--basetemp", str(tmp_path / "tmp")]
    with log.open("wb") as output:
        tests = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_it.py")],
            cwd=checkout,  # where `deployments` and prefect.yaml are
            env=clean_env,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: started.exists() or tests.poll() is not None, "its test runs")
        assert len(processes_of(str(tmp_path / "tmp"))) >= 2, log.read_text()
        tests.terminate()
        assert tests.wait(60) == 2, log.read_text()  # interrupted
        assert processes_of(str(tmp_path / "tmp")) == []
    finally:
        tests.terminate()
        tests.wait(60)
        for left in processes_of(str(tmp_path / "tmp")):
            os.kill(int(left), signal.SIGKILL)
