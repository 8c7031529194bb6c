"""What `make up` gives to Compose, and `make down` asks for; the stack itself: containers/."""

import os
from pathlib import Path
from uuid import uuid4

import pytest

from deployments.project import Manifest
from deployments.servers._processes import free_port
from deployments.stack._stack import read_variables
from tests.engine.conftest import MANIFEST, run_command


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Docker client that knows no container and notes what it is asked; the file of the notes."""
    notes = tmp_path / "notes"
    client = tmp_path / "docker"
    client.write_text(f'#!/bin/sh\necho "$*" >> "{notes}"\ncat "{tmp_path}/answer"\n')
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
        read_variables(Manifest.load(MANIFEST))


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
    variables = read_variables(Manifest.load(MANIFEST))
    assert (variables["SERVER_PORTS"], variables["SERVER_URL"]) == expected


def test_a_name_that_docker_refuses() -> None:
    manifest = Manifest.load(MANIFEST).model_copy(update={"name": "Acme 1"})
    with pytest.raises(ValueError, match=r"^prefect.yaml: name: .* a-z, .* not 'Acme 1'$"):
        read_variables(manifest)


@pytest.mark.parametrize("stack", ["engine-tests", "another"])
def test_down_ends_the_stack_and_its_runs_though_the_server_is_down(
    docker: Path, checkout: Path, clean_env: dict[str, str], stack: str
) -> None:
    env = clean_env | {"PATH": os.environ["PATH"]}
    if stack != "engine-tests":
        env["COMPOSE_PROJECT_NAME"] = stack
    env["SERVER_PORT"] = str(free_port())
    (checkout / "docker" / ".env").unlink(missing_ok=True)
    done = run_command(["down"], checkout, env)
    assert done.stderr == f"error: {checkout}/docker/.env is missing: `make up` writes it\n"
    (checkout / "docker" / ".env").touch()
    (docker.parent / "answer").write_text(f"75a57a379ee4 {uuid4()}\n")
    done = run_command(["down", "--volumes"], checkout, env)
    assert done.returncode == 1
    assert "confirm it by --yes" in done.stderr
    docker.write_text("")
    done = run_command(["down"], checkout, env)
    assert done.returncode == 0, done.stderr
    assert "The server does not know that runs have ended: " in done.stderr
    compose = "compose -f docker/compose.yaml"
    notes = [each for each in docker.read_text().splitlines() if "version" not in each]
    assert [each.partition(" --format")[0] for each in notes] == [
        f"ps --all --filter label=com.docker.compose.project={stack}",
        f"{compose} stop worker",
        f"ps --filter network={stack} --filter label=io.prefect.flow-run-id",
        "stop 75a57a379ee4",
        f"{compose} down --remove-orphans",
    ]


def test_a_stack_of_another_checkout_is_left_alone(
    docker: Path, checkout: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    (docker.parent / "answer").write_text(f"{tmp_path}\n")
    for command in ("up", "down"):
        done = run_command([command], checkout, clean_env | {"PATH": os.environ["PATH"]})
        assert done.returncode == 1
        assert done.stderr == (
            f"error: a stack named engine-tests was started from {tmp_path}: go on there, or set "
            "COMPOSE_PROJECT_NAME and SERVER_PORT in .env, for a stack of this checkout\n"
        )
    assert "compose -f" not in docker.read_text()
