"""Start a flow run by a fork of a process that has Prefect imported.

    python -I -S deployments/warm_start.py

takes the place of `python -m prefect.engine`, whose import of Prefect is most of what a short run
costs. It is small and imports little: it hands its environment and standard streams to the warm
process (`_warm_process.py`), then stands for the run: it relays signals to it, and ends as it
ends. Each worker has a warm process of its own, which the first run starts.

A run starts warm if all that an interpreter finds before it runs any code of ours is the worker's:
its environment, but for Prefect's own settings, its limits, priority and rights. Its directory is
this checkout. Any other run becomes `python -m prefect.engine` itself, and so does each where
there is no Linux: macOS's own libraries don't bear a fork without an exec (python/cpython #77906),
and Windows has none.
"""

import contextlib
import hashlib
import os
import signal
import socket
import sys
import time

COLD = [sys.executable, "-m", "prefect.engine"]
HERE = os.path.dirname(os.path.abspath(__file__))
WARM = os.path.join(HERE, "_warm_process.py")
# Of /proc/PID/status, what a process hands on to those that it starts.
HANDED_ON = (
    *("Cap", "Cpus_allowed", "Gid", "Groups", "Mems_allowed", "NoNewPrivs", "Seccomp", "Uid"),
    "Umask",
)
# Signals 32 and 33 are the C library's own: it takes them over with a process's first thread.
OWN_SIGNALS = 3 << 31
# For the warm process to import Prefect, beside other load.
WAIT_SECONDS = 60
NOT_STARTED = 2**31 - 1
RELAYED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class Refused(Exception):
    """Why this run can't start warm."""


def main() -> None:
    """Run the flow run of the environment, and exit as it does."""
    try:
        connection = hand_over()
    except (OSError, Refused) as problem:
        start_cold(repr(problem))
    for name in RELAYED:
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: relay(connection, number))
    status = receive_status(connection)
    if status == NOT_STARTED:
        start_cold("no process to be had")
    end_as(status)


def hand_over() -> socket.socket:
    """Return a connection to what keeps the run, which has its environment and streams.

    Raises:
        Refused: It can't start warm, and nothing has started.
        OSError: The same, since something that it takes is not to be had.
    """
    if sys.platform != "linux":
        raise Refused(f"no fork that is safe on {sys.platform}")
    worker = os.getppid()
    os.close(os.pidfd_open(worker))  # some sandboxes refuse it, and the warm process needs it
    check_same(worker)
    connection = connect(worker)
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if int.from_bytes(peer[4:8], sys.byteorder) != os.geteuid():
        raise Refused("another user listens there")
    if (greeting := connection.recv(1000)) != b"warm":
        raise Refused(greeting.decode(errors="replace") or "the warm process has ended")
    connection.settimeout(None)
    environment = os.memfd_create("environment")
    with open(environment, "wb", closefd=False) as file:
        file.writelines(b"%b=%b\0" % item for item in os.environb.items())
    socket.send_fds(connection, [b"\n"], [0, 1, 2, environment])
    return connection


def start_cold(reason: str) -> None:
    """Become a new interpreter."""
    if os.environ.get("PREFECT_LOGGING_LEVEL", "").upper() == "DEBUG":
        sys.stderr.write(f"The flow run starts cold: {reason}\n")
    os.execv(COLD[0], COLD)  # noqa: S606


def check_same(worker: int) -> None:
    """Refuse a run for which an interpreter would find anything that is not the worker's.

    Raises:
        Refused: It says what.
        OSError: The system does not tell.
    """
    if not os.path.samefile(".", os.path.dirname(HERE)):
        raise Refused(f"its directory is not {os.path.dirname(HERE)}")
    if len(os.listdir("/proc/self/fd")) != 4:  # one is of this listing
        raise Refused("it has more open files than its standard streams, or fewer")
    # The worker's own are not asked for: it blocks all while it starts a thread or a process.
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        raise Refused("it has signals blocked")
    with open(f"/proc/{worker}/environ", "rb") as file:
        theirs = dict(each.partition(b"=")[::2] for each in file.read().split(b"\0")[:-1])
    if b"PREFECT__FLOW_RUN_ID" in theirs:
        raise Refused("a process stands between it and its worker")
    differing = {os.fsdecode(name) for name, _ in theirs.items() ^ os.environb.items()}
    # Prefect's own are read again in each run. For LC_CTYPE see `find_address`.
    if names := sorted(n for n in differing if n[:8] != "PREFECT_" and n != "LC_CTYPE"):
        raise Refused(f"its environment differs from its worker's: {', '.join(names)}")
    if read_handed_on("self") != read_handed_on(worker):
        raise Refused("its limits, priority or rights differ from its worker's")


def read_handed_on(process: object) -> list[object]:
    """Return what a process hands on to those that it starts, beside its environment."""
    place = f"/proc/{process}"
    found: list[object] = []
    for name in ("cgroup", "limits", "oom_score_adj"):
        with open(f"{place}/{name}") as file:
            found.append(file.read())
    with open(f"{place}/status") as file:
        status = dict(line.partition(":")[::2] for line in file)
    found += [item for item in status.items() if item[0].startswith(HANDED_ON)]
    found.append(int(status["SigIgn"], 16) & ~OWN_SIGNALS)
    with open(f"{place}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    found += [fields[16], *fields[37:39]]  # nice, and the priority and policy of real time
    spaces = sorted(os.listdir(f"{place}/ns"))
    return found + [os.readlink(f"{place}/ns/{each}") for each in spaces]


def connect(worker: int) -> socket.socket:
    """Return a connection to the worker's warm process, which may still be starting."""
    address = find_address(worker)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_SECONDS)
    try:
        connection.connect(address)
    except ConnectionRefusedError:
        start_warm_process(address, worker)
        connection.connect(address)
    return connection


def find_address(worker: int) -> str:
    """Return where the warm process of a worker and this checkout listens.

    It has no file: it goes with who listens.
    """
    with open(f"/proc/{worker}/stat") as file:
        started = file.read().rpartition(")")[2].split()[19]
    # An interpreter without a locale sets it itself, so that the worker's is not seen in /proc.
    locale = os.environ.get("LC_CTYPE")
    parts = (worker, started, COLD, WARM, locale, read_handed_on(worker))
    text = repr(parts).encode(errors="surrogateescape")
    return f"\0prefect-warm-{hashlib.blake2s(text, digest_size=16).hexdigest()}"


def start_warm_process(address: str, worker: int) -> None:
    """Start the warm process, which takes over the listening socket and nothing of this run."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError:  # another start has, and listens in a moment
            return time.sleep(0.1)
        listener.listen(1024)
        listener.set_inheritable(True)
        os.posix_spawn(
            COLD[0],
            [COLD[0], WARM, str(listener.fileno()), str(worker)],
            {name: value for name, value in os.environ.items() if name[:8] != "PREFECT_"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ],
        )


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
    sys.stderr.write("The flow run was killed: what kept it, _warm_process.py, has died\n")
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
