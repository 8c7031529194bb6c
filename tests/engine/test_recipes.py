"""The recipes of deployments/docs, run as they stand there, in a project made of them."""

import contextlib
import hashlib
import http.server
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment, run_deployment
from prefect.states import AwaitingRetry, Crashed, Failed, Pending
from prefect.utilities.collections import deep_merge
from prefect.workers.process import ProcessJobConfiguration

from deployments.project import ROOT
from deployments.servers import TemporaryServer, temporary_server, temporary_worker
from deployments.servers._processes import free_port
from tests.engine.conftest import copy_types, inner_env
from tests.engine.waiting import (
    children_of,
    ended,
    in_states,
    outcome,
    read_graph,
    wait_for,
)

pytestmark = pytest.mark.anyio

DOCS = ROOT / "deployments" / "docs"
PLAIN = (DOCS / "run-deployment.md").read_text()
RECIPES = "\n#".join([(DOCS / "recipes.md").read_text(), PLAIN])
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", RECIPES, re.DOTALL | re.MULTILINE),
)
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", RECIPES, re.DOTALL))
YAML = re.findall(r"```yaml\n# prefect.yaml\ndeployments:\n(.*?)```", RECIPES, re.DOTALL)
# What a recipe adds to what is shared by all deployments.
DEFINITIONS = re.findall(r"```yaml\n# prefect.yaml\n(definitions:\n.*?)```", RECIPES, re.DOTALL)
NAMES = "local scheduled dev prod"
POOL = "acme-local"
SECRET = "not-for-everybody"  # noqa: S105


def commands_of(section: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", SECTIONS[section], re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@dataclass(frozen=True)
class Project:
    """A project whose flows and deployments are those of the recipes.

    Attributes:
        path: Of its checkout.
        env: The environment of its commands.
    """

    path: Path
    env: Mapping[str, str]

    def run(self, command: str, cwd: Path | None = None, **env: str) -> str:
        """Run a command, and return what it said on standard output."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=cwd or self.path,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def project(checkout: Path, prefect_server: TemporaryServer) -> Project:
    """Make a project of the engine and the recipes' flows, and deploy them."""
    for example in ("flows", "tests/flows"):
        shutil.rmtree(checkout / example, ignore_errors=True)
    for path, code in FILES.items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(f"# {path}\n{code}")
    (checkout / "flows" / "__init__.py").write_text('"""The flows of the recipes."""\n')
    shipped = (checkout / "tests/engine/prefect.yaml").read_text()
    definitions = shipped.partition("\ndeployments:\n")[0].replace("engine-tests", "acme")
    declared = yaml.safe_load("\n".join([definitions, "deployments:", *YAML]))
    for added in DEFINITIONS:
        declared = deep_merge(declared, yaml.safe_load(added))
    (checkout / "prefect.yaml").write_text(yaml.safe_dump(declared))
    prefect = {name: prefect_server.env[name] for name in ("PREFECT_HOME", "PREFECT_API_URL")}
    path = f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}"
    made = Project(checkout, inner_env() | prefect | {"PATH": path, "NO_COLOR": "1"})
    made.run(f"make deploy ARGS='{NAMES}'")
    return made


@pytest.fixture(scope="module")
def worker(project: Project, prefect_server: TemporaryServer) -> Iterator[None]:
    with temporary_worker(prefect_server, POOL):
        yield


@pytest.fixture
async def client(project: Project, worker: None) -> Any:
    async with get_client() as client:
        yield client


@dataclass
class Alerts:
    """A place that alerts are sent to.

    Attributes:
        bodies: What was sent.
    """

    bodies: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def alerts(project: Project) -> Iterator[Alerts]:
    """Save the secrets of the recipes, one of them the address of a server that takes alerts."""
    taken = Alerts()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as port:
        url = f"http://127.0.0.1:{port}/{SECRET}"
        project.run("python save_blocks.py", WAREHOUSE_KEY=SECRET, ALERTS_URL=url)
        yield taken


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve HTTP on a port of 127.0.0.1."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


