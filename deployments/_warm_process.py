"""A process that has Prefect imported, and becomes a flow run in each of its forks.

    python _warm_process.py LISTENER PATH WORKER

is what `warm_start.py` starts: with the descriptor of the socket that it listens at, the path of
that, and the process id of the worker that it serves.

It imports no code of yours, and a fork gets nothing of it that a new interpreter would not have:
no thread, event loop or open file. Environment, settings, profile, `.env`, `prefect.toml` and the
flow are read in the fork. It ends when its worker has ended, after an idle while, and when what it
imported has changed.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import gc
import importlib
import os
import selectors
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

assert sys.platform == "linux"  # noqa: S101 - for type checkers elsewhere

ENGINE = "prefect.engine"
COLD = [sys.executable, "-m", ENGINE]
# What every run imports, sooner or later.
MODULES = (
    *(ENGINE, "prefect.main", "prefect.flow_engine", "prefect.task_engine"),
    *("prefect.deployments.steps", "anyio._backends._asyncio", "pydantic.v1"),
)
IDLE_SECONDS = 900.0
# One that can't serve says so for a while, then the next run tries another.
REFUSE_SECONDS = 60.0
# Who ends all processes of a service means the runs, which end first.
BLOCKED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
PEER = struct.Struct("3i")  # SO_PEERCRED: process, user, group
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
# As `warm_start.py` understands them.
WARM = b"warm"
NOT_STARTED = (2**31 - 1).to_bytes(4, "big")

# Of files and directories: when they were modified, their sizes and inodes.
Imported = dict[str, tuple[int, int, int]]


class Start(NamedTuple):
    """What a run starts with, as descriptors.

    Attributes:
        streams: Its standard input, output and error.
        directory: Its working directory.
        environment: A file with `NAME=value` for each variable, and a null byte after each.
    """

    streams: list[int]
    directory: int
    environment: int

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (*self.streams, self.directory, self.environment):
            os.close(descriptor)

    def take(self) -> None:
        """Give this process the streams, the directory and the environment."""
        for number, descriptor in enumerate(self.streams):
            os.dup2(descriptor, number)
        os.fchdir(self.directory)
        os.environb.clear()
        size = os.fstat(self.environment).st_size
        for each in os.pread(self.environment, size, 0).split(b"\0")[:-1]:
            name, _, value = each.partition(b"=")
            os.environb[name] = value
        time.tzset()
        self.close()


class WarmProcess:
    """Fork runs, send signals to them, and tell how they ended.

    Args:
        listener: The socket at which starts connect.
        path: The listener's.
        worker: The process id of the worker.
        imported: How that was when it was imported.
        refusal: Why it can't serve; empty if it can.
    """

    def __init__(
        self, listener: socket.socket, path: Path, worker: int, imported: Imported, refusal: str
    ) -> None:
        self._listener = listener
        self._path = path
        self._inode = path.stat().st_ino
        self._worker = os.pidfd_open(worker)
        self._refusal = refusal
        self._imported = imported
        self._runs = 0
        self._start: Start | None = None
        self._selector = selectors.PollSelector()  # epoll would be shared with the forks
        self._watch(self._listener, self._accept)
        self._watch(self._worker, self._retire)

    def serve(self) -> Start | None:
        """Return what to start with in each fork, and None in the end."""
        idle = REFUSE_SECONDS if self._refusal else IDLE_SECONDS
        while self._start is None and (self._runs or self._listener.fileno() >= 0):
            if ready := self._selector.select(idle):
                ready[0][0].data()  # one at a time: it may close the next
            elif not self._runs:
                self._retire()
        return self._start

    def _watch(self, file: socket.socket | int, react: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, react)

    def _close(self, file: Any) -> None:
        self._selector.unregister(file)
        if isinstance(file, int):
            os.close(file)
        else:
            file.close()

    def _retire(self) -> None:
        """Take no more starts; those that wait find that out, and start another."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._close(self._listener)
        self._close(self._worker)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # too many open files
            return self._retire()
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
        greeting = self._refusal.encode() or WARM
        if PEER.unpack(peer)[1] != os.geteuid():
            connection.close()
        elif self._imported != read_imported():
            connection.close()
            self._retire()
        else:
            with contextlib.suppress(OSError):
                connection.send(greeting)
            self._watch(connection, functools.partial(self._fork, connection))

    def _fork(self, connection: socket.socket) -> None:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 5)
        if not descriptors:  # it has died, or starts cold
            return self._close(connection)
        start = Start(descriptors[:3], *descriptors[3:])
        warm = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # too many processes, too little memory
            start.close()
            connection.send(NOT_STARTED)
            return self._close(connection)
        if pid == 0:
            die_with(warm)
            for key in list(self._selector.get_map().values()):
                self._close(key.fileobj)
            self._selector.close()
            self._start = start
            return None
        start.close()
        self._runs += 1
        exited = os.pidfd_open(pid)
        self._selector.unregister(connection)
        self._watch(connection, functools.partial(self._relay, connection, pid))
        self._watch(exited, functools.partial(self._tell, connection, pid, exited))
        return None

    def _relay(self, connection: socket.socket, pid: int) -> None:
        """Send signals to a run; the last, if what stands for it has died."""
        signals = connection.recv(100) or bytes([signal.SIGKILL])
        for number in signals:
            os.kill(pid, number)
        if signal.SIGKILL in signals:
            self._close(connection)

    def _tell(self, connection: socket.socket, pid: int, exited: int) -> None:
        """Tell how a run has ended."""
        self._close(exited)
        self._runs -= 1
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if connection.fileno() >= 0:
            with contextlib.suppress(OSError):
                connection.send(status.to_bytes(4, "big", signed=True))
            self._close(connection)


