"""A process that has Prefect imported, and becomes a flow run in forks of its forks.

    python _warm_process.py LISTENER WORKER

is what `warm_start.py` starts: with the descriptor of the socket that it listens at, and the
process id of the worker that it serves. For each start it forks a keeper, which forks the run,
sends it signals, and tells how it ended. So no start can harm another, nor the death of the warm
process a run.

It imports no code of yours, and a fork gets nothing of it that a new interpreter would not have:
no thread, event loop or open file. Settings, profile, `.env`, `prefect.toml` and the flow are read
in the fork. It ends with its worker, after an idle while, and when what it imported has changed.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import functools
import gc
import importlib
import os
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any
from uuid import UUID

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
# So long a run has for its last word, where its worker or what stands for it has died.
LAST_SECONDS = 5.0
# So often a durable run looks whether it has another attempt.
LOOK_SECONDS = 30.0
FENCE = "deployments.fence"
PEER = struct.Struct("3i")  # SO_PEERCRED: process, user, group
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
# As `warm_start.py` understands them.
WARM = b"warm"
NOT_STARTED = (2**31 - 1).to_bytes(4, "big")

# Of files and directories: when they were modified, their sizes and inodes.
Imported = dict[str, tuple[int, int, int]]


def serve(
    listener: socket.socket, worker: int, imported: Imported, refusal: str
) -> socket.socket | None:
    """Return, in a fork for each, the connection of a start, and None in the end.

    Args:
        listener: The socket at which starts connect.
        worker: A descriptor of the worker's process.
        imported: How that was when it was imported.
        refusal: Why it can't serve; empty if it can.
    """
    idle = REFUSE_SECONDS if refusal else IDLE_SECONDS
    poll = select.poll()
    poll.register(worker, select.POLLIN)
    poll.register(listener, select.POLLIN)
    signal.signal(signal.SIGCHLD, reap)
    while dict(poll.poll(idle * 1000)).keys() == {listener.fileno()}:
        # What fails here, fails for this start alone, which then is cold.
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
            if imported != read_imported():
                return None
            if PEER.unpack(peer)[1] != os.geteuid():
                continue
            if refusal:
                connection.send(refusal.encode())
            elif os.fork() == 0:
                return socket.socket(fileno=connection.detach())
    return None


def reap(*_: object) -> None:
    """Let keepers go that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def keep(connection: socket.socket, worker: int) -> list[int] | None:
    """Keep a run, and return None once it has ended; or, in the run, its descriptors.

    These are its standard streams, and a file with its environment. Where its worker ends, it is
    told to end, too, so that it can say so.
    """
    keeper = os.getpid()
    # A start can end at any time; its run ends with the keeper.
    with contextlib.suppress(OSError):
        connection.send(WARM)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
        if not descriptors:
            return None
        try:
            pid = os.fork()
        except OSError:  # too many processes, too little memory
            connection.send(NOT_STARTED)
            return None
        if pid == 0:
            die_with(keeper)
            connection.close()
            os.close(worker)
            return descriptors
        # Its worker reads what it prints, and a pipe that nobody reads would end it too early.
        for stream in descriptors[1:3]:
            with contextlib.suppress(OSError):
                os.open(f"/proc/self/fd/{stream}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        exited = os.pidfd_open(pid)
        poll = select.poll()
        for each in (connection, exited, worker):
            poll.register(each, select.POLLIN)
        told = False
        while exited not in (ready := dict(poll.poll())):
            signals = connection.recv(100) if connection.fileno() in ready else b""
            for number in signals:
                os.kill(pid, number)
            told = told or signal.SIGTERM in signals
            if not signals:  # its worker has died, or what stands for it
                if not told:  # else it has had its time, and more
                    os.kill(pid, signal.SIGTERM)
                    select.select([exited], [], [], LAST_SECONDS)
                    if poll.poll(0).count((worker, select.POLLIN)):  # nobody else says so
                        select.select([exited], [], [], LAST_SECONDS)
                return None
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.send(status.to_bytes(4, "big", signed=True))
    return None


def die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent dies, and nobody else with it."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    os.setpgid(0, 0)  # a run that signals its group means processes of its own


def take(descriptors: list[int]) -> None:
    """Give this process the streams and the environment of a run."""
    *streams, environment = descriptors
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.environb.clear()
    size = os.fstat(environment).st_size
    for each in os.pread(environment, size, 0).split(b"\0")[:-1]:
        name, _, value = each.partition(b"=")
        os.environb[name] = value
    time.tzset()
    for descriptor in descriptors:
        os.close(descriptor)


def read_imported() -> Imported:
    """Return how all that has been imported, and where it is looked for, is on disk."""
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    paths |= {str(hook) for directory in sys.path for hook in Path(directory).glob("*.pth")}
    found = {}
    for path in filter(None, {*paths, *sys.path, f"{sys.prefix}/pyvenv.cfg"}):
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


def end_if_replaced(stand_in: int) -> None:
    """End this process where its run is durable, and has another attempt: look now and then.

    It was taken for dead, and Prefect's server would take what it does from then on.

    Args:
        stand_in: The process id by which Prefect knows this attempt.
    """
    from prefect.client.orchestration import get_client

    durable = True
    while durable:
        time.sleep(LOOK_SECONDS)
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            run = client.read_flow_run(UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
            durable = "durable" in run.tags
            known = (run.infrastructure_pid or "").rpartition(":")[2]
            replaced = known not in ("", str(stand_in)) or run.state_type == "CRASHED"
            if durable and replaced:
                sys.stderr.write("This attempt was taken for dead, and ends: another one goes on\n")
                os._exit(0)  # else its worker would call the other attempt Crashed


def share_certificates() -> None:
    """Let Prefect's clients of a run share the certificates that one has read.

    A run has eight. That each reads all of them anew takes a third of the CPU time of a short run
    (PrefectHQ/prefect #19106).
    """
    from prefect.client import orchestration

    shared: Any = types.SimpleNamespace(**vars(ssl))
    shared.create_default_context = functools.cache(ssl.create_default_context)
    vars(orchestration)["ssl"] = shared


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
    share_certificates()
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


def main(listener: str, worker: str) -> None:
    """Serve a worker, or run a flow run in a fork."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    if not sys.flags.safe_path:
        del sys.path[0]  # the directory of this file
    # No settings are to be found: each run reads its own.
    os.environ.update(PREFECT_HOME=os.devnull, PREFECT_PLUGINS_ENABLED="false")
    directory = os.getcwd()
    os.chdir("/")
    before = read_imported()
    refusal = import_prefect(int(listener))
    imported = read_imported() | before  # an installation may have been under way
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, each page that forks share
    with socket.socket(fileno=int(listener)) as starts:
        process = os.pidfd_open(int(worker))
        connection = serve(starts, process, imported, refusal)
    if connection is None:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    descriptors = keep(connection, process)
    if descriptors is None:
        os._exit(0)  # what is registered for the exit is the runs'
    os.chdir(directory)
    take(descriptors)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    stand_in = PEER.unpack(peer)[:1]
    threading.Thread(target=end_if_replaced, args=stand_in, name=FENCE, daemon=True).start()
    run_engine()


if __name__ == "__main__":
    main(*sys.argv[1:])
