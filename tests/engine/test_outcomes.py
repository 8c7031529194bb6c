"""What `run` says of a result of any type; the demo says the same."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from deployments.deploy import deploy_manifest
from deployments.project import Manifest
from deployments.servers import TemporaryServer
from tests.engine.conftest import MANIFEST, run_command

OUTCOMES = {
    "nothing": (None, None),
    "numbers": ([1, 2], None),
    "gone": (..., "gone/local completed. Its result was not persisted: set persist_res"),
    "wrong": (
        ...,
        "wrong/local completed. Its result is not what it should be: 0: Input should be a "
        "valid integer, unable to parse string as an integer",
    ),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(checkout: Path, prefect_server: TemporaryServer, worker: None) -> Path:
    """A project of these parents, which are deployed."""
    pool = "work_pool: {{name: engine-tests-local, work_queue_name: parents}}"
    entry = f"  - {{{{name: local, entrypoint: tests/engine/outcomes.py:{{}}, {pool}}}}}"
    definitions = MANIFEST.read_text().partition("\ndeployments:\n")[0]
    manifest = checkout / "prefect.yaml"
    manifest.write_text("\n".join([definitions, "deployments:", *map(entry.format, OUTCOMES)]))
    asyncio.run(deploy_manifest(Manifest.load(manifest), prefect_server.env))
    return checkout


@pytest.mark.parametrize("name", list(OUTCOMES))
def test_a_result_of_any_type(project: Path, prefect_server: TemporaryServer, name: str) -> None:
    result, error = OUTCOMES[name]
    done = run_command(["run", name, "--json"], project, dict(prefect_server.env))
    assert done.returncode == (error is not None), done.stderr
    if error is None:
        assert json.loads(done.stdout) == result
    else:
        assert done.stdout == ""
        (line,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
        assert line.startswith(f"error: {error}")
        assert "Traceback" not in done.stderr
