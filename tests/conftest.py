from collections.abc import Iterator

import pytest

from tests.engine.containers.engine import find_images, running_engine


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Docker Engine, and the variables that say which images it has."""
    with running_engine(tmp_path_factory.mktemp("docker") / "dockerd.log"):
        yield find_images()


@pytest.fixture(autouse=True)
def engine_for_docker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test in containers that engine and these images, as its users have theirs."""
    if request.node.get_closest_marker("docker"):
        for variable, image in request.getfixturevalue("images").items():
            monkeypatch.setenv(variable, image)
