"""What `make up` refuses without any Docker Engine; the stack itself is in tests/engine/docker."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.commands._manifest import ROOT
from deployments.commands._stack import read_port, require_port


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


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port


def test_a_taken_port_is_told_before_anything_is_built(
    docker: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_PORT", str(taken))
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
    require_port(taken)
    assert f"publish={taken}" in docker.read_text()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "²"])
def test_a_port_that_is_none(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_PORT", port)
    with pytest.raises(ValueError, match=f"SERVER_PORT in .env must be a port.* not '{port}'"):
        read_port()


@pytest.mark.parametrize("port", [None, ""])
def test_a_port_that_is_not_given(port: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVER_PORT", raising=False)
    if port is not None:
        monkeypatch.setenv("SERVER_PORT", port)
    assert read_port() == 4200
