import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deployments.commands._manifest import ROOT
from tests.engine.conftest import clean_env, copy_repository, inner_env

__all__ = ["clean_env"]

ME = ["-c", "user.name=Me", "-c", "user.email=me@localhost"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, with this environment in its `.venv`."""
    return copy_repository(tmp_path_factory.mktemp("a clone") / "parent flows")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of all that is here, and of an older engine in the commit before."""
    older, path = (copy_repository(tmp_path_factory.mktemp(name) / "it") for name in "ab")
    changelog = older / "deployments" / "CHANGELOG.md"
    changelog.write_text(re.sub(r"(?ms)^## .*", "## 0.1.0\n\nThe first.\n", changelog.read_text()))
    (older / "deployments" / "commands" / "_gone.py").write_text('"""Gone since."""\n')
    (older / "tests" / "engine" / "test_auth.py").unlink()
    pyproject = older / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('    "prefect-docker",\n', ""))
    git(older, "init", "--quiet")
    (older / ".git" / "info" / "exclude").write_text(".venv\n")
    commit(older, "An older engine")
    shutil.move(older / ".git", path)
    commit(path, "The newer one")
    return path


def git(repository: Path, *arguments: str) -> str:
    command = ["git", *ME, *arguments]
    return subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=True
    ).stdout


def commit(repository: Path, message: str) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", message)


def clone(repository: Path, path: Path) -> Path:
    """Clone a repository, as its user does, and give it this environment."""
    git(repository, "clone", "--quiet", ".", str(path))
    (path / ".venv").symlink_to(ROOT / ".venv")
    (path / ".git" / "info" / "exclude").write_text(".venv\n")
    os.utime(path / "requirements-dev.txt", (0, 0))  # older than the environment: don't remake
    return path


def run(project: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project, without what this make and this Prefect have set."""
    return subprocess.run(
        command,
        cwd=project,
        env=inner_env() | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def succeed(project: Path, *command: str, **env: str) -> str:
    """Run a command that must succeed, and return what it said."""
    done = run(project, *command, **env)
    assert done.returncode == 0, done.stdout
    return done.stdout
