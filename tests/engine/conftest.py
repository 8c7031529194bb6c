import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deployments.commands._manifest import ROOT


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, with this environment in its `.venv`."""
    copy = tmp_path_factory.mktemp("a clone") / "parent flows"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    os.utime(copy / "requirements-dev.txt", (0, 0))  # older than the environment: don't remake
    return copy


@pytest.fixture
def clean_env(tmp_path: Path) -> dict[str, str]:
    """An environment with a home of its own, and nothing of Prefect's or of an outer make's."""
    return inner_env() | {"HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def inner_env() -> dict[str, str]:
    """This environment without what Prefect or an outer make put there."""
    outer = ("PREFECT_", "MAKE", "MFLAGS", "ARGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(outer)}
