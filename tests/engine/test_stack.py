"""What `make up` refuses without any Docker Engine; the stack itself: containers/."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.project import ROOT, Manifest
from deployments.stack._stack import read_names, require_port
from tests.engine.conftest import MANIFEST, run_command


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Docker client that knows no container and notes what it is asked; the file of the notes."""
    notes = tmp_path / "notes"
    client = tmp_path / "docker"
    names = "$COMPOSE_PROJECT_NAME $NETWORK $RESULTS"
    client.write_text(
        f'#!/bin/sh\necho "$*" >> "{notes}"\necho "{names}" >> "{notes}.names"\n'
        f'cat "{tmp_path}/answer"\n'
    )
    client.chmod(0o755)
    (tmp_path / "answer").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return notes


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port


@pytest.mark.parametrize("servers", [1, 2])
def test_a_taken_port_is_told_before_anything_is_built(
    docker: Path, taken: int, monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    monkeypatch.setenv("SERVERS", str(servers))
    monkeypatch.setenv("SERVER_PORT", str(taken - servers + 1))  # the last one is taken
    command = [sys.executable, "-m", "deployments", "up"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: port {taken} of this machine is taken, and not by this stack: end what listens "
        "there, or set SERVER_PORT in .env (see .env.example)\n"
    )
    (asked,) = docker.read_text().splitlines()
    assert asked.startswith("ps ")


def test_the_port_of_this_stack_is_no_obstacle(docker: Path, taken: int) -> None:
    (docker.parent / "answer").write_text("75a57a379ee4\n")
    require_port(taken, "engine-tests")
    assert "label=com.docker.compose.project=engine-tests" in docker.read_text()
    assert f"publish={taken}" in docker.read_text()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        *(("SERVER_PORT", each, "a port, 1 to 65535") for each in ("http", "0", "65536", "²")),
        *(("SERVERS", each, "a number, 1 to 61336") for each in ("two", "0", "61337", "-1", "²")),
        ("SERVER_URL", "prefect.example.com", "like https://.*, without /api"),
        ("SERVER_URL", "https://prefect.example.com/api", "like https://.*, without /api"),
    ],
)
def test_a_variable_that_is_none(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{variable} in .env must be {expected}, not '{value}'$"):
        read_names(Manifest.load(MANIFEST))


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("4200", "http://127.0.0.1:4200")),
        ({"SERVERS": "", "SERVER_PORT": "", "SERVER_URL": ""}, ("4200", "http://127.0.0.1:4200")),
        ({"SERVERS": "1", "SERVER_PORT": "80"}, ("80", "http://127.0.0.1:80")),
        ({"SERVERS": "3", "SERVER_PORT": "80"}, ("80-82", "http://127.0.0.1:80")),
        ({"SERVERS": "2", "SERVER_URL": "https://a.example/"}, ("4200-4201", "https://a.example")),
    ],
)
def test_the_servers_of_the_stack_are_those_of_env(
    env: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("SERVERS", "SERVER_PORT", "SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    names = read_names(Manifest.load(MANIFEST))
    assert (names["SERVER_PORTS"], names["SERVER_URL"]) == expected


def edited(tmp_path: Path, old: str, new: str) -> Manifest:
    text = MANIFEST.read_text()
    assert old in text
    (tmp_path / "prefect.yaml").write_text(text.replace(old, new))
    return Manifest.load(tmp_path / "prefect.yaml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "engine-tests",
            "acme",
            {"COMPOSE_PROJECT_NAME": "acme", "NETWORK": "acme", "RESULTS": "acme-results"},
        ),
        ("networks: [*project]", "networks: [dmz, other]", {"NETWORK": "dmz"}),
        ('["engine-tests-results:', '["a:/b", "mine:', {"RESULTS": "mine"}),
        # Results in a block, or in a directory of the machine: the stack has a volume of its own.
        ("PREFECT_LOCAL_STORAGE_PATH: /results", "A: B", {"RESULTS": "engine-tests-results"}),
        ('["engine-tests-results:', '["/srv:', {"RESULTS": "engine-tests-results"}),
    ],
)
def test_the_names_of_the_stack_are_those_of_the_manifest(
    tmp_path: Path, old: str, new: str, expected: dict[str, str]
) -> None:
    assert expected.items() <= read_names(edited(tmp_path, old, new)).items()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("networks: [*project]", "networks: []", "must have one in common"),
        ("&project engine-tests", "&project Acme 1", "must be of a-z, .* not 'Acme 1'"),
        ("type: docker", "type: kubernetes", "no deployment in a work pool of type docker"),
    ],
)
def test_a_name_that_the_stack_lacks(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^prefect.yaml.*{expected}"):
        read_names(edited(tmp_path, old, new))


def test_down_asks_for_what_has_the_names_of_the_manifest(
    docker: Path, checkout: Path, clean_env: dict[str, str]
) -> None:
    for name in ("prefect.yaml", "docker/compose.yaml"):
        text = (checkout / name).read_text().replace("engine-tests", "acme")
        (checkout / name).write_text(text.replace("local", "processes"))
    (docker.parent / "answer").write_text("75a57a379ee4\n")
    env = clean_env | {"PATH": os.environ["PATH"]}
    for command in ("check", "down"):
        done = run_command([command], checkout, env)
        assert done.returncode == 0, done.stderr
    compose = "compose -f docker/compose.yaml"
    assert [each for each in docker.read_text().splitlines() if "version" not in each] == [
        f"{compose} stop worker-processes worker-docker",
        "ps --quiet --filter network=acme --filter label=io.prefect.flow-run-id",
        "stop 75a57a379ee4",
        f"{compose} down --remove-orphans",
    ]
    noted = Path(f"{docker}.names").read_text().splitlines()
    assert noted.count("acme acme acme-results") == 2
