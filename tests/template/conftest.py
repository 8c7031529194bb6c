import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deployments.commands._manifest import ROOT

ME = ["-c", "user.name=Me", "-c", "user.email=me@localhost"]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of all that is here, and of an older engine in the commit before."""
    path = tmp_path_factory.mktemp("template") / "a template"
    copy_tree(path)
    git(path, "init", "--quiet")
    changelog = path / "deployments" / "CHANGELOG.md"
    changelog.write_text(re.sub(r"(?ms)^## .*", "## 0.1.0\n\nThe first.\n", changelog.read_text()))
    (path / "deployments" / "commands" / "_gone.py").write_text('"""Gone since."""\n')
    (path / "tests" / "engine" / "test_auth.py").unlink()
    pyproject = path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('    "prefect-docker",\n', ""))
    commit(path, "An older engine")
    (path / "deployments" / "commands" / "_gone.py").unlink()
    copy_tree(path)
    commit(path, "The newer one")
    return path


def copy_tree(path: Path) -> None:
    for name in git(ROOT, "ls-files", "-z", "-c", "-o", "--exclude-standard").split("\0")[:-1]:
        if (ROOT / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)


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
    outer = ("PREFECT_", "MAKE", "MFLAGS", "ARGS")
    own = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.run(
        command,
        cwd=project,
        env=own | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", **env},
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
