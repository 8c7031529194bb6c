"""Where there is no warm process, or can be none, a run starts cold; and it ends by itself."""

import contextlib
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import _warm_process
from deployments.project import ROOT
from tests.engine.starts.conftest import STUB, start, warm_processes, worker_env
from tests.engine.waiting import wait_until

if sys.platform != "linux":
    pytest.skip("warm starts are Linux's", allow_module_level=True)

STARTED = "Invalid flow run id"  # says the engine, which has none here
# What is imported at the start of each interpreter.
CUSTOM = {
    "threads": "from threading import *; Thread(target=Event().wait, daemon=True).start()",
    "has opened": "import tempfile; file = tempfile.TemporaryFile()",
    "sitecustomize.py, which is not of the environment": "",
    "the import failed": "import sys; sys.modules['anyio'] = None",
}
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
HANDED_ON = "its limits, priority or rights differ"
# By what the run then says, what its `command` or environment made different.
DIFFERENT: dict[str, tuple[str, dict[str, Any]]] = {
    "variable": ("differs from its worker's: REGION", {"env": {"REGION": "eu"}}),
    "path": ("differs from its worker's: PATH", {"env": {"PATH": "/usr/bin:/bin"}}),
    "directory": (f"its directory is not {ROOT}", {"cwd": "/"}),
    "limit": (HANDED_ON, {"preexec_fn": lambda: limit(SOFT - 1)}),
    "priority": (HANDED_ON, {"preexec_fn": lambda: os.nice(1)}),
    "umask": (HANDED_ON, {"umask": 0o070}),
    "signal": (HANDED_ON, {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}),
}


def limit(files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, HARD))


def start_with(env: dict[str, str], *directories: Path) -> str:
    """Start runs of a worker that has another environment, and return what these say."""
    runs = [f"subprocess.run({STUB}, cwd={str(each)!r})" for each in directories or [ROOT]]
    code = "; ".join(["import subprocess", *runs, "raise SystemExit(1)"])
    return start(sys.executable, "-I", "-c", code, env=env)


def test_it_starts_warm() -> None:
    error = start()
    assert STARTED in error
    assert "cold" not in error


@pytest.mark.parametrize("reason", list(CUSTOM))
def test_what_a_fork_must_not_have_is_refused(tmp_path: Path, reason: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUSTOM[reason])
    error = start_with({"PYTHONPATH": str(tmp_path)})
    assert "The flow run starts cold: Refused(" in error
    assert reason in error
    assert STARTED in error or "anyio" in error


@pytest.mark.slow
@pytest.mark.parametrize("what", list(DIFFERENT))
def test_what_is_not_as_its_worker_has_it(what: str) -> None:
    reason, options = DIFFERENT[what]
    error = start(**options)
    assert "The flow run starts cold: Refused(" in error
    assert reason in error
    assert STARTED in error


def test_more_or_less_than_the_standard_streams() -> None:
    reason = "it has more open files than its standard streams, or fewer"
    assert reason in start(preexec_fn=lambda: os.close(0))
    with Path(os.devnull).open() as file:
        assert reason in start(pass_fds=[file.fileno()])


def test_a_shell_between_it_and_its_worker() -> None:
    error = start_with({"PREFECT__FLOW_RUN_ID": "none"})
    assert "a process stands between it and its worker" in error
    assert STARTED in error


def test_another_checkout_whose_path_is_relative(tmp_path: Path) -> None:
    """It runs its own code, not that of the first."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.stderr.write('the other')")
    error = start_with({"PYTHONPATH": "."}, ROOT, tmp_path)
    assert error.count("cold") == 1
    assert "the other" in error


def test_it_has_nothing_of_the_first_run() -> None:
    start(env={"PREFECT_API_KEY": "secret", "PREFECT_LOGGING_EXTRA_LOGGERS": "one"})
    (warm,) = warm_processes()
    assert b"PREFECT" not in Path(f"/proc/{warm}/environ").read_bytes()


@pytest.mark.slow
def test_a_hook_that_is_edited() -> None:
    """Its directory does not show it."""
    hook = Path(sysconfig.get_path("purelib")) / "engine-tests.pth"
    hook.write_text("")
    try:
        assert "cold" not in (start(), start())[1]
        before = warm_processes()
        hook.write_text("import sys; sys.stderr.write('edited')")
        assert "edited" in start()
        assert "cold" not in start()
        assert warm_processes() != before
    finally:
        hook.unlink()


def test_another_platform() -> None:
    error = start_as("sys.platform = 'darwin'")
    assert "no fork that is safe on darwin" in error


def test_a_system_that_refuses() -> None:
    """Some sandboxes do; then no warm process is started, which could not serve."""
    error = start_as("os.pidfd_open = os.memfd_create = lambda *_: os.stat('/no')")
    assert "cold: FileNotFoundError" in error


def start_as(change: str) -> str:
    run = f"runpy.run_path({STUB[-1]!r}, run_name='__main__')"
    error = start(sys.executable, "-c", f"import os, runpy, sys; {change}; {run}")
    assert STARTED in error
    return error


def test_it_ends_with_its_worker() -> None:
    with worker_of(f"subprocess.run({STUB})") as worker:
        assert warm_processes(worker.pid)
    wait_until(lambda: not warm_processes(worker.pid), "the warm process ends")


@contextlib.contextmanager
def worker_of(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Give what has run some code, until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", f"import subprocess; {code}; print(flush=True); input()"],
        cwd=ROOT,
        env=worker_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        yield worker


def test_its_worker_starts_its_first_thread() -> None:
    """Of what a worker was told to ignore, the C library then takes over its own signals."""
    call = {"x86_64": 13, "aarch64": 134}[platform.machine()]  # rt_sigaction, which Python refuses
    ignore = f"[libc.syscall({call}, each, b'\\1' + bytes(31), None, 8) for each in (32, 33)]"
    run = f"subprocess.run({STUB})"
    code = f"{ignore}; {run}; threading.Thread(target=int).start(); {run}"
    with worker_of(f"import threading, ctypes; libc = ctypes.CDLL(None); {code}") as worker:
        assert len(warm_processes(worker.pid)) == 1


def test_it_ends_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_warm_process, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process's children
    worker = os.pidfd_open(os.getpid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # the kernel takes an address
        listener.listen()
        assert _warm_process.serve(listener, worker, {}, "") is None
    os.close(worker)