async def run(name: str, **parameters: Any) -> FlowRun:
    return await arun_deployment(name, parameters=parameters, timeout=240, poll_interval=0.5)


async def result_of(name: str, **parameters: Any) -> Any:
    done = await run(name, **parameters)
    assert done.state is not None
    assert done.state.is_completed(), done.state
    return await done.state.aresult()


async def read_logs(client: PrefectClient, of: FlowRun) -> str:
    logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[of.id])))
    return "\n".join(log.message for log in logs)


def most_at_once(runs: list[FlowRun]) -> int:
    """Return how many runs existed at a time, from their creation to their end."""
    changes = [(run.created, 1) for run in runs if run.created]
    changes += [(run.end_time, -1) for run in runs if run.end_time]
    assert len(changes) == 2 * len(runs)
    there = most = 0
    for _, change in sorted(changes):
        there += change
        most = max(most, there)
    return most


def test_every_recipe_has_a_test_of_its_name() -> None:
    slugs = [re.sub(r"\W+", "_", title.lower().replace("'", "")).strip("_") for title in SECTIONS]
    assert [slug for slug in slugs if f"test_{slug}" not in globals()] == []


def test_every_block_is_used() -> None:
    kinds = re.findall(r"^```(.+)$", RECIPES, re.MULTILINE)
    assert kinds.count("python") == len(FILES)
    assert kinds.count("yaml") == len(YAML) + len(DEFINITIONS)
    assert set(kinds) == {"python", "yaml", "console"}


def test_the_code_is_as_the_linter_wants_it(project: Project) -> None:
    files = " ".join(FILES)
    project.run(f"ruff check {files} && ruff format --check {files}")


@pytest.mark.slow
def test_the_types_are_right(project: Project) -> None:
    copy_types(project.path)
    project.run("mypy flows common tests/flows")


async def test_a_schedule(client: PrefectClient) -> None:
    nightly = await client.read_deployment_by_name("nightly/scheduled")
    (schedule,) = nightly.schedules
    assert schedule.active
    assert schedule.schedule.model_dump(include={"cron", "timezone"}) == {
        "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
    }
    assert nightly.global_concurrency_limit is not None
    assert nightly.global_concurrency_limit.limit == 1
    of_schedule = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[nightly.id]))

    async def planned() -> list[FlowRun]:
        return await client.read_flow_runs(flow_run_filter=of_schedule)

    runs = await wait_for(planned, "the schedule plans runs")
    assert all(run.auto_scheduled and run.parameters == {"days": [1, 2]} for run in runs)
    assert await result_of("nightly/scheduled", days=[4]) == 40


async def test_a_schedule_cancels_what_is_started_by_hand_too(client: PrefectClient) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)  # no worker takes it meanwhile
    start = partial(arun_deployment, "nightly/scheduled", scheduled_time=later, timeout=0)
    first, second = await start(), await start()
    try:
        for run in (first, second):
            await client.set_flow_run_state(run.id, Pending())  # as a worker does
        states = [(await client.read_flow_run(run.id)).state_name for run in (first, second)]
        assert states == ["Pending", "Cancelled"]
    finally:
        await client.delete_flow_run(first.id)


async def test_modules_that_flows_share(client: PrefectClient) -> None:
    assert await result_of("load-week/local", last=7) == 280


def test_a_dependency(project: Project) -> None:
    """The targets are there; tests/engine/machines locks for real."""
    for command in commands_of("A dependency"):
        project.run(f"{command} --dry-run")


async def test_job_variables_of_one_call(client: PrefectClient) -> None:
    loaded = await result_of("reload/local", days=[1, 2])
    assert loaded == ["day 1 in batches of 10", "day 2 in batches of 100"]


