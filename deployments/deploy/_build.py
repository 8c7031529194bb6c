"""The build and push steps of deployments: all of them, before anything on the server changes."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections import defaultdict
from typing import Any

from prefect.deployments.steps.core import StepExecutionError, run_steps
from prefect.utilities.templating import apply_values

from deployments.deploy._definitions import Report
from deployments.project import ROOT, Deployment, Manifest

STEPS = ("build", "push")
# Imports the flows of some entrypoints, and prints why one can't be.
IMPORT = """
import contextlib, sys
from deployments.project import Manifest
wrong = []
with contextlib.redirect_stdout(sys.stderr):
    for deployment in Manifest.load().deployments:
        if deployment.entrypoint in sys.argv:
            try:
                deployment.load_flow()
            except ValueError as error:
                wrong.append(str(error))
print("\\n".join(dict.fromkeys(wrong)))
"""
LOG_LINES = 15


async def build(
    manifest: Manifest, report: Report = lambda _: None, *, push: bool = True
) -> Manifest:
    """Run the build and push steps, and return a manifest that has their outputs in their place.

    Deployments with the same steps share what these make. The flows are imported in a new image
    before it is pushed: what git does not track, or the lock does not have, is missing there.

    Args:
        manifest: The deployments.
        report: Gets a line about each image.
        push: Run the push steps, too.

    Raises:
        RuntimeError: A step failed, or a flow can't be imported in its image.
    """
    alike = defaultdict[str, list[Deployment]](list)
    for deployment in manifest.deployments:
        alike[repr([deployment.declared.get(step) for step in STEPS])].append(deployment)
    made: list[tuple[list[Deployment], dict[str, Any]]] = []
    for deployments in alike.values():
        outputs = await _run(deployments[0], "build", {})
        if image := outputs.get("image"):  # build_docker_image
            _import_in(image, [deployment.entrypoint for deployment in deployments])
            report(f"built: image {image}")
        made.append((deployments, outputs))
    built: dict[str, Deployment] = {}
    for deployments, outputs in made:
        if push:
            await _run(deployments[0], "push", outputs)
        built |= {deployment.full_name: _fill(deployment, outputs) for deployment in deployments}
    filled = [built[deployment.full_name] for deployment in manifest.deployments]
    return manifest.model_copy(update={"deployments": filled})


def _fill(deployment: Deployment, outputs: dict[str, Any]) -> Deployment:
    left = {key: value for key, value in deployment.declared.items() if key not in STEPS}
    declared: Any = apply_values(left, outputs, remove_notset=False)
    return deployment.model_copy(update={"declared": declared})


async def _run(deployment: Deployment, kind: str, outputs: dict[str, Any]) -> dict[str, Any]:
    """Return what the steps of a kind add to outputs."""
    for step in deployment.declared.get(kind) or []:
        said = io.StringIO()
        try:
            with contextlib.chdir(ROOT), contextlib.redirect_stdout(said):
                outputs = await run_steps([step], outputs, print_function=lambda *_, **__: None)
        except StepExecutionError as error:
            ((name, inputs),) = step.items()
            what = f"the {kind} step {name} failed"
            if "image_name" in inputs:
                image: Any = apply_values(f"{inputs['image_name']}:{inputs.get('tag')}", outputs)
                what = f"the image {image} can't be built"
            why = " ".join(str(error.__cause__).split())
            log = said.getvalue().splitlines()[-LOG_LINES:] if "non-zero" in why else []
            raise RuntimeError("\n".join([f"prefect.yaml: {what}: {why}", *log])) from error
    return outputs


def _import_in(image: str, entrypoints: list[str]) -> None:
    """Import flows in an image, without network and secrets."""
    if shutil.which("docker") is None:
        raise RuntimeError("`docker` is not installed, by which flows are imported in a new image")
    command = ["docker", "run", "--rm", "--network=none", image, "python", "-c", IMPORT]
    done = subprocess.run([*command, *entrypoints], capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"no flow can be imported in the image {image}: {why}")
    if wrong := done.stdout.strip():
        hints = map(_hint, wrong.splitlines())
        raise RuntimeError("\n".join([f"in the image {image}:", *hints]))


def _hint(finding: str) -> str:
    """Add what to do to a finding: git does not track a file, or the lock lacks a package."""
    module = re.search(r"No module named '(\w+)", finding)
    file = re.search(r"No such file or directory: '/app/([^']+)'", finding)
    if module and not [*ROOT.glob(module[1]), *ROOT.glob(f"{module[1]}.py")]:
        return f"{finding}: add it to pyproject.toml, then `make lock`"
    if missing := module or file:
        return f"{finding}: `git add {missing[1]}`, or take it out of .dockerignore"
    return finding
