import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)

from deployments.project import ROOT
from deployments.servers._processes import free_port
from tests.engine.conftest import (
    MANIFEST,
    USERS,
    copy_repository,
    inner_env,
    replace,
    run_in_clones,
)
from tests.engine.containers.conftest import FLOWS, Stack
from tests.engine.containers.engine import find_images, running_engine
from tests.engine.machines import services
from tests.engine.machines.machine import ADDRESS, Machine, execute, network
from tests.engine.machines.services import (
    ENCRYPTION_KEY,
    GIT_SECRET,
    GIT_URL,
    REGISTRY,
    REGISTRY_SECRET,
    SERVER_SECRET,
    STORE_KEY,
    STORE_SECRET,
    STORE_URL,
    Service,
)
from tests.engine.waiting import wait_until

PAGE = (ROOT / "deployments" / "docs" / "machines.md").read_text()
# What that page has one change in prefect.yaml, besides what clones need.
SWITCHES = {
    "PREFECT_LOCAL_STORAGE_PATH: /results": (
        "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: s3-bucket/results"
    ),
    "# access_token: ": "access_token: ",
}
# So that no machine empties the queue alone, and silence is told soon: heartbeats come each 30 s.
FOR_TESTS = {"concurrency_limit: 8": "concurrency_limit: 4", "silent: 180": "silent: 75"}
EXTRAS = "s3 kubernetes"


LOGIN = f"docker login --username=me --password={REGISTRY_SECRET} {REGISTRY}"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose lock and environment have the extras."""
    copy = copy_repository(tmp_path_factory.mktemp("machines") / "project", *USERS)
    shutil.copy(MANIFEST, copy / "prefect.yaml")
    with (copy / "prefect.yaml").open("a") as file:
        file.write(FLOWS)
    replace(copy / ".dockerignore", "\ntests\n", "\n")
    replace(copy / "Makefile", "\nEXTRAS :=\n", f"\nEXTRAS := {EXTRAS}\n")
    execute("make", "lock", cwd=copy, env=inner_env())
    (copy / ".venv").unlink()  # that was this environment
    execute("make", ".venv/installed", cwd=copy, env=inner_env())
    execute("git", "init", "--quiet", cwd=copy)
    commit(copy)
    return copy


@pytest.fixture(scope="session")
def extras_python(project: Path) -> Path:
    return project / ".venv" / "bin" / "python"


@dataclass
class Site:
    """Two machines with a worker each, what all machines reach, and a checkout to deploy from."""

    project: Path
    stack: Stack
    api_url: str
    env: dict[str, str]
    machines: list[Machine]
    commands: list[str]
    workers: Path
    registry: Service
    store: Service
    balancer: Service
    certificate: Path

    def make(self, *arguments: str, fails: bool = False) -> str:
        """Run make in the checkout, and return what it printed."""
        done = subprocess.run(
            ["make", *arguments],
            cwd=self.project,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def python(self, code: str, **env: str) -> str:
        """Run Python in the checkout's environment."""
        python = str(self.project / ".venv" / "bin" / "python")
        return execute(python, "-c", code, env=self.env | env, cwd=self.project)

    def save_results_block(self, secret: str = STORE_SECRET) -> None:
        """As docs/machines.md says."""
        (code,) = re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
        self.python(
            textwrap.dedent(code),
            AWS_ACCESS_KEY_ID=STORE_KEY,
            AWS_SECRET_ACCESS_KEY=secret,
            AWS_ENDPOINT_URL=STORE_URL,
        )

    def push(self, file: str, text: str) -> None:
        (self.project / file).write_text(text)
        commit(self.project)
        execute("git", "push", "--quiet", "origin", "HEAD", cwd=self.project)

    def start_worker(self, machine: Machine, pool: str) -> None:
        """Start a worker that has an environment, and no checkout, as docs/machines.md says."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(machine.directory),
            "DOCKER_HOST": machine.docker_host,
            "GIT_SSL_CAINFO": str(self.certificate),
        }
        export, start = (each.replace("-docker", f"-{pool}") for each in self.commands[-2:])
        name = f"{machine.name}-{pool}"
        command = f"{export}; exec {self.workers}/{start} --name {name}"
        log = machine.spawn(name, ["bash", "-c", command], env)
        wait_until(lambda: b"started!" in log.read_bytes(), f"worker {name} is up", 60)

    def start_machine(self, machine: Machine) -> None:
        machine.start(hidden=[ROOT, self.project])
        env = inner_env() | {"DOCKER_HOST": machine.docker_host, "HOME": str(machine.directory)}
        for command in self.commands[2:4]:
            execute("bash", "-c", command, env=env)
        self.start_worker(machine, "docker")

    def release(self, name: str) -> None:
        """Let steps that hold until there is a file of this name go on."""
        for machine in self.machines:
            if machine.alive:
                volume = "engine-tests-results:/results"
                image = machine.docker("image", "ls", "--quiet", f"{REGISTRY}/tests/project")
                touch = ["--volume", volume, image.split()[0], "touch", f"/results/{name}"]
                machine.docker("run", "--rm", *touch)

    def logs(self) -> str:
        """What servers, workers and services have written."""
        found = [log.read_text() for each in self.machines for log in each.directory.glob("*.log")]
        found += [self.registry.log.read_text(), self.balancer.log.read_text()]
        for service in ("server", "services"):
            for container in self.stack.container(service).split():
                command = ["docker", "logs", container]
                found.append(subprocess.check_output(command, stderr=subprocess.STDOUT, text=True))
        return "\n".join(found)


def commit(repository: Path) -> None:
    execute("git", "add", "--all", cwd=repository)
    name = ["-c", "user.name=Me", "-c", "user.email=me@localhost"]
    execute("git", *name, "commit", "--quiet", "--message=Mine", cwd=repository)


def read_commands(api_url: str) -> list[str]:
    """Return what docs/machines.md has one do on the machine of a worker."""
    (block,) = re.findall(r"```console\n(\$ python3 -m venv.*?)```", PAGE, re.DOTALL)
    commands = [line.strip().removeprefix("$ ") for line in block.strip().splitlines()]
    answers = {
        "docker login <registry>": LOGIN,
        "https://<server>/api": api_url,
        "<user:password>": f"me:{SERVER_SECRET}",
        "<name>": "engine-tests",
    }
    for asked, answer in answers.items():
        assert any(asked in command for command in commands), asked
        commands = [command.replace(asked, answer) for command in commands]
    return commands


def free_ports() -> list[int]:
    """Two ports, one after the other."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", first + 1)):
            return [first, first + 1]