async def test_a_call_that_keeps_its_identity(client: PrefectClient) -> None:
    parent = await run("snapshot/local")
    assert parent.state is not None
    first = await parent.state.aresult()
    await client.set_flow_run_state(parent.id, AwaitingRetry(), force=True)

    async def completed_again() -> FlowRun | None:
        again = await client.read_flow_run(parent.id)
        assert again.state is not None
        return again if again.run_count == 2 and again.state.is_completed() else None

    again = await wait_for(completed_again, "the parent completes again")
    assert again.state is not None
    assert await again.state.aresult() == first  # with the time of the first attempt
    assert len(await children_of(client, parent)) == 2


async def test_synchronous_code_in_a_parent(client: PrefectClient) -> None:
    assert await result_of("load-listed/local", count=2) == 30


async def test_secrets(client: PrefectClient, alerts: Alerts) -> None:
    done = await run("export/local", table="orders")
    assert done.state is not None
    expected = hashlib.sha256(f"{SECRET} orders".encode()).hexdigest()
    assert await done.state.aresult() == expected
    seen = [done.model_dump_json(), await read_logs(client, done)]
    deployment = await client.read_deployment_by_name("export/local")
    assert all(SECRET not in each for each in [*seen, deployment.model_dump_json()])


async def test_files_that_siblings_share(client: PrefectClient, project: Project) -> None:
    """As processes; test_deploying_from_ci sees what containers get."""
    assert await result_of("refine/local", days=[1, 2]) == 30
    files = sorted(file.name for file in (project.path / "data").iterdir())
    assert files == ["day-1.txt", "day-2.txt"]


async def test_a_notification_when_a_parent_fails(client: PrefectClient, alerts: Alerts) -> None:
    failed = await run("nightly/local", days=[0])
    assert failed.state is not None
    assert failed.state.is_failed()
    later = datetime.now(UTC) + timedelta(hours=1)  # no worker takes it meanwhile
    crashed = await arun_deployment("nightly/local", scheduled_time=later, timeout=0)
    await client.set_flow_run_state(crashed.id, Crashed(message="Its machine died."), force=True)

    async def arrived(parent: FlowRun) -> str | None:
        texts = [str(body["text"]) for body in alerts.bodies]
        return next((text for text in texts if parent.name in text), None)

    told = {"Failed": (failed, "there is no day 0"), "Crashed": (crashed, "Its machine died.")}
    for state, (parent, message) in told.items():
        text = await wait_for(partial(arrived, parent), "the notification arrives")
        assert text.startswith(f"nightly {parent.name}: {state}. ")
        assert message in text
        ui = str(client.api_url).removesuffix("/").removesuffix("/api")
        assert text.endswith(f" {ui}/runs/flow-run/{parent.id}")
    of_notify = await client.read_deployment_by_name("notify/local")
    runs = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[of_notify.id]))
    )
    assert all(SECRET not in run.model_dump_json() for run in runs)


@pytest.mark.slow
async def test_development_and_production(client: PrefectClient, project: Project) -> None:
    project.run(commands_of("Development and production")[0])
    for stage in ("dev", "prod"):
        parent = await run(f"nightly/{stage}", days=[1])
        load = await client.read_deployment_by_name(f"load/{stage}")
        assert [run.deployment_id for run in await children_of(client, parent)] == [load.id]


async def test_development_and_production_have_what_runs_need(client: PrefectClient) -> None:
    """A variable of one stage is added to those of the pool."""
    template = (await client.read_work_pool(POOL)).base_job_template
    template["variables"]["properties"]["env"]["default"] = of_all = {"OF_ALL": "1"}
    for name, own in {"local": {}, "prod": {"STAGE": "prod"}}.items():
        load = await client.read_deployment_by_name(f"load/{name}")
        job: Any = await ProcessJobConfiguration.from_template_and_values(
            template, load.job_variables
        )
        assert job.env == of_all | own


