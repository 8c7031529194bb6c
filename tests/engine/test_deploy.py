"""`deploy`: what it tells, what it changes, and what it leaves alone."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled
from rich.console import Console

from deployments.deploy import find_leftovers
from deployments.deploy._prune import delete
from deployments.deploy._schedules import plain_schedules
from deployments.project import Manifest
from deployments.servers import TemporaryServer, explain, require_server, temporary_worker
from tests.engine.conftest import copy_repository, replace, run_command

pytestmark = pytest.mark.anyio

DAY = "2026-01-31"
FLOWS = """
from prefect import flow


@flow
def sift(day: int = 1) -> int:
    return day
"""
MANIFEST = """
name: sieve
pull:
  - prefect.deployments.steps.set_working_directory: {directory: /app}
definitions:
  work_pools:
    sieve-pool: {type: process, queues: {parents: {}, children: {concurrency_limit: 8}}}
  automations:
    - name: "sieve: pause"
      trigger: {type: event, expect: [sieve.pause]}
      actions: [{type: do-nothing}]
deployments:
  - name: local
    version: "1"
    entrypoint: flows/sift.py:sift
    description: Load a day.
    tags: [sieve, etl]
    parameters: {day: 2}
    work_pool:
      name: sieve-pool
      work_queue_name: children
      job_variables: {env: {STAGE: "{{ $STAGE }}"}}
    concurrency_limit: {limit: 2, collision_strategy: CANCEL_NEW}
    schedules:
      - {cron: "0 3 * * *", timezone: Europe/Berlin, parameters: {day: 3}}
      - {interval: 3600, active: false}
    triggers:
      - type: event
        expect: [sieve.load]
        match_related: {prefect.resource.id: prefect.tag.sieve}
        parameters: {day: "{{ event.payload.day }}"}
