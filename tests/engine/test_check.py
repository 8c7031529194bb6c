"""`check`: prefect.yaml against the code, without any server."""

import os
import re
import sys
from pathlib import Path

import pytest

from deployments.check import check_manifest
from deployments.check._calls import find_child_calls
from deployments.project import ROOT, Manifest
from tests.engine.conftest import MANIFEST, run_command, run_in_clones
from tests.engine.words import measure_all

HEADER = """\
from __future__ import annotations
import collections.abc as abc, datetime, decimal, enum, pathlib, typing, uuid
from dataclasses import dataclass
import deployments, deployments as d
from deployments import child, child as c, parent_flow
from prefect import flow, task
from pydantic import BaseModel, Base64Bytes, ConfigDict, Field, SecretStr, field_serializer
@flow
def step(number: int) -> int: ...
"""
DECLARED = MANIFEST.read_text()
LOCAL_PARENT = "    work_pool: {name: engine-tests-local, work_queue_name: parents}\n"


def findings(tmp_path: Path, *edits: tuple[str, str], declared: str = DECLARED) -> list[str]:
    text = declared
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / "prefect.yaml"
    path.write_text(text)
    return check(path)


def check(path: Path) -> list[str]:
    """Return what `check` prints."""
    try:
        return list(check_manifest(Manifest.load(path)))
    except ValueError as error:
        return [str(error)]


def findings_of(tmp_path: Path, source: str, *names: str, **more: str) -> list[str]:
    """Declare flows of a module in a manifest of their own; `more` are lines by flow name."""
    module = tmp_path / "mine.py"
    module.write_text(HEADER + source)
    lines = [
        "name: local",
        "definitions:",
        "  work_pools:",
        "    local: {type: process, queues: {default: {}, few: {concurrency_limit: 1}}}",
    ]
    lines += ["deployments:"]
    for name in names:
        lines += ["- name: local", "  work_pool: {name: local}"]
        lines += [f"  entrypoint: {module}:{name}", *([f"  {more[name]}"] if name in more else [])]
    path = tmp_path / "prefect.yaml"
    path.write_text("\n".join(lines))
    found = check(path)
    assert all(re.match(r"\S*(prefect\.yaml|\.py:\d+): .+$", line) for line in found), found
    return found


def test_a_manifest_and_code_that_agree() -> None:
    assert check(MANIFEST) == []


@pytest.mark.parametrize("size", ["512m", "4g", "1.5gb", "100000b", "'536870912'", "'{{ $HOME }}'"])
def test_a_size_that_docker_can_read(tmp_path: Path, size: str) -> None:
    """Or that nobody knows before it is deployed."""
    limits = f"mem_limit: {size}\n        memswap_limit: '-1'"
    assert findings(tmp_path, ("mem_limit: 1g", limits)) == []


def test_a_child_is_sent_into_the_limited_queue_of_its_parent(tmp_path: Path) -> None:
    source = """
@parent_flow
async def mine() -> int:
    return await child(step, work_queue_name="few")(1)
"""
    limited = "work_pool: {name: local, work_queue_name: few}"
    (finding,) = findings_of(tmp_path, source, "step", "mine", mine=limited)
    assert "step/local is in the limited queue local/few together with its parent" in finding


