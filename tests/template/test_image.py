"""What Docker gets of a checkout, to build the image of: the project, and no secret."""

import subprocess
from pathlib import Path

from docker.utils.build import exclude_paths  # type: ignore[import-not-found]

from deployments.project import ROOT

SECRETS = (".env", ".env.local", ".netrc", "docker/server.key", "data/own.pem")
PACKAGE = ("common/__init__.py", "common/io/files.py", "common/prompts/greet.md", "data/names.csv")


def context_of(directory: Path) -> set[str]:
    """Return the files that prefect_docker's build step sends."""
    patterns = [
        line.strip()
        for line in (directory / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found: set[str] = exclude_paths(str(directory), patterns, dockerfile="docker/Dockerfile")
    return {name for name in found if (directory / name).is_file()}


def test_what_is_secret_stays_out(tmp_path: Path) -> None:
    """Should git track it."""
    (tmp_path / ".dockerignore").write_bytes((ROOT / ".dockerignore").read_bytes())
    for name in (*SECRETS, *PACKAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert context_of(tmp_path) == {".dockerignore", *PACKAGE}


def test_what_runs_read_is_in() -> None:
    read = ["deployments", ":!deployments/docs", "flows", "data", "*.toml", "prefect.yaml"]
    command = ["git", "ls-files", *read]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name for name in files.splitlines() if "/." not in name} <= context_of(ROOT)
