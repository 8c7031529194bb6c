"""The README's commands, run as they stand there, in a copy at a path with a space."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deployments.project import ROOT
from deployments.servers._log import check_server_log
from deployments.servers._processes import free_port
from tests.engine.waiting import SECONDS, wait_until

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]


def bash(script: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_every_command_is_known_here() -> None:
    """A new command in the README needs a test below."""
    assert COMMANDS == [
        "make demo",
        "make init NAME=acme-pipelines",  # tests/template/test_init.py
        "source .venv/bin/activate",
        "prefect server start",
        "source .venv/bin/activate",
        "export PREFECT_API_URL=http://127.0.0.1:4200/api",
        "make deploy",
        "prefect worker start --pool local",
        "python -m deployments run flight-delays/local -p month=2",
        # tests/engine/containers
        "make up",
        "export PREFECT_API_URL=http://127.0.0.1:4200/api",
        ".venv/bin/prefect deployment run flight-delays/docker --watch",
    ]


def test_the_readme_is_short_and_its_files_exist() -> None:
    assert len(README.splitlines()) < 130
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_parent_in_the_readme_is_the_one_in_the_repository() -> None:
    (code,) = re.findall(r"```python\n(@parent_flow.*?)```", README, re.DOTALL)
    source = (ROOT / "flows" / "flight_delays.py").read_text()
    without_docstring = re.sub(r'    """.*?"""\n', "", source, flags=re.DOTALL)
    assert code in without_docstring


def test_the_workflow_deploys_as_the_recipe_says() -> None:
    recipes = (ROOT / "deployments" / "RECIPES.md").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "\n$ make deploy ARGS=docker\n" in recipes
    assert "\n      - run: make deploy ARGS=docker\n" in workflow


def test_make_demo(checkout: Path, clean_env: dict[str, str]) -> None:
    """Its options are proven in tests/engine/test_demo.py."""
    done = bash("make demo", checkout, clean_env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(row["airport"], row["flights"], row["cancelled"]) for row in report["ranking"]] == [
        ("EWR", 9893, 238),
        ("JFK", 9161, 100),
        ("LGA", 7950, 183),
    ]
    assert "delays 2013-01" in done.stderr
    assert "`.venv/bin/python -m deployments demo -p month=2`" in README


@contextlib.contextmanager
def terminal(script: str, cwd: Path, env: dict[str, str], log: Path) -> Iterator[None]:
    """A command that stays in its terminal until its group is told to end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=cwd,
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_an_own_server_a_worker_elsewhere_and_a_run(
    checkout: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    port = str(free_port())
    start = COMMANDS.index("source .venv/bin/activate")
    activate, server, again, export, deploy, worker, run = (
        command.replace("4200", port) for command in COMMANDS[start : start + 7]
    )
    assert again == activate
    activate = f"source '{checkout}/.venv/bin/activate'"
    # The worker and who reads results share the storage in it.
    env = clean_env | {"PREFECT_SERVER_API_PORT": port, "PREFECT_HOME": str(tmp_path / "home")}
    server_env = env | {"PREFECT_HOME": str(tmp_path / "server")}
    server_log, worker_log = tmp_path / "server.log", tmp_path / "worker.log"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with terminal(f"{activate}; exec {server}", checkout, server_env, server_log):
        wait_until(lambda: "dashboard" in server_log.read_text(), "the server says where its UI is")
        for command in (deploy, "prefect deploy --name local"):
            done = bash("\n".join([activate, export, command]), checkout, env)
            assert done.returncode == 0, done.stdout + done.stderr
        with terminal(f"{activate}; {export}; exec {worker}", elsewhere, env, worker_log):
            done = bash("\n".join([activate, export, run]), checkout, env)
            logs = worker_log.read_text() + server_log.read_text()
            assert done.returncode == 0, done.stdout + done.stderr + logs
            assert re.search("delays 2013-02 +Completed", done.stderr), done.stderr
            assert json.loads(done.stdout)["month"] == 2
    check_server_log(server_log)