def test_every_child_that_the_parent_calls_is_found() -> None:
    assert [call.name for call in find_child_calls(measure_all, "moon")] == [
        "measure/moon",
        "add-up/moon",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("deployments:\n", "deployments: 7\nx:\n", "deployments: Input should be a valid list"),
        ("definitions:", "definitions: [", "while parsing"),
        ("{{ checkout.stdout }}", "{{ $NOWHERE }}", "$NOWHERE is not set"),
        (":add_up", ":up_add", "tests/engine/words.py:up_add can't be imported"),
        ("words.py:add_up", "no.py:no", "tests/engine/no.py:no can't be imported"),
        (":add_up", ":measure", "measure/local is declared twice"),
        (
            ":add_up",
            ":measure",
            "tests/engine/words.py:60: calls add-up/local, which is not declared",
        ),
        ("work_queue_name: children", "work_queue_name: kids", "its work queue kids is not in"),
        ("name: engine-tests-local,", "name: moon,", "its work pool moon is not in definitions"),
        ("PREFECT_LOCAL_STORAGE_PATH: /results", "A: B", "results would end with its container"),
        ("{{ stack }}-results:/results", "mine:/mine", "results would end with its container"),
        ("work_queue_name: parents", "work_queue_name: children", "that is a deadlock"),
        (
            LOCAL_PARENT,
            LOCAL_PARENT + "    parameters: {times: 13}\n",
            "parameters.times: Input should be less than or equal to 12",
        ),
        (
            LOCAL_PARENT,
            LOCAL_PARENT + "    parameters: {tines: 1}\n",
            "parameters.tines: Extra inputs are not permitted",
        ),
        (
            'volumes: ["',
            'volumes: "a:/b"  # ["',
            "job_variables.volumes: Input should be a valid list",
        ),
        ("        env:\n", "        env: 7\n        x:\n", "env: Input should be a valid dict"),
        (
            "    name: local\n",
            "    name: '{{ $STAGE }}'\n",
            "'{{ $STAGE }}' is a template, which",
        ),
        (
            "    name: local\n",
            "    name: lo#cal\n",
            "0.name: Value error, 'lo#cal' can't stand in a",
        ),
        ("    name: local\n", "    name: local?\n", "'local?' can't stand in a URL"),
        ("    name: local\n", "    name: ..\n", "'..' can't stand in a URL"),
        ("    name: local\n", "    name: a/b\n", "0.name: String should match pattern"),
        ("    engine-tests-local:", "    engine-tests#:", "'engine-tests#' can't stand in a URL"),
        ("children: {concurrency", "kids?: {concurrency", "'kids?' can't stand in a URL"),
        ("children: {concurrency", "children: {priority: 0, concurrency", "should be greater than"),
        (LOCAL_PARENT, LOCAL_PARENT + "    version: 2\n", "0.version: Input should be a valid str"),
        (LOCAL_PARENT, LOCAL_PARENT + "    paused: maybe\n", "0.paused: Input should be a valid"),
        (
            LOCAL_PARENT,
            LOCAL_PARENT + "    parameters: {at: 2024-01-01}\n",
            "2024-01-01 must be in quotes in",
        ),
        (
            "job_variables: &image {",
            "job_variables: &image {key: '{{ prefect.blocks.secret.key }}', ",
            "job_variables.key: prefect.blocks.secret.key would be there for everybody to read",
        ),
        ("    engine-tests-local:", "    local:", "work_pools: local must begin with the name of"),
        ("    engine-tests-local:", "    engine-testsX:", "engine-testsX must begin with the name"),
        ("name: engine-tests  #", "nam: engine-tests  #", "name: Field required"),
        ("silent: 180", "silent: 30", "silent: Input should be greater than or equal to 60"),
        ("silent: 180", "silence: 180", "silence: Extra inputs are not permitted"),
        (
            "mem_limit: 1g",
            "mem_limit: '{{ $NOWHERE }}'",
            "engine-tests-docker: $NOWHERE is not set",
        ),
        (
            "mem_limit: 1g",
            "mem_limit: 1gib",
            "work_pools.engine-tests-docker: job_variables.mem_limit: '1gib' is no size: write",
        ),
        (
            "job_variables: &image {",
            "job_variables: &image {memswap_limit: lots, ",
            "prefect.yaml: measure/docker: job_variables.memswap_limit: 'lots' is no size: write a",
        ),
        (
            "job_variables: &image {",
            "job_variables: &image {mem_limit: 4, ",
            "job_variables.mem_limit: 4 is no size: write a text, such as 512m or 4g",
        ),
        (
            "  crashed_after:",
            "  automations: [{name: a, trigger: {type: event}, actions: []}]\n  crashed_after:",
            "definitions.automations: 'a' must begin with the name of the project, "
            "'engine-tests: ', or another project's could replace it",
        ),
    ],
)
def test_each_finding_is_one_line_with_its_place(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    found = findings(tmp_path, (old, new))
    assert any(expected in finding for finding in found), found
    assert all(re.match(r"\S*(prefect\.yaml|\.py:\d+): .+$", line) for line in found), found


BLOCK = "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: s3-bucket/results"
OF_LOCAL = ("working_dir: .", f"env: {{{BLOCK}}}\n        working_dir: .")
OF_DOCKER = ("PREFECT_LOCAL_STORAGE_PATH: /results", BLOCK)
OF_CHILDREN = "engine-tests-local, work_queue_name: children"


@pytest.mark.parametrize(
    ("declared", "edits", "lacking"),
    [
        (DECLARED, [OF_LOCAL, OF_DOCKER], []),
        (DECLARED, [OF_LOCAL], []),
        (run_in_clones(DECLARED), [], []),
        (DECLARED, [OF_LOCAL, (OF_CHILDREN, OF_CHILDREN + ", job_variables: {env: {A: b}}")], []),
        (
            DECLARED,
            [(OF_CHILDREN, OF_CHILDREN + f", job_variables: {{env: {{{BLOCK}}}}}")],
            [
                f"{child}/local: its parent alone lacks PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "
                for child in ("add-up", "measure")
            ],
        ),
    ],
)
def test_a_parent_and_its_children_have_one_storage(
    tmp_path: Path, declared: str, edits: list[tuple[str, str]], lacking: list[str]
) -> None:
    """Of an entry's own `env`, and that of its work pool."""
    lines = findings(tmp_path, *edits, declared=declared)
    found = sorted(line.partition(": ")[2] for line in lines)
    assert len(found) == len(lacking), found
    assert all(map(str.startswith, found, lacking)), found


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("times: '{{ prefect.variables.times }}'", None),
        ("times: '{{ $TIMES }}', words: ['{{ checkout.stdout }}']", None),
        ("times: x", "parameters.times: Input should be a valid integer"),
        ("tines: '{{ prefect.variables.times }}'", "parameters.tines: Extra inputs"),
    ],
)
def test_a_template_is_no_value_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: str, expected: str | None
) -> None:
    monkeypatch.setenv("TIMES", "3")
    found = findings(tmp_path, (LOCAL_PARENT, f"{LOCAL_PARENT}    parameters: {{{parameters}}}\n"))
    assert all(expected and expected in each for each in found), found
    assert bool(found) == (expected is not None)


