"""Start a flow run by a fork of a process that has Prefect imported.

    python -I -S deployments/warm_start.py

takes the place of `python -m prefect.engine`, whose import of Prefect is most of what a short run
costs. It is small and imports little: it hands its environment, directory and standard streams to
the warm process (`_warm_process.py`), then stands for the run: it relays signals to it, and ends
as it ends. Each worker has a warm process of its own, which the first run starts.

Where that can't be had, it becomes `python -m prefect.engine` itself. That is so everywhere but on
Linux: macOS's own libraries don't bear a fork without an exec (python/cpython #77906), and Windows
has none.
"""

import contextlib
import hashlib
import os
import signal
import socket
import stat
import sys

COLD = [sys.executable, "-m", "prefect.engine"]
WARM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_warm_process.py")
# What the C library, the interpreter, and packages at their import read of the environment.
# Prefect's own settings are read again in each run.
READ_EARLY = (
    *("COLUMNS", "COOLNAME_", "FORCE_COLOR", "FSSPEC_", "GLIBC_", "GRIFFE_", "HOME", "LANG"),
    *("LC_", "LD_", "LINES", "MALLOC_", "NO_COLOR", "OPENSSL_", "OTEL_", "PENDULUM_"),
    *("PROMETHEUS_", "PYDANTIC_", "PYTHON", "SSL", "TERM", "TTY_", "TZ", "WEBSOCKETS_", "XDG_"),
    *("_PYTHON", "prometheus_"),
)
# For the warm process to import Prefect, beside other load.
WAIT_SECONDS = 60
LISTENER = 3
NOT_STARTED = 2**31 - 1
RELAYED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class Refused(Exception):
    """The warm process is there, and says why it can't serve."""


def main() -> None:
    """Run the flow run of the environment, and exit as it does."""
    try:
        start = describe()
        connection = connect()
    except (OSError, Refused) as problem:
        start_cold(repr(problem))
    with contextlib.suppress(OSError):  # it died: the end of the connection says so
        socket.send_fds(connection, [b"\n"], [0, 1, 2, *start])
    for name in RELAYED:
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: relay(connection, number))
    status = receive_status(connection)
    if status == NOT_STARTED:
        start_cold("no process to be had")
    end_as(status)


def describe() -> tuple[int, int]:
    """Return descriptors of the working directory, and of a file with the environment.

    Raises:
        OSError: This platform has none.
    """
    if sys.platform != "linux":
        raise OSError(f"no fork that is safe on {sys.platform}")
    environment = os.memfd_create("environment")
    with open(environment, "wb", closefd=False) as file:
        file.writelines(b"%b=%b\0" % item for item in os.environb.items())
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY), environment


def start_cold(reason: str) -> None:
    """Become a new interpreter."""
    if os.environ.get("PREFECT_LOGGING_LEVEL", "").upper() == "DEBUG":
        sys.stderr.write(f"The flow run starts cold: {reason}\n")
    os.execv(COLD[0], COLD)  # noqa: S606


def connect() -> socket.socket:
    """Return a connection to a warm process that awaits a run.

    Raises:
        OSError: There is none, and none can be started.
        Refused: It can't serve.
    """
    for _ in range(3):  # one that ends, since it is idle or outdated, closes the connection
        connection = find_or_start()
        with contextlib.suppress(ConnectionError):
            greeting = connection.recv(1000)
            if greeting == b"warm":
                connection.settimeout(None)
                return connection
            if greeting:
                raise Refused(greeting.decode(errors="replace"))
        connection.close()
    raise ConnectionError("the warm process ended three times")


def find_or_start() -> socket.socket:
    """Return a connection to the worker's warm process, which may still be starting."""
    import fcntl

    place = directory()
    path = os.path.join(place, identity())
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_SECONDS)
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several that find none, one starts it
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(1024)
                start(listener, path)
            connection.connect(path)
    finally:
        os.close(lock)
    return connection


def directory() -> str:
    """Return a directory that nobody else can enter.

    Raises:
        PermissionError: Somebody else made one of that name.
    """
    parent = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - checked below
    path = os.path.join(parent, f"prefect-warm-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if (found.st_uid, found.st_mode) != (os.geteuid(), stat.S_IFDIR | 0o700):
        raise PermissionError(f"{path} is not a directory of this user alone")
    return path


def identity() -> str:
    """Return what a run and the warm process must have in common.

    The worker, from which both have their limits, control group and user; the interpreter and
    code; and the part of the environment that is read before settings are.
    """
    worker = os.getppid()
    with open(f"/proc/{worker}/stat", "rb") as file:
        started = file.read().rpartition(b")")[2].split()[19]
    code = os.stat(WARM)
    early = sorted(item for item in os.environ.items() if item[0].startswith(READ_EARLY))
    parts = (worker, started, COLD, WARM, code.st_mtime_ns, code.st_size, early)
    text = repr(parts).encode(errors="surrogateescape")
    return hashlib.blake2s(text, digest_size=8).hexdigest()  # a socket's path can't be long


def start(listener: socket.socket, path: str) -> None:
    """Start the warm process, which takes over the listening socket.

    It keeps nothing else of this run: not its streams, session, nor secrets of its own.
    """
    worker = os.getppid()
    if os.fork():
        return
    try:
        os.setsid()
        os.dup2(listener.fileno(), LISTENER)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.closerange(LISTENER + 1, os.sysconf("SC_OPEN_MAX"))
        env = {name: value for name, value in os.environ.items() if name[:9] != "PREFECT__"}
        arguments = [str(LISTENER), path, str(worker)]
        os.execve(COLD[0], [COLD[0], WARM, *arguments], env)  # noqa: S606
    finally:
        os._exit(1)


def relay(connection: socket.socket, number: int) -> None:
    """Have a signal sent to the run."""
    with contextlib.suppress(OSError):
        connection.send(bytes([number]))


def receive_status(connection: socket.socket) -> int:
    """Return how the run ended: its exit status, or minus the signal that ended it."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < 4 and (more := connection.recv(4)):
            data += more
    if len(data) == 4:
        return int.from_bytes(data, "big", signed=True)
    sys.stderr.write("The flow run was killed: its warm process died\n")
    return -signal.SIGKILL


def end_as(status: int) -> None:
    """Exit with a status, or by a signal."""
    if status < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the run has dumped its own
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