def die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent dies, and nobody else with it."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    os.setpgid(0, 0)  # a run that signals its group means processes of its own


def read_imported() -> Imported:
    """Return how all that has been imported, and where it is looked for, is on disk."""
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    found = {}
    for path in filter(None, {*paths, *sys.path}):
        with contextlib.suppress(OSError):
            now = os.stat(path)
            found[path] = (now.st_mtime_ns, now.st_size, now.st_ino)
    return found


def import_prefect(listener: int) -> str:
    """Import what runs need, and return why that can't be forked, if it can't.

    Args:
        listener: The descriptor that may be open besides the standard streams.
    """
    try:
        for name in MODULES:
            importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - a new interpreter says it better
        return f"the import failed: {error!r}"
    # An event loop has open files, too.
    if len(os.listdir("/proc/self/task")) > 1:
        return "the import has started threads"
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of `listdir` is closed
            os.fstat(descriptor)
            if descriptor > 2 and descriptor != listener:
                return f"the import has opened {os.readlink(f'/proc/self/fd/{descriptor}')}"
    environment = (sys.prefix, sys.base_prefix, __file__)
    for module in sys.modules.values():
        path = getattr(module, "__file__", None) or sys.prefix
        if not path.startswith(environment):
            return f"the import has loaded {path}, which is not of the environment"
    return ""


def run_engine() -> None:
    """Run Prefect's engine as `python -m prefect.engine` does in a new interpreter."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging import configuration
    from prefect.settings import get_current_settings

    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    refresh_global_settings_context()
    if get_current_settings().plugins.enabled:  # they run when Prefect is imported
        os.execv(COLD[0], COLD)  # noqa: S606
    configuration.PROCESS_LOGGING_CONFIG.clear()  # else it only adds to what there is
    configuration.setup_logging()
    engine: Any = sys.modules[ENGINE].__spec__
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __builtins__=builtins,
        __cached__=engine.cached,
        __file__=engine.origin,
        __loader__=engine.loader,
        __package__=engine.parent,
        __spec__=engine,
    )
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    sys.argv[:] = [engine.origin]
    sys.orig_argv[:] = COLD
    exec(engine.loader.get_code(ENGINE), main.__dict__)  # noqa: S102


def main(listener: str, path: str, worker: str) -> None:
    """Serve a worker, or run a flow run in a fork."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the directory of this file
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    os.environ["PREFECT_PLUGINS_ENABLED"] = "false"
    os.chdir("/")
    before = read_imported()
    refusal = import_prefect(int(listener))
    imported = read_imported() | before  # an installation may have been under way
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, each page that forks share
    process = WarmProcess(
        socket.socket(fileno=int(listener)), Path(path), int(worker), imported, refusal
    )
    if start := process.serve():
        start.take()
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        run_engine()


if __name__ == "__main__":
    main(*sys.argv[1:])