@pytest.mark.slow
async def test_development_and_production_on_two_servers(
    client: PrefectClient, project: Project, tmp_path: Path
) -> None:
    here = f"127.0.0.1:{client.api_url.port}"
    there = f"127.0.0.1:{free_port()}"
    to_dev, to_prod = commands_of("Development and production")[1:]
    with temporary_server(tmp_path, int(there.rpartition(":")[2])) as server:
        project.run(to_dev.replace("dev.example.com:4200", here))
        project.run(to_prod.replace("prod.example.com:4200", there))
        with temporary_worker(server, POOL), server.used():
            assert await result_of("nightly/local", days=[1]) == 10
            async with get_client() as other:
                assert {run.name for run in await other.read_flow_runs()} >= {"load day 1"}
                assert other.api_url != client.api_url


@pytest.mark.slow
async def test_a_fan_out_over_hundreds(client: PrefectClient) -> None:
    parent = await run("load-all/local", days=5, at_once=2)
    assert parent.state is not None
    assert await parent.state.aresult() == 150
    runs = await children_of(client, parent)
    assert len(runs) == 5
    assert most_at_once(runs) == 2


@pytest.mark.slow
async def test_a_childs_result_for_several_parents(client: PrefectClient) -> None:
    children: list[list[str]] = []
    for _ in range(2):
        parent = await run("weekly/local")
        assert parent.state is not None
        assert await parent.state.aresult() == 30
        runs = await children_of(client, parent)
        children.append(sorted(run.name for run in runs if run.name.startswith("load")))
    assert children == [["load day 1", "load day 2"], []]

    # The child of the second parent ran, and its task did not work.
    (cleaned,) = runs
    (found,) = await client.read_task_runs(
        task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[cleaned.id]))
    )
    assert found.state_name == "Cached"


async def test_a_child_of_another_repository(
    client: PrefectClient, project: Project, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "prefect.toml", tmp_path)
    (tmp_path / "score.py").write_text(
        "from prefect import flow\n"
        "@flow\n"
        "def score(customer: str, year: int = 2013) -> dict[str, object]:\n"
        "    return {'points': len(customer), 'customer': customer}\n"
    )
    deployment = {
        "name": "live",
        "entrypoint": "score.py:score",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
        "work_pool": {
            "name": POOL,
            "job_variables": {
                "working_dir": str(tmp_path),
                "command": f"{sys.executable} -m prefect.engine",
            },
        },
    }
    (tmp_path / "prefect.yaml").write_text(json.dumps({"deployments": [deployment]}))
    with pytest.raises(AssertionError, match=r"flows/rate.py:\d+: calls score/live, which is not"):
        project.run("make check ARGS=--server")
    project.run("prefect --no-prompt deploy --all", cwd=tmp_path)
    project.run("make check ARGS=--server")
    parent = await run("rate/local", customer="acme")
    assert parent.state is not None
    assert await parent.state.aresult() == 4
    live = await client.read_deployment_by_name("score/live")
    (score,) = await children_of(client, parent)
    assert (score.deployment_id, score.parameters) == (live.id, {"customer": "acme"})


def test_a_test_of_a_parent(project: Project) -> None:
    (command,) = commands_of("A test of a parent")
    assert "2 passed" in project.run(command)