NAMES = [
    [("engine-tests", "acme-pipelines")],
    [("engine-tests-local", "engine-tests-processes")],
    [("name: local", "name: dev"), ("name: docker", "name: prod")],
    [("parents: {}", "chiefs: {}"), ("queue_name: parents", "queue_name: chiefs")],
]


@pytest.mark.parametrize("edits", NAMES)
def test_names_are_the_users(tmp_path: Path, edits: list[tuple[str, str]]) -> None:
    assert findings(tmp_path, *edits) == []


def test_a_project_that_is_renamed_in_one_place_tells_the_others(tmp_path: Path) -> None:
    found = findings(tmp_path, ("name: engine-tests  #", "name: acme  #"))
    assert len(found) == 2, found
    assert all("must begin with the name of the project, 'acme-'" in each for each in found)


def test_a_file_beside_a_flow_hides_no_package(tmp_path: Path) -> None:
    """Such as Docker's, which `up` builds the image with."""
    path = sys.path.copy()
    assert findings_of(tmp_path, "", "step") == []
    assert sys.path == path


def test_results_in_a_block_need_no_volume(tmp_path: Path) -> None:
    block = "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: s3-bucket/results"
    edits = [
        ("PREFECT_LOCAL_STORAGE_PATH: /results", block),
        ("{{ stack }}-results:/results", "a:/b"),
    ]
    assert findings(tmp_path, *edits) == []


def test_an_unknown_name_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match="no deployment named moon, only docker, local"):
        Manifest.load(MANIFEST).named("local", "moon")