"""


@dataclass
class Project:
    """A project of one flow, and what its commands say."""

    path: Path
    env: dict[str, str]

    def declare(self, *edits: tuple[str, str]) -> None:
        for old, new in edits:
            assert old in (self.path / "prefect.yaml").read_text()
            replace(self.path / "prefect.yaml", old, new)

    def deployments(self, *declared: dict[str, Any]) -> None:
        """Declare other deployments."""
        manifest = yaml.safe_load(MANIFEST)
        (first,) = manifest["deployments"]
        pool = {"name": "sieve-pool", "work_queue_name": "children"}
        kept = {"entrypoint": first["entrypoint"], "work_pool": pool}
        manifest["deployments"] = [kept | each for each in declared]
        (self.path / "prefect.yaml").write_text(yaml.safe_dump(manifest))

    def say(self, *arguments: str, status: int = 0) -> list[str]:
        done = run_command(list(arguments), self.path, self.env)
        assert done.returncode == status, done.stderr
        return done.stderr.splitlines()


@pytest.fixture
def project(prefect_server: TemporaryServer, tmp_path: Path) -> Iterator[Project]:
    path = copy_repository(tmp_path / "sieve", "flows", "tests", "docker", "benchmarks", "data")
    (path / "flows").mkdir()
    (path / "flows" / "__init__.py").touch()
    (path / "flows" / "sift.py").write_text(FLOWS)
    (path / "prefect.yaml").write_text(MANIFEST)
    yield Project(path, {**prefect_server.env, "STAGE": "test"})
    for name in ("sieve", "sieve-x", "sieve-checked"):  # nothing of it is left for the next one
        nothing = f"name: {name}\ndefinitions: {{work_pools: {{}}}}\ndeployments: []\n"
        (path / "prefect.yaml").write_text(nothing)
        asyncio.run(delete_leftovers(Manifest.load(path / "prefect.yaml")))


async def delete_leftovers(manifest: Manifest) -> None:
    async with get_client() as client:
        for leftover in await find_leftovers(client, manifest):
            await delete(client, leftover)


async def read(name: str) -> DeploymentResponse | None:
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None


THINGS = [
    "work pool sieve-pool",
    "work queue sieve-pool/parents",
    "work queue sieve-pool/children",
    "automation sieve: mark silent runs as crashed",
    "automation sieve: mark runs that don't start as crashed",
    "automation sieve: clean up again",
    "automation sieve: pause",
    "deployment sift/local",
]


async def test_what_is_created_is_told_and_twice_changes_nothing(project: Project) -> None:
    assert project.say("deploy") == [f"created: {each}" for each in THINGS]
    before = await read("sift/local")
    assert before is not None
    assert [each.parameters for each in before.schedules if each.active] == [{"day": 3}]
    assert before.parameters == {"day": 2}
    there = await plain("sift/local")
    assert project.say("deploy") == [f"unchanged: {each}" for each in THINGS]
    assert await plain("sift/local") == there


@pytest.mark.slow
async def test_each_changed_field_is_named(project: Project) -> None:
    project.say("deploy")
    flow = FLOWS.replace("day: int = 1", "day: int | None = 1")
    (project.path / "flows" / "sift.py").write_text(flow)
    project.declare(
        ("Load a day.", "Load one."),
        ("[sieve, etl]", "[sieve]"),
        ("{day: 2}", "{day: 4}"),
        ("queue_name: children", "queue_name: parents"),
        ("{env: {STAGE", "{env: {STAGES"),
        ("/app", "/ap"),
        ("{limit: 2,", "{limit: 3,"),
        ("0 3 * * *", "0 4 * * *"),
        ("expect: [sieve.load]", "expect: [sieve.reload]"),
        ('version: "1"', 'version: "2"'),
        ("{concurrency_limit: 8}", "{concurrency_limit: 9}"),
        ("[sieve.pause]", "[sieve.stop]"),
    )
    assert project.say("deploy") == [
        "unchanged: work pool sieve-pool",
        "unchanged: work queue sieve-pool/parents",
        "changed: work queue sieve-pool/children: concurrency_limit",
        "unchanged: automation sieve: mark silent runs as crashed",
        "unchanged: automation sieve: mark runs that don't start as crashed",
        "unchanged: automation sieve: clean up again",
        "changed: automation sieve: pause: trigger",
        "changed: deployment sift/local: description, version, tags, parameters, parameter schema, "
        "work queue, job variables, pull steps, concurrency limit, schedules, triggers",
    ]


@pytest.mark.slow
async def test_new_code_that_a_step_uploads_arrives(project: Project) -> None:
    """Nothing on the server differs, and the deploy has to do its work all the same."""
    step = "prefect.deployments.steps.run_shell_script"
    upload = f"  - {step}: {{script: cp flows/sift.py"
    project.declare(("pull:", f"build:\n{upload} built.py}}\npush:\n{upload} pushed.py}}\npull:"))
    project.say("deploy")
    (project.path / "flows" / "sift.py").write_text(f"{FLOWS}# newer")
    assert project.say("deploy")[-1] == "unchanged: deployment sift/local"
    for copy in ("built.py", "pushed.py"):
        assert (project.path / copy).read_text().endswith("# newer")


FULL: dict[str, Any] = {
    "description": "Load a day.",
    "tags": ["etl"],
    "version": "1",
    "parameters": {"day": 2},
    "paused": True,
    "enforce_parameter_schema": False,
    "concurrency_limit": {"limit": 2, "collision_strategy": "CANCEL_NEW"},
    "triggers": [{"type": "event", "expect": ["sieve.load"]}],
}


@pytest.mark.slow
async def test_what_is_taken_out_of_the_file_is_gone_from_the_server(project: Project) -> None:
    cron = {"cron": "* * * * *"}
    project.deployments(
        {"name": "one", **FULL, "schedules": [cron, {"interval": 60, "parameters": {"day": 3}}]},
        {"name": "slugs", **FULL, "schedules": [{**cron, "slug": "a"}, {**cron, "slug": "b"}]},
        {"name": "empty", **FULL, "schedules": [cron]},
        {"name": "some", **FULL, "schedules": [cron, {"interval": 60, "slug": "b"}]},
    )
    project.say("deploy")
    project.deployments(
        {"name": "one"},
        {"name": "slugs"},
        {"name": "empty", "schedules": []},
        {"name": "some", "schedules": [cron]},
        {"name": "new"},
        {"name": "newer", "schedules": [cron]},
    )
    fields = (
        "description, version, tags, parameters, enforce_parameter_schema, paused, "
        "concurrency limit, schedules, triggers"
    )
    assert project.say("deploy")[-6:] == [
        *(f"changed: deployment sift/{name}: {fields}" for name in ("one", "slugs", "empty")),
        f"changed: deployment sift/some: {fields}",
        "created: deployment sift/new",
        "created: deployment sift/newer",
    ]
    assert await plain("sift/one") == await plain("sift/new")
    assert await plain("sift/slugs") == await plain("sift/new")
    assert await plain("sift/empty") == await plain("sift/new")
    assert await plain("sift/some") == await plain("sift/newer")
    assert all(each.startswith("unchanged: ") for each in project.say("deploy"))


async def plain(name: str) -> dict[str, Any]:
    """What a deployment is, but for what differs between any two."""
    there = await read(name)
    assert there is not None
    its_own = {"id", "created", "updated", "name", "status", "last_polled"}
    found = there.model_dump(exclude={*its_own, "schedules", "global_concurrency_limit"})
    found["limit"] = there.global_concurrency_limit and there.global_concurrency_limit.limit
    found["schedules"] = plain_schedules(there.schedules, [])
    return found


@pytest.mark.slow
async def test_it_comes_to_rest(project: Project) -> None:
    rrule = {"rrule": "FREQ=DAILY;COUNT=3", "timezone": "Europe/Berlin"}
    interval = {"interval": 3600, "anchor_date": "2026-01-01T00:00:00+00:00"}
    project.deployments(
        {"name": "rrule", "schedules": [rrule, {**rrule, "parameters": {"day": 3}}]},
        {"name": "interval", "schedules": [interval, {"interval": "PT1H", "slug": "hourly"}]},
        {"name": "dated", "schedules": [{"cron": "0 3 * * *", "parameters": {"day": DAY}}]},
        {"name": "dates", "parameters": {"day": DAY}, "enforce_parameter_schema": False},
    )
    flows = project.path / "flows" / "sift.py"
    flows.write_text(FLOWS.replace("day: int = 1) -> int", "day: Any = 1) -> Any"))
    flows.write_text(f"from typing import Any\n{flows.read_text()}")
    project.say("deploy")
    there = await read("sift/rrule")
    assert there is not None
    assert there.description is None
    names = ("rrule", "interval", "dated", "dates")
    unchanged = [f"unchanged: deployment sift/{name}" for name in names]
    assert project.say("deploy")[-4:] == unchanged
    replace(project.path / "prefect.yaml", "2026-01-01T00", "2026-01-01T01")
    assert project.say("deploy")[-3] == "changed: deployment sift/interval: schedules"


@pytest.mark.slow
async def test_a_schedule_that_somebody_paused_stays_paused(project: Project) -> None:
    schedules: list[dict[str, Any]] = [
        {"cron": "0 3 * * *", "parameters": {"day": 3}},
        {"cron": "0 4 * * *", "active": True},
        {"interval": 60},
        {"interval": 60, "parameters": {"day": 3}, "slug": "three"},
        {"rrule": "FREQ=DAILY"},
        {"cron": "0 5 * * *"},
        {"cron": "0 6 * * *", "parameters": {"day": 1}},
        {"cron": "0 6 * * *", "parameters": {"day": 2}},
    ]
    project.deployments({"name": "ours", "schedules": schedules})
    project.say("deploy")
    project.deployments({"name": "plain", "schedules": [*schedules[:3], *schedules[4:]]})
    plainly(project)
    for name in ("sift/ours", "sift/plain"):
        await pause(name, "0 5 * * *", "{'day': 1}")
    project.deployments(
        {"name": "ours", "schedules": schedules},
        {"name": "plain", "schedules": [*schedules[:3], *schedules[4:]]},
    )
    project.say("deploy")
    ours, theirs = await read("sift/ours"), await read("sift/plain")
    assert ours is not None
    assert theirs is not None
    assert active(ours) == active(theirs) == ["0 4 * * *", "0 5 * * *", "0 6 * * *"]
    for there in (ours, theirs):
        (three,) = [each for each in there.schedules if "0 3" in str(each.schedule)]
        assert three.parameters == {"day": 3}
    assert all(each.startswith("unchanged: ") for each in project.say("deploy"))
    project.deployments({"name": "ours", "schedules": [{**schedules[0], "active": True}]})
    assert project.say("deploy", "ours")[-2] == "changed: deployment sift/ours: schedules"
    ours = await read("sift/ours")
    assert ours is not None
    assert active(ours) == ["0 3 * * *"]


def active(there: DeploymentResponse) -> list[str]:
    return sorted(
        str(getattr(each.schedule, "cron", each.schedule))
        for each in there.schedules
        if each.active
    )


async def pause(name: str, *but: str) -> None:
    """Pause schedules, as the UI does it."""
    there = await read(name)
    assert there is not None
    async with get_client() as client:
        for each in there.schedules:
            if not any(text in repr(each) for text in but):
                await client.update_deployment_schedule(there.id, each.id, active=False)


def plainly(project: Project) -> None:
    """Deploy as somebody does who does not use our command."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=project.path, env=project.env, check=True, capture_output=True)