class Engine(http.server.BaseHTTPRequestHandler):
    """As much of Docker's Engine as the build of an image takes."""

    protocol_version = "HTTP/1.1"
    image = json.dumps({"Id": "sha256:5eed"}).encode()

    def do_GET(self) -> None:
        version = json.dumps({"ApiVersion": "1.44"}).encode()
        self.answer(200, version if self.path == "/version" else self.image)

    def do_POST(self) -> None:
        if self.headers["Transfer-Encoding"] == "chunked":  # the checkout
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "/build?" in self.path:
            self.answer(200, b'{"aux": {"ID": "sha256:5eed"}}\n')
        else:
            self.answer(201, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


async def test_deploying_from_ci(client: PrefectClient, project: Project, tmp_path: Path) -> None:
    """Docker's Engine and command are stand-ins: tests/engine/containers has real ones."""
    said = tmp_path / "said"
    (tmp_path / "docker").write_text(f'#!/bin/bash\necho "$*" >>{said}\n')
    (tmp_path / "docker").chmod(0o755)
    git = "git -c user.name=ci -c user.email=ci@example.com -c init.defaultBranch=main"
    project.run(f"{git} init -q && {git} add -A && {git} commit -qm 'To deploy'")
    commit = project.run("git rev-parse --short=12 HEAD").strip()
    with serving(Engine) as port:
        project.run(
            "\n".join(commands_of("Deploying from CI")),
            IMAGE_NAME="registry.example.com/team/acme-pipelines",
            REGISTRY_USER="ci",
            REGISTRY_PASSWORD=SECRET,
            DOCKER_HOST=f"tcp://127.0.0.1:{port}",
            PATH=f"{tmp_path}:{project.env['PATH']}",
        )
    image = f"registry.example.com/team/acme-pipelines:{commit}"
    login, *more = said.read_text().splitlines()
    pushes = [line for line in more if line.startswith("push ")]
    assert login == "login --username ci --password-stdin registry.example.com"
    assert set(pushes) == {f"push {image}"}
    for flow in ("nightly", "load", "export", "refine", "extract", "merge"):
        deployment = await client.read_deployment_by_name(f"{flow}/docker")
        assert deployment.job_variables["image"] == image
    template = (await client.read_work_pool("acme-docker")).base_job_template
    variables = template["variables"]["properties"]
    assert variables["volumes"]["default"] == ["acme-results:/results", "acme-data:/data"]
    env = variables["env"]["default"]
    assert (env["DATA"], env["PREFECT_LOCAL_STORAGE_PATH"]) == ("/data", "/results")


async def test_results_and_artifacts(client: PrefectClient, project: Project) -> None:
    summarize, inspect, show = commands_of("Results and artifacts")
    project.run(summarize)
    assert "There are **3** rows." in project.run(inspect)
    (artifact,) = await client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["rows"]))
    )
    shown = project.run(show.replace("<id of the run>", str(artifact.flow_run_id)))
    assert shown == "3 rows\n"


async def test_coming_from_run_deployment(client: PrefectClient) -> None:
    plain = await run("plain/local", days=[1, 2])
    assert plain.state is not None
    assert await plain.state.aresult() == 30
    runs = await children_of(client, plain)
    assert sorted(run.name for run in runs) == ["load day 1", "load day 2"]
    assert set(await read_graph(client, plain)) == {run.id for run in runs}


def test_option_by_option() -> None:
    page = (ROOT / "deployments" / "docs" / "run-deployment.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|", page.partition("## Option by option")[2], re.MULTILINE)
    told = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(told) == sorted(["run_deployment", *inspect.signature(run_deployment).parameters])


@pytest.mark.parametrize("parent", ["plain/local", "nightly/local"])
async def test_coming_from_run_deployment_with_a_child_that_fails(
    client: PrefectClient, parent: str
) -> None:
    queue = await client.read_work_queue_by_name("children", work_pool_name=POOL)
    await client.update_work_queue(queue.id, is_paused=True)  # nobody starts them
    try:
        failing = await arun_deployment(parent, parameters={"days": [1, 2, 3]}, timeout=0)
        first, *_ = await in_states(client, failing, *["Scheduled"] * 3)
        await client.set_flow_run_state(first.id, Failed(message="there is no such day"))
        failed = await ended(client, failing)
    finally:
        await client.update_work_queue(queue.id, is_paused=False)
    assert failed.state is not None
    assert failed.state.is_failed()
    assert "there is no such day" in str(failed.state.message)
    assert [state for _, state in await outcome(client, failing)].count("Cancelled") == 2


def test_each_line_of_the_plain_pattern_is_explained() -> None:
    marks = re.findall(r"  # (\d)$", FILES["flows/plain.py"], re.MULTILINE)
    rows = re.findall(r"^\| (\d) \|", SECTIONS["Coming from `run_deployment`"], re.MULTILINE)
    assert sorted(marks) == rows == [str(number) for number in range(1, len(rows) + 1)]