def test_what_is_deployed_without_docker_needs_no_docker() -> None:
    local = Manifest.load(MANIFEST).of_type("process")
    assert local.names == ["local"]
    assert {pool.type for pool in local.definitions.work_pools.values()} == {"process"}
    assert not any(
        "docker" in str(deployment.declared["build"]) for deployment in local.deployments
    )


def test_each_flow_is_imported_once(tmp_path: Path) -> None:
    """By a part and the whole, whoever asks."""
    source = f"open({str(tmp_path / 'imported')!r}, 'a').write('once ')\n"
    assert findings_of(tmp_path, source, "step") == []
    manifest = Manifest.load(tmp_path / "prefect.yaml")
    part = manifest.named("local")
    assert part.whole.deployments[0] is part.deployments[0]
    assert list(check_manifest(part)) == list(check_manifest(manifest)) == []
    assert part.deployments[0].full_name == "step/local"
    assert (tmp_path / "imported").read_text() == "once once "  # for `findings_of`, and for us


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("child(step)('a', moth=1)", "step/local: got an unexpected keyword argument 'moth'"),
        ("child(step).submit()", "step/local: missing a required argument: 'number'"),
        ("child(step, deployment='local')()", "step/local: missing a required"),
        ("child(step, **options)()", "step: missing a required"),
        ("child('step/local')()", "step/local: missing a required"),
        ("child('step/local')(1)", "step/local: a child called by name takes keywords only"),
        ("child('far/away').submit(1)", "far/away: a child called by name takes keywords only"),
        ("child('step')(number=1)", "calls 'step': the name must be 'flow-name/deployment-name'"),
        ("child(target=step)()", "step/local: missing a required"),
        ("deployments.child(step)()", "step/local: missing a required"),
        ("d.child(step)()", "step/local: missing a required"),
        ("c(step)()", "step/local: missing a required"),
        ("child('step/local')(number=1, moth=1)", "got an unexpected keyword argument 'moth'"),
        ("child(step, deployment='moon')(1)", "calls step/moon, which is not declared"),
        (
            "child(step, work_queue_name='night')(1)",
            "step/local: the work queue night is not in definitions.work_pools.local.queues: add",
        ),
        # Nothing is wrong with these, or only a run can tell.
        ("child(step, work_queue_name='few')(1)", None),
        ("child(step, work_queue_name=where)(1)", None),
        ("child(step)(1)", None),
        ("child(step).submit(number=1)", None),
        ("child('step/local')(number=1)", None),
        ("child('full/local')()", None),
        ("child('far/away')(number=1)", None),
        ("child('far/away')(*[], **{})", None),
        ("child(step)(*numbers)", None),
        ("child(step, deployment=where)(1)", None),
        ("[child(full)(1, 2) for full in (step, step)]", None),
    ],
)
def test_a_call_is_compared_with_its_child(tmp_path: Path, call: str, expected: str | None) -> None:
    source = f"""
@flow
def full(number: int) -> int: ...
@parent_flow
async def mine(numbers: list[int] = [1], where: str = "x", options: dict = {{}}) -> int:
    _ = {call}
"""
    declared = "step", "full", "mine"
    found = findings_of(tmp_path, source, *declared, full="parameters: {number: 1}")
    line = (HEADER + source).splitlines().index(f"    _ = {call}") + 1
    if expected is None:
        assert found == []
    else:
        assert any(f"mine.py:{line}: " in each and expected in each for each in found), found


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("child(step)(1)", True),
        ("child(step, deployment='local').submit(number=1)", True),
        ("c('step/local')(number=1)", True),
        ("if numbers: d.child(step)(1)", True),
        ("child(step)", True),
        ("await child(step)(1)", False),
        ("running = child(step).submit(1)", False),
        ("asyncio.gather(child(step)(1))", False),
        ("step(1)", False),
    ],
)
def test_a_child_that_nobody_awaits_is_told(tmp_path: Path, statement: str, told: bool) -> None:
    source = f"""
import asyncio
@parent_flow
async def mine(numbers: list[int] = [1]) -> None:
    {statement}
"""
    found = findings_of(tmp_path, source, "step", "mine")
    line = (HEADER + source).splitlines().index(f"    {statement}") + 1
    assert len(found) == told, found
    assert all(
        f"mine.py:{line}: this child never runs, since nobody awaits" in each for each in found
    )


