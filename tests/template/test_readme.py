"""The README's commands, run as they stand there, in a copy at a path with a space."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from markdown_it import MarkdownIt
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment

from deployments.project import ROOT
from deployments.servers._log import check_server_log
from deployments.servers._processes import free_port
from deployments.testing import Stubs
from flows.airport_delays import AirportDelays, airport_delays
from flows.delay_report import delay_report, summarize
from tests.engine.waiting import SECONDS, wait_until

README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "benchmarks/*.md",
        "deployments/*.md",
        "deployments/docs/*.md",
        "deployments/init/starter/*.md",
        "docker/*.md",
        "tests/engine/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
]
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
    """A new command in the README needs a test below, or elsewhere."""
    assert COMMANDS == [
        "make demo",
        "make dev",  # tests/engine/test_dev.py
        ".venv/bin/python -m deployments run flight-delays/local -p month=2",
        "make deploy",
        ".venv/bin/prefect worker start --pool parent-flows-local",
        "make init NAME=acme",  # tests/template/test_init.py
        "make flow NAME=clean-gauges",  # tests/template/test_flow.py
        "make dev",
    ]


def paragraphs(page: Path) -> list[str]:
    """Return what a reader sees outside of code blocks: paragraphs, headings, items and cells.

    That is words and inline code, but neither addresses of links nor descriptions of pictures.
    """
    shown = {"text", "code_inline", "softbreak"}
    return [
        "".join(part.content or " " for part in token.children or [] if part.type in shown)
        for token in MarkdownIt("commonmark").enable("table").parse(page.read_text())
        if token.type == "inline"
    ]


def words(text: str) -> list[str]:
    """Return the words of a text, which dashes and the like are not."""
    return [word for word in text.split() if re.search(r"\w", word)]


@pytest.mark.parametrize(
    ("page", "limit"), [("README.md", 700), ("deployments/init/starter/README.md", 300)]
)
def test_a_page_for_people_in_a_hurry_is_short(page: str, limit: int) -> None:
    assert sum(len(words(paragraph)) for paragraph in paragraphs(ROOT / page)) <= limit


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CHANGELOG"], ids=str)
def test_a_page_is_understood_at_first_reading(page: Path) -> None:
    """No paragraph has over 60 words, and no sentence over 25."""
    for paragraph in paragraphs(ROOT / page):
        assert len(words(paragraph)) <= 60, paragraph
        for sentence in re.split(r"(?<=[.!?:])\s", paragraph):
            assert len(words(sentence)) <= 25, sentence


def anchors(page: Path) -> list[str]:
    """Return what links to the headings of a page end with, as GitHub makes it."""
    text = re.sub("```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    there = ROOT if "starter" in page.parts else (ROOT / page).parent
    for file, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text()):
        target = there / file if file else ROOT / page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


@pytest.mark.anyio
async def test_the_parent_in_the_readme_runs(stubs: Stubs) -> None:
    """Its code is whole; its flow is a shorter one than flows/flight_delays.py."""
    delays = AirportDelays(
        airport="EWR",
        month=2,
        flights=1,
        cancelled=0,
        mean_dep_delay=1,
        share_delayed=0,
        worst_carrier=None,
    )
    report = summarize([delays, delays])
    stubs.returns(airport_delays, delays)
    stubs.returns(delay_report, report)
    there: dict[str, Any] = {}
    exec(CODE[0], there)  # noqa: S102 - our own page
    assert await there["flight_delays"](["EWR", "EWR"], month=2) == report
    assert [name for name, _ in stubs.calls] == ["airport-delays", "airport-delays", "delay-report"]


@pytest.mark.anyio
async def test_the_plain_parent_in_the_readme_is_right() -> None:
    there = {
        "asyncio": asyncio,
        "flow": flow,
        "FlowRun": FlowRun,
        "arun_deployment": create_autospec(arun_deployment, return_value="a run"),
    }
    exec(CODE[1], there)  # noqa: S102 - our own page
    assert await there["flight_delays"].fn(["EWR", "JFK"], month=2) == ["a run", "a run"]


def test_the_workflow_deploys_as_the_recipe_says() -> None:
    recipes = (ROOT / "deployments" / "docs" / "recipes.md").read_text()
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


def test_an_own_server_a_worker_and_a_run(
    checkout: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    port = str(free_port())
    run, deploy, worker = COMMANDS[2:5]
    (checkout / ".env").write_text(f"PREFECT_API_URL=http://127.0.0.1:{port}/api\n")
    # The worker and who reads results share the storage in it.
    env = clean_env | {"PREFECT_SERVER_API_PORT": port, "PREFECT_HOME": str(tmp_path / "home")}
    server_env = env | {"PREFECT_HOME": str(tmp_path / "server")}
    server_log, worker_log = tmp_path / "server.log", tmp_path / "worker.log"
    with terminal("exec .venv/bin/prefect server start", checkout, server_env, server_log):
        wait_until(lambda: "dashboard" in server_log.read_text(), "the server says where its UI is")
        for command in (deploy, ".venv/bin/prefect deploy --name local"):
            done = bash(command, checkout, env)
            assert done.returncode == 0, done.stdout + done.stderr
        with terminal(f"exec {worker}", checkout, env, worker_log):
            done = bash(run, checkout, env)
            logs = worker_log.read_text() + server_log.read_text()
            assert done.returncode == 0, done.stdout + done.stderr + logs
            assert re.search("delays 2013-02 +Completed", done.stderr), done.stderr
            assert json.loads(done.stdout)["month"] == 2
    check_server_log(server_log)
