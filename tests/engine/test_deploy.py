"""`deploy`: what it tells, what it changes, and what it leaves alone."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from deployments.commands._changes import LABEL
from deployments.commands._manifest import Manifest
from deployments.commands._processes import TemporaryServer, temporary_worker
from deployments.commands._prune import find_leftovers
from tests.engine.conftest import copy_repository, replace, run_command

pytestmark = pytest.mark.anyio

FLOWS = """
from prefect import flow


@flow
def load(day: int = 1) -> int:
    return day
"""
MANIFEST = """
name: acme
pull:
  - prefect.deployments.steps.set_working_directory: {directory: /app}
definitions:
  work_pools:
    acme-pool: {type: process, queues: {parents: {}, children: {concurrency_limit: 8}}}
  automations:
    - name: "acme: pause"
      trigger: {type: event, expect: [acme.pause]}
      actions: [{type: do-nothing}]
deployments:
  - name: local
    version: "1"
    entrypoint: flows/load.py:load
    description: Load a day.
    tags: [acme, etl]
    parameters: {day: 2}
    work_pool:
      name: acme-pool
      work_queue_name: children
      job_variables: {env: {STAGE: "{{ $STAGE }}"}}
    concurrency_limit: {limit: 2, collision_strategy: CANCEL_NEW}
    schedules:
      - {cron: "0 3 * * *", timezone: Europe/Berlin, parameters: {day: 3}}
      - {interval: 3600, active: false}
    triggers:
      - type: event
        expect: [acme.load]
        match_related: {prefect.resource.id: prefect.tag.acme}
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

    def say(self, *arguments: str, status: int = 0) -> list[str]:
        done = run_command(list(arguments), self.path, self.env)
        assert done.returncode == status, done.stderr
        return done.stderr.splitlines()


@pytest.fixture
def project(prefect_server: TemporaryServer, tmp_path: Path) -> Iterator[Project]:
    path = copy_repository(tmp_path / "acme", "flows", "tests", "docker", "benchmarks", "data")
    (path / "flows").mkdir()
    (path / "flows" / "__init__.py").touch()
    (path / "flows" / "load.py").write_text(FLOWS)
    (path / "prefect.yaml").write_text(MANIFEST)
    yield Project(path, {**prefect_server.env, "STAGE": "test"})
    for name in ("acme", "acme-x"):  # nothing of it is left for the next one
        nothing = f"name: {name}\ndefinitions: {{work_pools: {{}}}}\ndeployments: []\n"
        (path / "prefect.yaml").write_text(nothing)
        asyncio.run(delete_leftovers(Manifest.load(path / "prefect.yaml")))


async def delete_leftovers(manifest: Manifest) -> None:
    async with get_client() as client:
        for leftover in await find_leftovers(client, manifest):
            await leftover.delete()


async def read(name: str) -> DeploymentResponse | None:
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None


THINGS = [
    "work pool acme-pool",
    "work queue acme-pool/parents",
    "work queue acme-pool/children",
    "automation acme: pause",
    "deployment load/local",
]


async def test_what_will_change_is_shown_first_and_twice_changes_nothing(project: Project) -> None:
    created = [f"created: {each}" for each in THINGS]
    unchanged = [f"unchanged: {each}" for each in THINGS]
    assert project.say("deploy", "--dry-run") == created
    assert await read("load/local") is None
    assert project.say("deploy") == [*created, "", "Deployed.", *created]
    before = await read("load/local")
    assert before is not None
    assert before.labels[LABEL] == "acme"
    assert [each.parameters for each in before.schedules if each.active] == [{"day": 3}]
    assert before.parameters == {"day": 2}
    assert project.say("deploy") == [*unchanged, "", "Nothing to change."]
    assert await read("load/local") == before


EDITS = [
    ("Load a day.", "Load one.", "description"),
    ("[acme, etl]", "[acme]", "tags"),
    ("{day: 2}", "{day: 4}", "parameters"),
    ("queue_name: children", "queue_name: parents", "work queue"),
    ("{env: {STAGE", "{env: {STAGES", "job variables"),
    ("/app", "/ap", "pull steps"),
    ("{limit: 2,", "{limit: 3,", "concurrency limit"),
    ("CANCEL_NEW", "ENQUEUE", "concurrency limit"),
    ("0 3 * * *", "0 4 * * *", "schedules"),
    ("interval: 3600", "interval: 60", "schedules"),
    (", active: false", "", "schedules"),
    ("expect: [acme.load]", "expect: [acme.reload]", "triggers"),
    ('version: "1"', 'version: "2"', "version"),
]


@pytest.mark.slow
async def test_each_changed_field_is_named(project: Project) -> None:
    project.say("deploy")
    for old, new, field in EDITS:
        (project.path / "prefect.yaml").write_text(MANIFEST)
        project.declare((old, new))
        said = project.say("deploy", "--dry-run")
        assert said[-1] == f"changed: deployment load/local: {field}"
        assert all(each.startswith("unchanged: ") for each in said[:-1])


