"""`check`: prefect.yaml against the code, without any server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.events.schemas.automations import EventTrigger

from deployments._check import check_manifest, find_child_calls
from deployments.manifest import ROOT, Manifest
from flows.flight_delays import flight_delays

SHIPPED = (ROOT / "prefect.yaml").read_text()


def findings(tmp_path: Path, *edits: tuple[str, str]) -> list[str]:
    text = SHIPPED
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / "prefect.yaml"
    path.write_text(text)
    return list(check_manifest(path))


def test_the_shipped_manifest_and_the_code_agree() -> None:
    assert list(check_manifest()) == []


def test_every_child_that_the_parent_calls_is_found() -> None:
    assert [call.flow_name for call in find_child_calls(flight_delays)] == [
        "airport-delays",
        "delay-report",
    ]


def test_no_directory_of_anybody_is_in_the_manifest() -> None:
    assert str(ROOT) not in SHIPPED


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("deployments:\n", "deployments: 7\nx:\n", "deployments: Input should be a valid list"),
        ("definitions:", "definitions: [", "while parsing"),
        ("{{ checkout.stdout }}", "{{ $NOWHERE }}", "$NOWHERE is not set"),
        (":delay_report", ":report_delay", "flows/delay_report.py:report_delay can't be imported"),
        ("airport_delays.py:airport_delays", "no.py:no", "flows/no.py:no can't be imported"),
        (
            "delay_report.py:delay_report",
            "airport_delays.py:airport_delays",
            "airport-delays/local is declared twice",
        ),
        (
            "delay_report.py:delay_report",
            "airport_delays.py:airport_delays",
            "flows/flight_delays.py:29: calls delay-report/local, which is not declared",
        ),
        ("work_queue_name: children", "work_queue_name: kids", "its work queue kids is not in"),
        ("&local_children\n      name: local", "&local_children\n      name: moon", "moon"),
        ("PREFECT_LOCAL_STORAGE_PATH: /results", "A: B", "results would end with its container"),
        ("parent-flows-results:/results", "mine:/mine", "results would end with its container"),
        ("work_queue_name: parents", "work_queue_name: children", "that is a deadlock"),
        ("tags: [parent-flows, parent]", "tags: [mine]", "tags: lacks parent, parent-flows"),
        (
            "    work_pool: *local_parents\n  - {",
            "    work_pool: *local_parents\n    parameters: {month: 13}\n  - {",
            "parameters.month: Input should be less than or equal to 12",
        ),
        (
            "    work_pool: *local_parents\n  - {",
            "    work_pool: *local_parents\n    parameters: {moth: 1}\n  - {",
            "parameters.moth: Extra inputs are not permitted",
        ),
    ],
)
def test_each_finding_is_one_line_with_its_place(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    found = findings(tmp_path, (old, new))
    assert any(expected in finding for finding in found), found
    assert all(re.match(r"\S*(prefect\.yaml|\.py:\d+): .+$", line) for line in found), found


def test_results_in_a_block_need_no_volume(tmp_path: Path) -> None:
    block = "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: s3-bucket/results"
    edits = [
        ("PREFECT_LOCAL_STORAGE_PATH: /results", block),
        ("parent-flows-results:/results", "a:/b"),
    ]
    assert findings(tmp_path, *edits) == []


def test_an_unknown_name_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match="no deployment named moon, only docker, local"):
        Manifest.load().named("local", "moon")


def test_what_is_deployed_without_docker_needs_no_docker() -> None:
    local = Manifest.load().named("local")
    assert {pool.type for pool in local.definitions.work_pools.values()} == {"process"}
    assert not any(deployment.build for deployment in local.deployments)


def test_a_call_with_wrong_parameters_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from deployments import child, parent_flow\n"
        "from flows.airport_delays import airport_delays\n"
        "@parent_flow\n"
        "async def mine() -> None:\n"
        "    await child(airport_delays)('EWR', moth=1)\n"
        "    await child('airport-delays/local')(airport='EWR')\n"
    )
    found = findings(tmp_path, ("flows/delay_report.py:delay_report", f"{tmp_path}/mine.py:mine"))
    assert any("mine.py:5: airport-delays/local: " in finding for finding in found), found
    assert any("mine.py:6: airport-delays/local: missing" in finding for finding in found), found


@pytest.mark.parametrize("name", ["Completed", "Failed", "Suspended", "AwaitingRetry"])
def test_a_run_that_may_be_silent_is_not_marked_as_crashed(name: str) -> None:
    (automation,) = Manifest.load().definitions.automations
    assert isinstance(automation.trigger, EventTrigger)
    assert f"prefect.flow-run.{name}" in automation.trigger.expect


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
    text = ("flows/delay_report.py:delay_report", f"{tmp_path}/mine.py:mine")
    assert not any("deadlock" in finding for finding in findings(tmp_path, text))


def test_a_child_that_does_not_persist_its_result_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from prefect import flow\n@flow(persist_result=False)\ndef mine() -> None: ...\n"
    )
    found = findings(tmp_path, ("flows/delay_report.py:delay_report", f"{tmp_path}/mine.py:mine"))
    assert any("mine/local: a parent can't read its result" in finding for finding in found), found


def test_the_command_says_so_and_ends_with_0() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "agree" in done.stderr
