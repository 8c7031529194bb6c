"""A Docker Engine to test on, and its images where no registry can be reached."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from deployments.project import ROOT
from deployments.servers import tail
from tests.engine.conftest import MANIFEST

STAND_INS = Path(__file__).parent / "stand_ins"
START_SECONDS = 60
DEFAULT = re.compile(r"\$\{(\w+_IMAGE):-([^}]+)\}")


def docker(*arguments: str) -> str:
    """Run a command of the Docker client, and return what it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


def succeeds(*arguments: str) -> bool:
    return subprocess.run(["docker", *arguments], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def running_engine(log: Path) -> Iterator[None]:
    """Use the engine that runs; or start one, as root, and stop it in the end."""
    assert shutil.which("docker"), "the Docker tests need Docker (Debian: docker.io)"
    assert succeeds("compose", "version") or shutil.which("docker-compose"), (
        "the Docker tests need Docker Compose (Debian: docker-compose)"
    )
    if succeeds("version"):
        yield
        return
    assert os.geteuid() == 0, "no Docker Engine answers: start it"
    assert shutil.which("dockerd"), "no Docker Engine answers, and there is no dockerd to start"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["dockerd"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not succeeds("version"):
            assert process.poll() is None, f"dockerd ended:\n{tail(log)}"
            assert time.monotonic() < deadline, f"dockerd does not answer:\n{tail(log)}"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def find_images() -> dict[str, str]:
    """Return the variables that give other images, where the default ones can't be had.

    A stand-in is made once, of Debian's packages, and stays with the engine, as long as what it
    is made of is the same.
    """
    text = MANIFEST.read_text() + (ROOT / "docker/compose.yaml").read_text()
    missing = [
        variable
        for variable, image in DEFAULT.findall(text)
        if variable not in os.environ
        and not succeeds("image", "inspect", image)
        and not succeeds("pull", image)
    ]
    return {
        variable: _make_stand_in(variable.removesuffix("_IMAGE").lower()) for variable in missing
    }


def _make_stand_in(what: str) -> str:
    recipe = STAND_INS / ("base.sh" if what == "base" else f"{what}.Dockerfile")
    image = f"engine-tests-stand-in-{what}:{hashlib.sha256(recipe.read_bytes()).hexdigest()[:12]}"
    if succeeds("image", "inspect", image):
        return image
    assert os.geteuid() == 0, "no registry can be reached, and only root can make stand-ins"
    assert shutil.which("debootstrap"), "no registry can be reached: stand-ins need debootstrap"
    if what == "base":
        subprocess.run(["bash", str(recipe), image], check=True)
    else:
        base = f"BASE_IMAGE={_make_stand_in('base')}"
        options = ["--build-arg", base, "--tag", image, "--file", str(recipe)]
        docker("build", *options, str(STAND_INS))
    return image
