"""Where there is no warm process, or can be none, a run starts cold; and it ends by itself."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import _warm_process, warm_start
from deployments.commands._manifest import ROOT
from tests.engine.conftest import inner_env
from tests.engine.waiting import wait_until

STUB = ["-I", "-S", str(ROOT / "deployments" / "warm_start.py")]
STARTED = "Invalid flow run id"  # says the engine, which has none here
# What is imported at the start of each interpreter.
CUSTOM = {
    "threads": "import threading; threading.Timer(9, print).start()",
    "has opened": "import tempfile; file = tempfile.TemporaryFile()",
    "sitecustomize.py, which is not of the environment": "",
    "the import failed": "import sys; sys.modules['anyio'] = None",
}


def start(*command: str, **env: str) -> str:
    """Start a run that there is not, and return what that says."""
    env = inner_env() | {"PREFECT_LOGGING_LEVEL": "DEBUG"} | env
    done = subprocess.run(
        [sys.executable, *(command or STUB)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_it_starts_warm() -> None:
    error = start()
    assert STARTED in error
    assert "cold" not in error


@pytest.mark.parametrize("reason", list(CUSTOM))
def test_what_a_fork_must_not_have_is_refused(tmp_path: Path, reason: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUSTOM[reason])
    error = start(PYTHONPATH=str(tmp_path))
    assert "The flow run starts cold: Refused(" in error
    assert reason in error
    assert STARTED in error or "anyio" in error


def test_a_directory_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / f"prefect-warm-{os.geteuid()}"
    shared.mkdir(mode=0o755)
    error = start(XDG_RUNTIME_DIR=str(tmp_path))
    assert f"{shared} is not a directory of this user alone" in error
    assert STARTED in error
    assert not list(shared.iterdir())


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    error = start(XDG_RUNTIME_DIR="/dev/null")
    assert "starts cold: NotADirectoryError" in error
    assert STARTED in error


def test_another_platform() -> None:
    run = f"runpy.run_path({STUB[-1]!r}, run_name='__main__')"
    code = f"import runpy, sys; sys.platform = 'darwin'; {run}"
    error = start("-c", code)
    assert "no fork that is safe on darwin" in error
    assert STARTED in error


def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    command = [sys.executable, *STUB]
    worker = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command}); print(); input()"],
        env=inner_env() | {"XDG_RUNTIME_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    place = tmp_path / f"prefect-warm-{os.geteuid()}"
    assert place.stat().st_mode & 0o777 == 0o700
    (path,) = place.iterdir()
    socket.socket(socket.AF_UNIX).connect(str(path))
    worker.communicate(b"\n")
    wait_until(lambda: not path.exists(), "the warm process ends")


def test_it_ends_when_it_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_warm_process, "IDLE_SECONDS", 0.1)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = _warm_process.WarmProcess(listener, path, os.getpid(), {}, "")
        assert process.serve() is None
    assert not path.exists()


READS = """
import os, sys
names = set()
SKIPPED = ("<string>", "<frozen os>", "<frozen _collections_abc>")
kind = type(os.environ)
for method in ("__getitem__", "get", "__contains__"):
    def read(self, name, *rest, method=getattr(kind, method)):
        frame = sys._getframe(1)
        while frame.f_code.co_filename in SKIPPED:
            frame = frame.f_back
        names.add((name, frame.f_code.co_filename))
        return method(self, name, *rest)
    setattr(kind, method, read)
sys.path.insert(0, {directory!r})
import _warm_process
assert not _warm_process.import_prefect(3)
for each in names:
    print(*each)
"""


def test_what_the_import_reads_of_the_environment_is_known() -> None:
    """Else a run could get what another one's environment said."""
    code = READS.format(directory=str(ROOT / "deployments"))
    done = subprocess.run(
        [sys.executable, "-c", code], env=inner_env(), capture_output=True, text=True, check=True
    )
    reads = [line.split(" ", 1) for line in done.stdout.splitlines()]
    unknown = {
        name: file
        for name, file in reads
        # Settings are read again, and analytics are off where nobody looks at a terminal.
        if not name.startswith(("PREFECT_", *warm_start.READ_EARLY))
        and "/prefect/_internal/analytics/" not in file
        and name not in os.environ  # read by who looks at all of them
    }
    assert not unknown