@pytest.mark.slow
async def test_a_deploy_that_fails_midway_says_why_and_what_it_did(project: Project) -> None:
    missing = {"env": {"STAGE": "{{ prefect.blocks.json.nowhere }}"}}
    pool = {"name": "sieve-pool", "work_queue_name": "children", "job_variables": missing}
    second = {"name": "second", "work_pool": pool}
    third = {"name": "third", "schedules": [{"cron": "0 3 * * *"}]}
    project.deployments({"name": "first", "schedules": [{"cron": "0 3 * * *"}]}, third)
    project.say("deploy")
    for schedules in ([{"cron": "0 4 * * *"}], []):
        first = {"name": "first", "schedules": schedules}
        project.deployments(first, second, {**third, "schedules": [{"cron": "0 5 * * *"}]})
        *_, changed, unchanged, error = project.say("deploy", status=1)
        assert changed == "changed: deployment sift/first: schedules"
        assert unchanged == "unchanged: deployment sift/third"
        assert error.startswith("error: `prefect deploy` failed: ")
        assert "json/block_documents/name/nowhere" in error
        there = await read("sift/first")
        assert there is not None
        assert active(there) == [each["cron"] for each in schedules]
    project.deployments({"name": "second", "schedules": [{"daily": True}]})
    (refusal,) = project.say("deploy", status=1)
    assert refusal.endswith("deployments.0.schedules.0.daily: Extra inputs are not permitted")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["build", "push"])