@pytest.fixture(scope="session")
def site(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        # Short, and open to the services' own users.
        temporary = tempfile.TemporaryDirectory(prefix="machines-", ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(temporary))
        directory.chmod(0o755)
        stack.enter_context(network())
        stack.enter_context(running_engine(directory / "dockerd.log"))
        certificate = stack.enter_context(services.trusted(directory))

        bare = directory / "project.git"
        execute("git", "init", "--quiet", "--bare", str(bare))
        execute("git", "remote", "add", "origin", str(bare), cwd=project)
        execute("git", "push", "--quiet", "--set-upstream", "origin", "HEAD", cwd=project)
        execute("git", "remote", "set-url", "--push", "origin", str(bare), cwd=project)
        execute("git", "remote", "set-url", "origin", GIT_URL, cwd=project)
        manifest = project / "prefect.yaml"
        manifest.write_text(run_in_clones(manifest.read_text()))
        for old, new in (SWITCHES | FOR_TESTS).items():
            assert old in manifest.read_text(), old
            replace(manifest, old, new)

        registry, store = services.registry(directory, certificate), services.store(directory)
        for service in (registry, store, services.git_server(directory, certificate)):
            stack.enter_context(service.running())

        ports, listen = free_ports(), free_port()
        url = f"http://{ADDRESS}:{listen}"
        home = directory / "home"
        home.mkdir()
        env = {
            "HOME": str(home),
            "PREFECT_HOME": str(home),
            "IMAGE_NAME": f"{REGISTRY}/tests/project",
            "SERVERS": "2",
            "SERVER_PORT": str(ports[0]),
            "SERVER_URL": url,
            "PREFECT_API_AUTH_STRING": f"me:{SERVER_SECRET}",
            "PREFECT_SERVER_ENCRYPTION_KEY": ENCRYPTION_KEY,
        }
        execute(*LOGIN.split(), env=inner_env() | {"HOME": str(home)})
        the_stack = Stack(project, home, find_images() | env)
        stack.callback(the_stack.make, "down", "ARGS=--volumes --yes")
        the_stack.make("up", "ARGS=--server", **env)  # which has ports of its own
        balancer = services.balancer(directory, listen, ports)
        stack.enter_context(balancer.running())

        commands = read_commands(f"{url}/api")
        workers = directory / "workers"
        workers.mkdir()
        shutil.copy(project / "requirements.txt", workers)
        for command in commands[:2]:
            execute("bash", "-c", command, env=inner_env(), cwd=workers)

        machines = [Machine(number, directory) for number in (1, 2)]
        env |= {"PREFECT_API_URL": f"{url}/api"} | find_images()
        site = Site(
            project=project,
            stack=the_stack,
            api_url=f"{url}/api",
            env=inner_env() | env,
            machines=machines,
            commands=commands,
            workers=workers,
            registry=registry,
            store=store,
            balancer=balancer,
            certificate=certificate,
        )
        site.python(MAKE_BUCKET)
        site.save_results_block()
        site.python(SAVE_GIT_BLOCK, TOKEN=GIT_SECRET)
        site.push("prefect.yaml", (project / "prefect.yaml").read_text())
        site.make("deploy", "ARGS=docker local")
        for machine in machines:
            stack.callback(machine.remove)
            site.start_machine(machine)
        site.start_worker(machines[0], "local")
        client_home = tmp_path_factory.mktemp("prefect")
        settings = {
            PREFECT_API_URL: site.api_url,
            PREFECT_API_AUTH_STRING: f"me:{SERVER_SECRET}",
            PREFECT_HOME: client_home,
        }
        with temporary_settings(settings):
            yield site


MAKE_BUCKET = f"""
import boto3
keys = dict(aws_access_key_id={STORE_KEY!r}, aws_secret_access_key={STORE_SECRET!r})
boto3.client("s3", endpoint_url={STORE_URL!r}, **keys).create_bucket(Bucket="results")
"""
SAVE_GIT_BLOCK = """
import os
from prefect.blocks.system import Secret
Secret(value=os.environ["TOKEN"]).save("git-token")
"""


@pytest.fixture
async def client(site: Site) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client
