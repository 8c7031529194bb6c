"""The demo, in a copy of the repository at a path with a space."""

import contextlib
import dataclasses
import datetime
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from deployments.run._run import write_json
from tests.engine.waiting import SECONDS, processes_of, wait_until
from tests.engine.words import Size

T = TypeVar("T")
DEMO = [".venv/bin/python", "-m", "deployments", "demo"]


def demo(checkout: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_first_parent_runs_and_its_result_is_shown(
    checkout: Path, clean_env: dict[str, str]
) -> None:
    done = demo(checkout, clean_env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"] == 6
    assert "measure-all/local runs: http://127.0.0.1:" in done.stderr
    assert re.search("└ ccc x1 +Completed", done.stderr), done.stderr
    assert "`make dev` keeps a Prefect server and its UI up" in done.stderr


def test_another_flow_with_parameters_and_json(checkout: Path, clean_env: dict[str, str]) -> None:
    parameters = ["-p", 'word="null"', "--param", "times=2", "-p", "hold=null"]
    done = demo(checkout, clean_env, "measure/local", *parameters, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"word": "null", "length": 8, "initial": "n"}
    assert "measure/local runs" in done.stderr
    assert not (Path(clean_env["HOME"]) / ".prefect" / "prefect.db").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "times=13"], "times: Input should be less than or equal to 12, not 13"),
        (["-p", "tines=1"], "measure-all has no parameter tines, only words, times, hold"),
        (["-p", "times"], "the parameter 'times' must be key=value"),
        (
            ["measure", "-p", "word=a"],
            "measure needs the parameter times: give it by -p times=...",
        ),
        (
            ["moon"],
            "prefect.yaml has no deployment moon in a work pool of type process, only "
            "measure-all/local, measure/local, add-up/local",
        ),
        (
            ["measure-all/docker"],
            "prefect.yaml has no deployment measure-all/docker in a work pool of type process, "
            "only measure-all/local, measure/local, add-up/local",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_started(
    checkout: Path, clean_env: dict[str, str], arguments: list[str], expected: str
) -> None:
    done = demo(checkout, clean_env, *arguments)
    assert done.returncode == 1
    assert done.stderr == f"error: {expected}\n"


@pytest.mark.slow
def test_a_demo_that_fails_says_why_and_ends_with_1(
    checkout: Path, clean_env: dict[str, str]
) -> None:
    done = demo(checkout, clean_env, "-p", 'words=["bad"]')
    assert done.returncode == 1
    assert re.search("^error: measure-all/local ended as Failed", done.stderr, re.MULTILINE)
    assert "measure/local 'bad x1' failed" in done.stderr
    assert "The worker's log ends with:" in done.stderr
    assert "bad can't be measured by process" in done.stderr
    assert "`make dev` keeps a Prefect server and its UI up" in done.stderr


@contextlib.contextmanager
def running_demo(
    checkout: Path, env: dict[str, str], directory: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A demo whose temporary files are in a directory, and its log."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            DEMO,
            cwd=checkout,
            env=env | {"TMPDIR": str(directory)},
            stdout=log,
            stderr=log,
        )
    try:
        yield process, directory / "log"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_demo_leaves_nothing_running(
    checkout: Path, clean_env: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    with running_demo(checkout, clean_env, tmp_path) as (process, log):
        wait_until(lambda: " runs: " in log.read_text() or process.poll() is not None, "it runs")
        process.send_signal(how)
        process.wait(60)
    wait_until(lambda: processes_of(str(tmp_path)) == [], "all that it started has ended")
    assert list(tmp_path.glob("prefect-demo-*")) == []


@dataclasses.dataclass
class Point:
    x: float
    at: datetime.date


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(0.5, datetime.date(2013, 1, 2)), {"x": 0.5, "at": "2013-01-02"}),
        ([Size(word="b", length=2)], [{"word": "b", "length": 2, "initial": None}]),
        ({"a": 1e-9, "b": b"\xff"}, {"a": 1e-9, "b": "_w=="}),
        ({"a": float("nan"), "b": object}, {"a": None, "b": str(object)}),
        (None, None),
    ],
)
def test_any_result_is_shown_as_json(value: Any, expected: Any) -> None:
    assert json.loads(write_json(value)) == expected


def test_a_result_shown_has_no_escape_sequences() -> None:
    hostile = "[/tmp] :smile: \x1b]0;title\x07\x9b31m"
    shown = write_json([hostile])
    assert json.loads(shown) == [hostile]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