async def test_a_step_that_fails_says_why_and_leaves_the_server_alone(
    project: Project, kind: str
) -> None:
    step = "prefect.deployments.steps.run_shell_script"
    why = "echo pulling; echo 'workers clone the commit: commit and push first' >&2; exit 1"
    refusing = {step: {"script": why, "shell": True}}
    name = f"{kind}-steps"
    second = {"name": f"{name}-2", kind: [{step: {"script": "true"}}, refusing]}
    project.deployments({"name": f"{name}-1"}, second)
    assert project.say("deploy", status=1)[-1] == (
        f"error: prefect.yaml: the {kind} step {step} failed: `run_shell_script` failed with "
        "error code 1: workers clone the commit: commit and push first"
    )
    for number in (1, 2):
        assert await read(f"sift/{name}-{number}") is None


@pytest.mark.slow
async def test_check_names_what_is_missing_and_left_over(
    project: Project, prefect_server: TemporaryServer
) -> None:
    # Of its own: a pool counts as served for a while when its worker has stopped.
    project.declare(
        ("name: sieve\n", "name: sieve-checked\n"),
        ("sieve: pause", "sieve-checked: pause"),
        ("sieve-pool", "sieve-checked-pool"),
        ("name: local", "name: checked"),
    )
    project.say("deploy")
    project.declare(("name: checked\n", "name: daily\n"))
    project.say("deploy")
    async with get_client() as client:
        (automation,) = await client.read_automations_by_name("sieve-checked: pause")
        await client.delete_automation(automation.id)
    with temporary_worker(prefect_server, "sieve-checked-pool"):
        assert project.say("check", "--server", status=1) == [
            "automation sieve-checked: pause does not exist: `python -m deployments deploy`",
            "no longer declared: deployment sift/checked: `python -m deployments deploy --prune`",
        ]


@pytest.mark.slow
async def test_a_rename_with_prune_leaves_nothing_behind(project: Project) -> None:
    project.say("deploy")
    project.declare(
        ("name: local", "name: daily"),
        ("sieve-pool: {type", "sieve-renamed: {type"),
        ("name: sieve-pool", "name: sieve-renamed"),
        ("sieve: pause", "sieve: stop"),
    )
    left = [
        "deployment sift/local",
        "automation sieve: pause",
        "work queue sieve-pool/children",
        "work queue sieve-pool/parents",
        "work pool sieve-pool",
    ]
    said = project.say("deploy", "--prune", status=1)
    undeclared = [each for each in said if each.startswith("no longer")]
    assert sorted(undeclared) == sorted(f"no longer declared: {each}" for each in left)
    assert said[-1].startswith("error: --prune deletes what is no longer declared")
    assert await read("sift/local") is not None
    said = project.say("deploy", "--prune", "--yes")
    assert sorted(said[-5:]) == sorted(f"deleted: {each}" for each in left)
    async with get_client() as client:
        assert not [
            each
            for each in await client.read_automations()
            if "sieve.load" in str(each) and "local" in each.name
        ]
        assert "sieve-pool" not in [each.name for each in await client.read_work_pools()]
    assert all(each.startswith("unchanged") for each in project.say("deploy"))