@pytest.mark.slow
async def test_only_what_differs_is_deployed(project: Project) -> None:
    project.say("deploy")
    (project.path / "flows" / "load.py").write_text(FLOWS.replace("day: int", "number: int"))
    project.declare(("{day: 2}", "{number: 2}"), ("{day: 3}", "{number: 3}"))
    project.declare(("{concurrency_limit: 8}", "{concurrency_limit: 9}"), ('{day: "', '{number: "'))
    fields = "parameters, parameter schema, schedules, triggers"
    changes = [
        "changed: work queue acme-pool/children: concurrency limit",
        f"changed: deployment load/local: {fields}",
    ]
    assert [
        each for each in project.say("deploy", "--dry-run") if each[:9] == "changed: "
    ] == changes
    said = project.say("deploy")
    assert said[said.index("Deployed.") + 1 :] == changes
    assert all(each.startswith("unchanged") for each in project.say("deploy", "--dry-run"))


@pytest.mark.slow
async def test_what_the_build_decides_is_told_afterwards(project: Project) -> None:
    step = "prefect.deployments.steps.run_shell_script"
    build = f"build:\n  - {step}: {{id: tag, script: cat tag.txt}}\n"
    project.declare(("pull:", f"{build}pull:"), ("STAGE:", 'TAG: "{{ tag.stdout }}", STAGE:'))
    tag = project.path / "tag.txt"
    tag.write_text("1")
    project.say("deploy")
    told = "unchanged: deployment load/local (known when deployed: job variables)"
    assert project.say("deploy", "--dry-run")[-1] == told
    assert project.say("deploy")[-2:] == ["Deployed.", "Nothing has changed."]
    tag.write_text("2")
    assert project.say("deploy")[-1] == "changed: deployment load/local: job variables"


@pytest.mark.slow
async def test_check_names_the_differences(
    project: Project, prefect_server: TemporaryServer
) -> None:
    # Of its own: a pool counts as served for a while when its worker has stopped.
    project.declare(
        ("name: acme\n", "name: acme-checked\n"),
        ("acme: pause", "acme-checked: pause"),
        ("acme-pool", "checked-pool"),
        ("name: local", "name: checked"),
    )
    project.say("deploy")
    project.declare(("name: checked\n", "name: daily\n"))
    project.say("deploy")
    project.declare(("Load a day.", "Load one."))
    with temporary_worker(prefect_server, "checked-pool"):
        assert project.say("check", "--server", status=1) == [
            "changed: deployment load/daily: description: `python -m deployments deploy`",
            "no longer declared: deployment load/checked: `python -m deployments deploy --prune`",
        ]


@pytest.mark.slow
async def test_a_rename_with_prune_leaves_nothing_behind(project: Project) -> None:
    project.say("deploy")
    project.declare(
        ("name: local", "name: daily"),
        ("acme-pool: {type", "acme-renamed: {type"),
        ("name: acme-pool", "name: acme-renamed"),
        ("acme: pause", "acme: stop"),
    )
    left = [
        "deployment load/local",
        "automation acme: pause",
        "work queue acme-pool/children",
        "work queue acme-pool/parents",
        "work pool acme-pool",
    ]
    said = project.say("deploy", "--dry-run")
    undeclared = [each for each in said if each.startswith("no longer")]
    assert sorted(undeclared) == sorted(f"no longer declared: {each}" for each in left)
    said = project.say("deploy", "--prune", status=1)
    assert said[-1].startswith("error: --prune deletes what is no longer declared")
    assert await read("load/local") is not None
    said = project.say("deploy", "--prune", "--yes")
    assert sorted(said[-5:]) == sorted(f"deleted: {each}" for each in left)
    async with get_client() as client:
        assert not [
            each
            for each in await client.read_automations()
            if "acme.load" in str(each) and "local" in each.name
        ]
        assert "acme-pool" not in [each.name for each in await client.read_work_pools()]
    assert all(each.startswith("unchanged") for each in project.say("deploy", "--dry-run"))


@pytest.mark.slow
async def test_others_are_left_alone_and_unfinished_runs_are_named(project: Project) -> None:
    project.say("deploy")
    text = (project.path / "prefect.yaml").read_text()
    # A project whose name begins alike, with the same tags, in the same pool and queue.
    project.declare(
        ("name: acme\n", "name: acme-x\n"),
        ("name: local", "name: other"),
        ("acme: pause", "acme-x: pause"),
    )
    project.say("deploy")
    (project.path / "prefect.yaml").write_text(
        text.replace("name: local", "name: mine")
        .replace("queue_name: children", "queue_name: parents")
        .replace(", children: {concurrency_limit: 8}", "")
    )
    run = await arun_deployment("load/local", timeout=0)
    said = project.say("deploy", "--prune", "--yes", status=1)
    assert f"no longer declared: deployment load/local: unfinished runs: {run.name}" in said
    assert said[-2:] == [
        "kept: deployment load/local: its runs are unfinished: let them end, or cancel them",
        "kept: work queue acme-pool/children: in use by "
        f"deployment local, deployment other, run {run.name}",
    ]
    async with get_client() as client:
        await client.set_flow_run_state(run.id, Cancelled())
    said = project.say("deploy", "--prune", "--yes", status=1)
    assert said[-2:] == [
        "deleted: deployment load/local",
        "kept: work queue acme-pool/children: in use by deployment other",
    ]
    assert await read("load/other") is not None
