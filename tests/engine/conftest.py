import asyncio
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.deploy import deploy_manifest
from deployments.project import ROOT, Manifest
from deployments.servers import TemporaryServer, temporary_worker

# The project of these tests. What is around them, users replace by their own.
MANIFEST = ROOT / "tests" / "engine" / "prefect.yaml"
USERS = ("README.md", "benchmarks", "data", "flows", "tests/flows", "tests/template")


@pytest.fixture(scope="session")
def deployed(prefect_server: TemporaryServer) -> Manifest:
    """Deploy the flows of these tests, in place of the user's, for `worker`."""
    manifest = Manifest.load(MANIFEST).named("local")
    asyncio.run(deploy_manifest(manifest, prefect_server.env))
    return manifest


@pytest.fixture(scope="session")
def worker(prefect_server: TemporaryServer, deployed: Manifest) -> Iterator[None]:
    """Run a worker for these flows: that of the fixture's name elsewhere is for the user's."""
    with temporary_worker(prefect_server, "engine-tests-local"):
        yield


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository in which the flows of these tests are the user's."""
    copy = copy_repository(tmp_path_factory.mktemp("a clone") / "my flows", *USERS)
    shutil.copy(MANIFEST, copy / "prefect.yaml")
    replace(copy / ".dockerignore", "\ntests\n", "\n")
    return copy


def copy_repository(copy: Path, *without: str) -> Path:
    """Copy what git has, but for some paths, with this environment in its `.venv`."""
    paths = [".", *(f":!{path}" for path in (".venv", *without))]
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    for name in files:
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    os.utime(copy / "requirements-dev.txt", (0, 0))  # older than the environment: don't remake
    return copy


def copy_types(copy: Path) -> None:
    """Give a copy what mypy knows here: to read Prefect's types again takes a minute."""
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")


def replace(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


def run_in_clones(manifest: str) -> str:
    """Let the deployments named `local` of a manifest run in clones, as docs/machines.md says."""
    page = (ROOT / "deployments" / "docs" / "machines.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    steps, variables = (
        next(textwrap.dedent(block) for block in blocks if part in block)
        for part in ("git_clone", "RESULTS_PERSIST_BY_DEFAULT")
    )
    manifest = re.sub(r"(?m)^build:\n(?:  .*\n|pull:\n)+", lambda _: steps, manifest, count=1)
    old = re.compile(
        r"^      job_variables:\n        working_dir: \.(.*\n)(        .*\n)+", re.MULTILINE
    )
    assert old.search(manifest)
    return old.sub(lambda _: textwrap.indent(variables, "      "), manifest, count=1)


def run_command(
    arguments: list[str], cwd: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command of a project's engine, with this environment's Python."""
    return subprocess.run(
        [sys.executable, "-m", "deployments", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def clean_env(tmp_path: Path) -> dict[str, str]:
    """An environment with a home of its own, and nothing of Prefect's or of an outer make's."""
    return inner_env() | {"HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def inner_env() -> dict[str, str]:
    """This environment without what Prefect or an outer make put there."""
    outer = ("PREFECT_", "MAKE", "MFLAGS", "ARGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(outer)}
