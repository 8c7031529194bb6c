import os
import subprocess
from pathlib import Path

import pytest

from deployments.project import ROOT
from tests.engine.conftest import clean_env, copy_repository, copy_types, inner_env

__all__ = ["clean_env"]

ME = ["-c", "user.name=Me", "-c", "user.email=me@localhost"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, with this environment in its `.venv`."""
    return copy_repository(tmp_path_factory.mktemp("a clone") / "parent flows")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of all that is here, which has a history."""
    path = tmp_path_factory.mktemp("template") / "it"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / ".git" / "info" / "exclude").write_text(".venv\n")
    commit(path, "The first", "--allow-empty")
    copy_repository(path)
    commit(path, "All that is here")
    return path


def git(repository: Path, *arguments: str) -> str:
    command = ["git", *ME, *arguments]
    return subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=True
    ).stdout


def commit(repository: Path, message: str, *options: str) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", message, *options)


def clone(repository: Path, path: Path, *options: str) -> Path:
    """Clone a repository, as its user does, and give it this environment."""
    git(repository, "clone", "--quiet", *options, f"file://{repository}", str(path))
    (path / ".venv").symlink_to(ROOT / ".venv")
    (path / ".git" / "info" / "exclude").write_text(".venv\n")
    os.utime(path / "requirements-dev.txt", (0, 0))  # older than the environment: don't remake
    return path


def start_project(template: Path, path: Path) -> Path:
    """Make a project, as its user does."""
    clone(template, path)
    assert "This is acme-pipelines now." in succeed(path, "make", "init", "NAME=acme-pipelines")
    commit(path, "Start acme-pipelines")
    copy_types(path)
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