@pytest.mark.slow
async def test_others_are_left_alone_and_unfinished_runs_are_named(project: Project) -> None:
    project.say("deploy")
    text = (project.path / "prefect.yaml").read_text()
    # A deployment of others, in the same pool and queue; and a project whose name begins alike.
    project.declare(("name: local", "name: other"))
    plainly(project)
    project.declare(
        ("name: sieve\n", "name: sieve-x\n"),
        ("name: other", "name: third"),
        ("sieve: pause", "sieve-x: pause"),
        ("sieve-pool", "sieve-x-pool"),
    )
    project.say("deploy")
    (project.path / "prefect.yaml").write_text(
        text.replace("name: local", "name: mine")
        .replace("queue_name: children", "queue_name: parents")
        .replace(", children: {concurrency_limit: 8}", "")
    )
    run = await arun_deployment("sift/local", timeout=0)
    said = project.say("deploy", "--prune", "--yes", status=1)
    assert f"no longer declared: deployment sift/local: unfinished runs: {run.name}" in said
    assert said[-2:] == [
        "kept: deployment sift/local: its runs are unfinished: let them end, or cancel them",
        "kept: work queue sieve-pool/children: in use by "
        f"deployment local, deployment other, run {run.name}",
    ]
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Cancelled())
    said = project.say("deploy", "--prune", "--yes", status=1)
    assert said[-2:] == [
        "deleted: deployment sift/local",
        "kept: work queue sieve-pool/children: in use by deployment other",
    ]
    assert await read("sift/other") is not None
    assert await read("sift/third") is not None


@pytest.mark.slow
async def test_what_another_project_deployed_since_is_not_ours_to_delete(project: Project) -> None:
    project.say("deploy")
    plainly(project)  # the very same, from another checkout
    project.declare(("name: local", "name: daily"))
    said = project.say("deploy", "--prune", "--yes")
    assert said[-1] == "created: deployment sift/daily"
    assert await read("sift/local") is not None
    async with get_client() as client:  # nothing else would
        there = await client.read_deployment_by_name("sift/local")
        await client.delete_deployment(there.id)


class Answers(BaseHTTPRequestHandler):
    """A server that answers everything alike, but what Prefect it is."""

    status = 200
    text = ""

    def do_GET(self) -> None:
        if self.path.endswith("/admin/version"):
            self.answer(200, json.dumps("3.1.0"))
        elif "/csrf-token" in self.path:
            self.answer(422, "CSRF protection is disabled.")
        else:
            self.answer(self.status, self.text)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.status, self.text)

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[tuple[type[Answers], str]]:
    class Own(Answers):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Own, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NO_API = "{url} is no Prefect API: correct PREFECT_API_URL in .env, which ends with /api"
REFUSALS = [
    (401, "", "/api/", "{url} refuses us (401): set PREFECT_API_AUTH_STRING in .env, or correct"),
    (429, "", "/api/", "{url} has had too many requests (429): try again later"),
    (404, "", "/", NO_API),
    (200, "<html>", "/", NO_API),
    (
        422,
        '{"detail": "extra"}',
        "/api/",
        '{url} answers 422 to POST /api/work_pools/filter: {"detail": "extra"}. The server is '
        "Prefect 3.1.0, this is ",
    ),
]


@pytest.mark.parametrize(
    ("status", "text", "path", "expected"), REFUSALS, ids=[str(each[0]) for each in REFUSALS]
)
async def test_why_a_server_refuses_us(
    status: int, text: str, path: str, expected: str, answers: tuple[type[Answers], str]
) -> None:
    answer, url = answers
    answer.status, answer.text = status, text
    with temporary_settings({PREFECT_API_URL: url + path}):
        async with get_client() as client:
            with pytest.raises((httpx.HTTPError, RuntimeError)) as refused:
                await require_server(client, Console(), seconds=600)  # at once, all the same
        why = await explain(refused.value)
    assert why.startswith(expected.replace("{url}", url + path))
    assert "\n" not in why


@pytest.mark.slow
async def test_each_command_tells_a_refusal_in_a_line(
    project: Project, answers: tuple[type[Answers], str]
) -> None:
    answer, url = answers
    answer.status = 401
    project.env["PREFECT_API_URL"] = f"{url}/api"
    for command in (["deploy"], ["check", "--server"], ["run", "sift"]):
        (line,) = project.say(*command, status=1)
        assert line.startswith(f"error: {url}/api/ refuses us (401): ")
