"""What `make up` gives to Compose, and `make down` asks for; the stack itself: containers/."""

import os
from pathlib import Path

import pytest

from deployments.stack._stack import read_variables
from tests.engine.conftest import run_command


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Docker client that knows no container and notes what it is asked; the file of the notes."""
    notes = tmp_path / "notes"
    client = tmp_path / "docker"
    client.write_text(
        f'#!/bin/sh\necho "$*" >> "{notes}"\necho "$COMPOSE_PROJECT_NAME" >> "{notes}.names"\n'
        f'cat "{tmp_path}/answer"\n'
    )
    client.chmod(0o755)
    (tmp_path / "answer").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return notes


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        *(("SERVER_PORT", text, "a port") for text in ("http", "0", "123456", "²")),
        *(("SERVERS", text, "a number") for text in ("two", "0", "1234", "-1", "²")),
        ("SERVER_URL", "prefect.example.com", "like https://.*, without /api"),
        ("SERVER_URL", "https://prefect.example.com/api", "like https://.*, without /api"),
    ],
)
def test_a_variable_that_is_none(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{variable} in .env must be {expected}, not '{value}'$"):
        read_variables("acme")


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
    variables = read_variables("acme")
    assert (variables["SERVER_PORTS"], variables["SERVER_URL"]) == expected


def test_a_name_that_docker_refuses() -> None:
    with pytest.raises(ValueError, match=r"^prefect.yaml: name: .* a-z, .* not 'Acme 1'$"):
        read_variables("Acme 1")


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
    assert noted.count("acme") == 2
