"""The lock is installed by uv, from pip's index; else by pip."""

import base64
import functools
import hashlib
import http.server
import os
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.project import ROOT
from tests.template.conftest import succeed

SAYS_WHO = "#!/bin/sh\necho by uv >&2\nexec '{uv}' \"$@\"\n"


def make_wheel(directory: Path, name: str, script: str | None = None) -> str:
    """Make a package, in the index that is in a directory, and return its line in the lock."""
    files = {f"{name}.py": ""}
    files[f"{name}-1.dist-info/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
    files[f"{name}-1.dist-info/WHEEL"] = (
        "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    if script:
        files[f"{name}-1.data/scripts/{name}"] = script
    record = f"{name}-1.dist-info/RECORD"
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
        for digest in [hashlib.sha256(text.encode()).digest()]
    ]
    files[record] = "\n".join([*lines, f"{record},,", ""])
    wheel = directory / name / f"{name}-1-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16  # else a script could not be run
            archive.writestr(entry, text)
    return f"{name}==1 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two packages, `acme` and a `uv` that says so, and a lock of both."""
    path = tmp_path_factory.mktemp("packages")
    script = SAYS_WHO.format(uv=Path(sys.executable).with_name("uv"))
    locked = [make_wheel(path / "simple", "acme"), make_wheel(path / "simple", "uv", script)]
    (path / "requirements-dev.txt").write_text("".join(locked))
    return path


@pytest.fixture(scope="module")
def index(packages: Path) -> Iterator[str]:
    """The address of that index."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=packages)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


@pytest.fixture
def project(packages: Path, tmp_path: Path) -> Path:
    """What an installation needs of a project, and no configuration of this machine's."""
    (tmp_path / "deployments").mkdir()
    shutil.copy(ROOT / "deployments" / "engine.mk", tmp_path / "deployments")
    shutil.copy(packages / "requirements-dev.txt", tmp_path)
    return tmp_path


def install(project: Path, **env: str) -> str:
    """Install, where pip and uv know of no index but what `env` says, and return what was said."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            env.setdefault(name, "")
    alone = {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "UV_CACHE_DIR": f"{project}/uv"}
    told = succeed(project, "make", "-f", "deployments/engine.mk", ".venv/installed", **alone | env)
    succeed(project, ".venv/bin/python", "-c", "import acme")
    return told


def test_uv_is_told_the_index_of_pips_variable(project: Path, index: str) -> None:
    told = install(project, PIP_INDEX_URL=index)
    assert told.splitlines()[-1] == "by uv", told
    assert list(project.glob(".venv/lib/*/site-packages/__pycache__/acme.*.pyc"))


def test_uv_is_told_the_index_of_pips_file(project: Path, index: str) -> None:
    (project / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    told = install(project, PIP_CONFIG_FILE=str(project / "pip.conf"))
    assert told.splitlines()[-1] == "by uv", told


def test_where_pip_gets_no_uv_it_installs_the_rest(project: Path, index: str) -> None:
    lock = project / "requirements-dev.txt"
    lock.write_text(lock.read_text().partition("uv==")[0])
    told = install(project, PIP_INDEX_URL=index)
    assert told.splitlines()[-1].startswith("uv can't install this here, see above: pip does")


def test_where_uv_can_not_install_pip_does(project: Path, index: str) -> None:
    told = install(project, PIP_INDEX_URL=index, UV_DEFAULT_INDEX=f"{index}/nowhere")
    assert told.splitlines()[-1] == (
        "uv can't install this here, see above: pip does, which takes longer."
    )


def test_another_hash_is_refused(project: Path, index: str) -> None:
    lock = project / "requirements-dev.txt"
    lock.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", lock.read_text(), count=1))
    with pytest.raises(AssertionError, match="DO NOT MATCH THE HASHES"):
        install(project, PIP_INDEX_URL=index)
    assert not (project / ".venv" / "installed").exists()