@pytest.mark.parametrize(
    ("helper", "expected"),
    [
        ("def of(): return nowhere\n", "helpers_of_mine.py:1: NameError: name 'nowhere' is not"),
        ("import nothing_such\n", "helpers_of_mine.py:1: ModuleNotFoundError: No module named"),
        ("\nfrom os import nothing_such\n", "helpers_of_mine.py:2: ImportError: cannot import"),
        ("\n\ndef of(:\n", "helpers_of_mine.py:3: SyntaxError: invalid syntax"),
        ("import json\ndef of(): json.loads('x')\n", "helpers_of_mine.py:2: JSONDecodeError: "),
        ("def of(): raise KeyError('a\\nb')\n", "helpers_of_mine.py:1: KeyError: 'a"),
        (
            "import deployments\n@deployments.parent_flow\ndef of(): ...\n",
            "mine.py:2: TypeError",
        ),
        ("nothing = 1\n", "mine.py:12: AttributeError: module 'helpers_of_mine' has no attribute"),
    ],
)
def test_what_keeps_a_flow_from_being_imported_is_told_with_its_place(
    tmp_path: Path, helper: str, expected: str
) -> None:
    (tmp_path / "helpers_of_mine.py").write_text(helper)
    source = "\nimport helpers_of_mine\nhelpers_of_mine.of()\n@flow\ndef mine(): ...\n"
    (found,) = findings_of(tmp_path, source, "mine")
    sys.modules.pop("helpers_of_mine", None)
    assert f"mine.py:mine can't be imported: {os.path.relpath(tmp_path, ROOT)}/" in found
    assert expected in found


def test_a_flow_whose_name_no_server_can_be_asked_for_is_told(tmp_path: Path) -> None:
    (found,) = findings_of(tmp_path, "@flow(name='a#1')\ndef mine(): ...\n", "mine")
    assert "a#1/local: the flow's name 'a#1' can't stand in a URL" in found


@pytest.mark.parametrize(
    ("body", "accused"),
    [
        ("await child(step)(1)", True),
        ("await d.child('step/local')(number=1)", True),
        ("await helper()", True),
        ("await check_helpers.helper()", True),
        ("await check_helpers.deeper()", True),
        ("await work()", True),
        ("await plain()", True),
        ("await parent()", False),
        ("step(1)", False),
        ("helper = parent; await helper()", False),
    ],
)
def test_a_child_called_outside_of_a_parent_is_found(
    tmp_path: Path, body: str, accused: bool
) -> None:
    (tmp_path / "check_helpers.py").write_text(
        "from deployments import child as c\n"
        "async def deeper(): await helper()\n"
        "async def helper():\n"
        "    if False: await deeper()\n"
        "    await c('step/local')(number=1)\n"
    )
    source = f"""
import check_helpers
async def helper(): await child(step)(1)
@task
async def work(): await child(step)(1)
@flow
async def plain(): await child(step)(1)
@parent_flow
async def parent(): await helper()
@flow
async def mine():
    {body}
"""
    found = findings_of(tmp_path, source, "step", "parent", "mine")
    sys.modules.pop("check_helpers")
    assert [
        bool(re.search("mine calls a child, and is no parent: make", each)) for each in found
    ] == ([True] if accused else []), found


