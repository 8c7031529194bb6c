import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments.servers._processes import free_port
from tests.engine.conftest import inner_env
from tests.engine.containers.engine import docker

SECRET = "a-secret-of-this-machine"  # noqa: S105
# Flows that go wrong as they are told, added as a user would add flows.
FLOWS = """
  - <<: *docker
    entrypoint: tests/engine/faults/steps.py:grandparent
    work_pool: *docker_parents
  - <<: *docker
    entrypoint: tests/engine/faults/steps.py:family
    work_pool: *docker_parents
  - <<: *docker
    entrypoint: tests/engine/faults/steps.py:step
    work_pool: *docker_children
"""


@pytest.fixture(scope="module")
def clone(checkout: Path) -> Path:
    """A clone with a commit, a secret, and flows that go wrong."""
    with (checkout / "prefect.yaml").open("a") as file:
        file.write(FLOWS)
    subprocess.run(["git", "init", "--quiet"], cwd=checkout, check=True)
    commit_all(checkout)
    for directory in (checkout, checkout / "tests" / "engine"):
        (directory / ".env").write_text(f"MY_PASSWORD={SECRET}\n")
    return checkout


def commit_all(repository: Path) -> None:
    name = ["-c", "user.name=Me", "-c", "user.email=me@localhost"]
    for command in (
        ["add", "--all"],
        [*name, "commit", "--quiet", "--message", "Mine"],
    ):
        subprocess.run(["git", *command], cwd=repository, check=True)


class Stack:
    """`make up` and `make down` in the clone."""

    def __init__(self, clone: Path, home: Path, images: dict[str, str]) -> None:
        self.clone = clone
        # What only a worker's own machine knows must not get into containers.
        self._env = inner_env() | images | {"HOME": str(home), "PREFECT_HOME": str(home)}
        # Another port than by default: nothing may rely on that one.
        port = self._env["SERVER_PORT"] = str(free_port())
        self.api_url = f"http://127.0.0.1:{port}/api"

    def make(self, *arguments: str, **env: str) -> str:
        done = self._make(arguments, env)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def fails(self, *arguments: str, **env: str) -> str:
        """Run make, which fails, and return what it says."""
        done = self._make(arguments, env)
        assert done.returncode != 0, done.stdout
        return done.stdout

    def _make(
        self, arguments: tuple[str, ...], env: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["make", *arguments],
            cwd=self.clone,
            env=self._env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def image(self) -> str:
        """The image that is built of the last commit."""
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        tag = subprocess.run(command, cwd=self.clone, capture_output=True, text=True, check=True)
        return f"engine-tests:{tag.stdout.strip()}"

    def commit(self, file: str, text: str) -> None:
        (self.clone / file).write_text(text)
        commit_all(self.clone)

    def container(self, service: str) -> str:
        return docker("ps", "--quiet", "--filter", f"label=com.docker.compose.service={service}")


@pytest.fixture(scope="module")
def commands(
    clone: Path, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Stack:
    return Stack(clone, tmp_path_factory.mktemp("home"), images)


@pytest.fixture(scope="module")
def stack(commands: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that is up, with everything deployed; its server is the one of clients here."""
    try:
        commands.make("up")
        home = tmp_path_factory.mktemp("prefect")
        with temporary_settings({PREFECT_API_URL: commands.api_url, PREFECT_HOME: home}):
            yield commands
    finally:
        commands.make("down", "ARGS=--volumes --yes")
        assert docker("ps", "--all", "--quiet", "--filter", "name=engine-tests") == ""


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


async def no_container_is_left() -> bool:
    return not docker("ps", "--all", "--quiet", "--filter", "label=io.prefect.flow-run-id")
