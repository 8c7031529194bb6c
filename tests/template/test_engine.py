"""The engine's tests prove what ships, and the engine knows nothing of the project around it."""

import subprocess
from typing import Any

import pytest
import yaml

from deployments.project import ROOT
from tests.engine.conftest import MANIFEST

TEXT = (ROOT / "prefect.yaml").read_text()
SHIPPED: dict[str, Any] = yaml.safe_load(TEXT)


def test_what_ships_is_what_the_engines_tests_prove() -> None:
    """But for the flows: the project's name, and all else is the same."""
    proven = yaml.safe_load(MANIFEST.read_text())
    shipped = yaml.safe_load(TEXT.replace(SHIPPED["name"], proven["name"]))
    assert shipped.pop("deployments")
    assert proven.pop("deployments")
    assert shipped == proven


def names_of_the_project() -> list[str]:
    functions = {each["entrypoint"].rpartition(":")[2] for each in SHIPPED["deployments"]}
    return sorted({SHIPPED["name"], *functions, *(each.replace("_", "-") for each in functions)})


@pytest.mark.parametrize("name", names_of_the_project())
def test_the_engine_knows_nothing_of_the_project(name: str) -> None:
    command = ["git", "grep", "--untracked", "--line-number", "-I", "--fixed-strings", "-e", name]
    found = subprocess.run(
        [*command, "--", "deployments", "tests/engine"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.splitlines() == []
    assert found.stderr == ""


def test_no_directory_of_anybody_is_in_the_manifest() -> None:
    assert str(ROOT) not in TEXT