def test_a_child_beside_its_parent_does_not_call_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from prefect import flow\n"
        "from deployments import child, parent_flow\n"
        "@flow\n"
        "def mine() -> None: ...\n"
        "@parent_flow\n"
        "async def parent() -> None:\n"
        "    await child(mine)()\n"
    )
    text = ("tests/engine/words.py:add_up", f"{tmp_path}/mine.py:mine")
    assert not any("deadlock" in finding for finding in findings(tmp_path, text))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("schedules: [{cron: '0 6 * * *'}]", "schedules.0: its runs would fail, since number has"),
        (
            "schedules: [{cron: '0 6 * * *', parameters: {number: 1}}, {interval: 60}]",
            "schedules.1: its runs would fail, since number has",
        ),
        (
            "schedules: [{cron: '0 6 * * *', parameters: {number: x}}]",
            "schedules.0.parameters.number: Input should be a valid integer",
        ),
        ("schedules: [{cron: '0 6 * * *', parameters: {number: 1}}]", None),
        ("schedules: [{interval: 60}]\n  parameters: {number: 1}", None),
        ("schedules:", None),
        ("triggers: [{enabled: '{{ a }}', expect: [b]}]", "triggers.0: its runs would fail, since"),
        ("triggers: [{expect: [b], parameters: {number: '{{ event.id }}'}}]", None),
    ],
)
def test_a_schedule_or_trigger_gives_every_parameter_a_value(
    tmp_path: Path, more: str, expected: str | None
) -> None:
    found = findings_of(tmp_path, "", "step", step=more)
    assert len(found) == (expected is not None), found
    assert all(f"step/local: {expected}" in each for each in found), found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "def mine() -> Absent: ...",
            "annotations can't be used: TypeError: mine: name 'Absent' is",
        ),
        ("def mine() -> Broken: ...", "annotations can't be used: RuntimeError: no schema at all"),
        ("def mine(): yield 1", "a parent can't get its result, since it is a generator: return a"),
        ("async def mine(): yield 1", "a parent can't get its result, since it is a generator"),
        ("def mine() -> Broken | Absent: yield 1", "it is a generator"),
        ("def mine() -> object: ...", None),
        ("def mine() -> list[Frame]: ...", None),
        ("def mine(): ...", None),
    ],
)
def test_a_result_that_can_not_arrive_is_told(
    tmp_path: Path, source: str, expected: str | None
) -> None:
    classes = """
class Frame: ...
class Broken:
    @classmethod
    def __get_pydantic_core_schema__(cls, *_): raise RuntimeError("no schema\\nat all")
"""
    found = findings_of(tmp_path, f"{classes}\n@flow\n{source}\n", "mine")
    assert bool(found) == (expected is not None), found
    assert all("mine/local: " in line for line in found), found
    assert any(str(expected) in line for line in found) or not found, found


def test_the_result_of_a_parent_that_nobody_calls_is_not_judged(tmp_path: Path) -> None:
    source = (
        "@parent_flow(persist_result=False)\nasync def inner() -> bytes: ...\n"
        "@parent_flow(persist_result=False)\nasync def outer() -> bytes: await child(inner)()\n"
    )
    found = findings_of(tmp_path, source, "inner", "outer")
    assert [line.split(": ")[1] for line in found] == ["inner/local"], found


def test_a_child_that_does_not_persist_its_result_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from prefect import flow\n@flow(persist_result=False)\ndef mine() -> None: ...\n"
    )
    found = findings(tmp_path, ("tests/engine/words.py:add_up", f"{tmp_path}/mine.py:mine"))
    assert any("mine/local: a parent can't read its result" in finding for finding in found), found


def test_the_command_says_so_and_ends_with_0(checkout: Path, clean_env: dict[str, str]) -> None:
    done = run_command(["check"], checkout, clean_env)
    assert done.returncode == 0, done.stderr
    assert "agree" in done.stderr


def test_deploy_refuses_what_check_refuses(checkout: Path, clean_env: dict[str, str]) -> None:
    manifest = checkout / "prefect.yaml"
    manifest.write_text(DECLARED.replace("work_queue_name: children", "work_queue_name: kids"))
    env = clean_env | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # nobody is there
    said = {}
    for command in ("check", "deploy"):
        done = run_command([command], checkout, env)
        assert done.returncode == 1
        said[command] = done.stderr.splitlines()
    lacks = (
        "prefect.yaml: {}/{}: its work queue kids is not in "
        "definitions.work_pools.engine-tests-{}.queues: add it there"
    )
    children = [lacks.format(name, "local", "local") for name in ("measure", "add-up")]
    assert said["deploy"] == children
    others = [lacks.format(name, "docker", "docker") for name in ("measure", "add-up")]
    assert sorted(said["check"]) == sorted([*children, *others])
