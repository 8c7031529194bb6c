"""A machine on this one: its network, processes and Docker Engine are its own, and end together."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from deployments.servers import tail
from tests.engine.containers.engine import docker, succeeds
from tests.engine.waiting import wait_until

BRIDGE = "engine-tests"
# Of this machine, as the others see it: all that they have in common is what listens there.
ADDRESS = "10.77.0.1"
NETWORK = f"{ADDRESS}/24"


def execute(*command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command, and return what it printed."""
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Give this machine an address for the others."""
    assert os.geteuid() == 0, "only root can make machines"
    execute("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        execute("ip", "address", "add", NETWORK, "dev", BRIDGE)
        execute("ip", "link", "set", BRIDGE, "up")
        yield
    finally:
        execute("ip", "link", "delete", BRIDGE)


class Machine:
    """A machine with a Docker Engine, and a directory in place of disks."""

    def __init__(self, number: int, directory: Path) -> None:
        self.name = f"machine-{number}"
        self.directory = directory / self.name
        self.docker_host = f"unix://{self.directory}/docker.sock"
        self._address = f"{ADDRESS}{number}/24"
        self._port = f"{BRIDGE[:8]}-{number}"
        self._space: subprocess.Popen[bytes] | None = None
        self._init = 0

    def start(self, hidden: list[Path]) -> None:
        """Start it, without what is in some directories here."""
        self.directory.mkdir(exist_ok=True)
        execute("ip", "netns", "add", self.name)
        execute("ip", "link", "add", self._port, *f"type veth peer eth0 netns {self.name}".split())
        execute("ip", "link", "set", self._port, "master", BRIDGE, "up")
        for command in (
            f"address add {self._address} dev eth0",
            "link set lo up",
            "link set eth0 up",
            f"route add default via {ADDRESS}",
        ):
            execute("ip", "-netns", self.name, *command.split())
        dockerd = ["dockerd", f"--host={self.docker_host}"]
        dockerd += [f"--{each}={self.directory}/{each}" for each in ("data-root", "exec-root")]
        dockerd += [f"--pidfile={self.directory}/docker.pid"]
        space = ["nsenter", f"--net=/run/netns/{self.name}"]
        space += ["unshare", "--fork", "--pid", "--kill-child", "--mount", "--mount-proc"]
        log = self.directory / "dockerd.log"
        with log.open("wb") as output:
            self._space = subprocess.Popen([*space, *dockerd], stdout=output, stderr=output)
        pid = self._space.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        wait_until(lambda: bool(children.read_text().strip()), f"{self.name} has a process", 30)
        self._init = int(children.read_text())
        try:
            version = ("--host", self.docker_host, "version")
            wait_until(lambda: succeeds(*version), f"the Docker Engine of {self.name} answers", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{tail(log)}") from None
        for path in hidden:
            execute(*self._inside(), "mount", "-t", "tmpfs", "none", str(path))

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--net", "--pid", "--mount"]

    def docker(self, *arguments: str) -> str:
        return docker("--host", self.docker_host, *arguments)

    def containers(self) -> set[str]:
        """The ids of the containers that there ever were."""
        events = ["events", "--since=0", "--until=0s", "--filter=event=create"]
        return set(self.docker(*events, "--format={{.ID}}").split())

    def spawn(self, name: str, command: list[str], env: Mapping[str, str]) -> Path:
        """Start a process in an empty directory of the machine, and return its log."""
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        log = self.directory / f"{name}.log"
        inside = [*self._inside(), f"--wd={directory}"]
        with log.open("wb") as output:
            subprocess.Popen([*inside, *command], env=dict(env), stdout=output, stderr=output)
        return log

    @property
    def alive(self) -> bool:
        return self._space is not None

    def die(self) -> None:
        """End all its processes at once, without a word, and its network."""
        if self._space is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._space.wait(60)
        self._space = None
        execute("ip", "netns", "delete", self.name)

    def remove(self) -> None:
        self.die()
        shutil.rmtree(self.directory)
