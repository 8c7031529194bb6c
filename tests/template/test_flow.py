"""`make flow` writes a flow, its test and its entries, of which all is green at once."""

import re
from pathlib import Path

import pytest
import yaml

from tests.template.conftest import clone, git, run, start_project, succeed

WRITE = [".venv/bin/python", "-m", "deployments", "flow"]


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """A clone, for one test."""
    return clone(template, tmp_path / "clone")


@pytest.fixture(scope="module")
def shared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that no test changes."""
    return clone(template, tmp_path_factory.mktemp("shared") / "clone")


def entries_of(path: Path) -> list[tuple[str, str, str]]:
    declared = yaml.safe_load((path / "prefect.yaml").read_text())["deployments"]
    return [
        (each["name"], each["entrypoint"], each["work_pool"]["work_queue_name"])
        for each in declared
    ]


@pytest.mark.slow
def test_flows_are_green_at_once_and_run(template: Path, tmp_path: Path) -> None:
    path = start_project(template, tmp_path / "my flows")
    before = (path / "prefect.yaml").read_bytes()

    succeed(path, "make", "flow", "NAME=clean-gauges")
    succeed(path, "make", "flow", "NAME=read_gauges_of_every_river_and_of_every_lake")
    told = succeed(path, "make", "flow", "NAME=clean-all", "PARENT=1")

    assert "run it: make demo ARGS=clean-all" in told
    assert (path / "prefect.yaml").read_bytes().startswith(before)
    long = "read_gauges_of_every_river_and_of_every_lake"
    assert entries_of(path)[-6:] == [
        (name, f"flows/{flow}.py:{flow}", queue)
        for flow, queue in (
            ("clean_gauges", "children"),
            (long, "children"),
            ("clean_all", "parents"),
        )
        for name in ("local", "docker")
    ]
    assert f"child({long})(name)" in (path / "flows" / "clean_all.py").read_text()
    assert "agree" in succeed(path, "make", "check")
    succeed(path, "make", "lint")
    flows = [f"tests/flows/test_{flow}.py" for flow in ("clean_gauges", long, "clean_all")]
    assert "4 passed" in succeed(path, ".venv/bin/python", "-m", "pytest", "-q", *flows)
    demo = succeed(path, ".venv/bin/python", "-m", "deployments", "demo", "clean-all")
    assert len(re.findall(r"└ read-gauges\S+ \w+ +Completed", demo)) == 3, demo


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CleanGauges", "NAME must be like clean-gauges or clean_gauges, not 'CleanGauges': make"),
        ("../clean", "NAME must be like clean-gauges or clean_gauges, not '../clean': make"),
        ("", "NAME must be like clean-gauges or clean_gauges, not '': make flow NAME=clean-gauges"),
        ("class", "class is something else in Python here: take another NAME"),
        ("value-error", "ValueError is something else in Python here: take another NAME"),
        ("flow", "flow is something else in Python here: take another NAME"),
        ("airport-delays", "there is flows/airport_delays.py already: take another NAME"),
        ("flows", "flows is something else in Python here: take another NAME"),
        ("queues", "prefect.yaml can't have a new entry at its end, found duplicate anchor"),
    ],
)
def test_a_name_that_can_not_be_or_is_taken_is_refused(
    shared: Path, name: str, problem: str
) -> None:
    done = run(shared, *WRITE, name)
    assert done.returncode == 1
    assert done.stdout.startswith(f"error: {problem}")
    assert done.stdout.count("\n") == 1
    assert git(shared, "status", "--porcelain") == ""


def test_a_test_and_a_flow_elsewhere_are_names_that_are_taken(path: Path) -> None:
    (path / "tests" / "flows" / "test_clean_gauges.py").touch()
    done = run(path, *WRITE, "clean-gauges")
    assert "error: there is tests/flows/test_clean_gauges.py already" in done.stdout
    (path / "flows" / "flight_delays.py").rename(path / "flows" / "other.py")
    manifest = path / "prefect.yaml"
    text = manifest.read_text().replace("flows/flight_delays.py", "flows/other.py")
    manifest.write_text(
        text.replace("flight_delays\n", "flight\n").replace("*flight_delays", "*flight")
    )
    manifest.write_text(
        manifest.read_text().replace("other.py:flight\n", "other.py:flight_delays\n")
    )
    done = run(path, *WRITE, "flight-delays")
    assert "error: there is flight-delays/local already" in done.stdout
    assert "flows/clean_gauges.py" not in git(path, "status", "--porcelain")


def test_a_parent_needs_a_child(shared: Path) -> None:
    done = run(shared, *WRITE, "clean-all", "--parent")
    assert done.returncode == 1
    assert done.stdout.startswith("error: a parent needs a child that takes one text")
    assert git(shared, "status", "--porcelain") == ""


def test_what_the_manifest_lacks_is_told_and_nothing_is_written(path: Path) -> None:
    manifest = path / "prefect.yaml"
    whole = manifest.read_text()
    for old, new, problem in (
        ("docker_children", "others", "alias 'docker_children': let `deployments` be its last"),
        ("\n        children: {", "\n        kids: {", "process with a queue children"),
        (
            "\ndeployments:\n",
            "\ndeployments: &all\n  - *first\nlast: *all\n",
            "can't have a new entry at its end",
        ),
    ):
        text = whole.replace(old, new)
        if "first" in new:  # another list is the last part of the file
            head, _, tail = whole.partition("\ndeployments:\n")
            text = f"{head}\ndeployments:\n{tail}\npush:\n  - a: {{}}\n"
        manifest.write_text(text)
        done = run(path, *WRITE, "clean-gauges")
        assert done.returncode == 1
        assert problem in done.stdout
        assert done.stdout.count("\n") == 1
        assert git(path, "status", "--porcelain") == " M prefect.yaml\n"
        assert manifest.read_text() == text


def test_without_containers_there_is_one_entry(path: Path) -> None:
    manifest = path / "prefect.yaml"
    text = manifest.read_text()
    head, _, tail = text.partition("\n  docker: &docker")
    deployments = tail.partition("\ndeployments:\n")[2]
    text = f"{head}\n\ndeployments:\n{re.sub('(?m)^  - {<<: .*$', '', deployments)}".rstrip("\n")
    manifest.write_text(text)
    succeed(path, *WRITE, "clean-gauges")
    assert manifest.read_text().startswith(text)  # whose last line had no end
    assert entries_of(path)[-1] == ("local", "flows/clean_gauges.py:clean_gauges", "children")
    assert [name for name, *_ in entries_of(path)].count("docker") == 0
