"""`flow`: a new flow, its test, and its entries at the end of prefect.yaml."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import keyword
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import get_type_hints

import yaml

from deployments.project._manifest import ROOT, Manifest

NAME = "[a-z][a-z0-9]*((-[a-z0-9]+)*|(_[a-z0-9]+)*)"
OWN = (
    "BaseModel",
    "ChildFailed",
    "Stubs",
    "child",
    "flow",
    "name",
    "names",
    "parent_flow",
    "stubs",
)
CHILD = '''\
"""A child: it works on one thing."""

from prefect import flow
from pydantic import BaseModel


class {result}(BaseModel):
    """What came out."""

    name: str


@flow(flow_run_name="{run} {{name}}")
def {flow}(name: str) -> {result}:
    """Work on one thing: the UI shows what is written here.

    Args:
        name: The name of the thing.
    """
    return {result}(name=name)
'''
CHILD_TEST = """\
from flows.{flow} import {result}, {flow}


def test_what_comes_out() -> None:
    assert {flow}.fn("one") == {result}(name="one")
"""
PARENT = '''\
"""A parent: one child run per thing, side by side."""

import asyncio

from deployments import child, parent_flow
from flows.{module} import {result}, {child}


@parent_flow
async def {flow}(names: list[str] = ["one", "two", "three"]) -> list[{result}]:
    """Work on many things at once: the UI shows what is written here.

    Args:
        names: The names of the things; each is a child run of its own.
    """
    return await asyncio.gather(*(child({child})(name) for name in names))
'''
PARENT_TEST = '''\
import pytest

from deployments import ChildFailed
from deployments.testing import Stubs
from flows.{module} import {child}
from flows.{flow} import {flow}

pytestmark = pytest.mark.anyio


async def test_each_has_a_child(stubs: Stubs) -> None:
    """With stand-ins for the children, which here run their code: no worker."""
    stubs.runs({child}, {child}.fn)
    assert await {flow}(["one", "two"]) == [{child}.fn("one"), {child}.fn("two")]


async def test_a_child_that_fails_fails_the_parent(stubs: Stubs) -> None:
    stubs.raises({child}, ValueError("no"))
    with pytest.raises(ChildFailed, match="no"):
        await {flow}(["one"])
'''
ENTRY = """
  - &{flow}
    name: local
    entrypoint: flows/{flow}.py:{flow}
    work_pool: {{name: {pool}, work_queue_name: {queue}}}
"""
DOCKER_ENTRY = "  - {{<<: [*docker, *{flow}], work_pool: *docker_{queue}}}\n"


def write_flow(name: str, parent: bool) -> list[str]:
    """Write a flow, its test and its entries, or nothing; and return the files.

    Args:
        name: In kebab-case or snake_case.
        parent: Whether it calls a child: the last that takes a text alone, as those from here do.

    Raises:
        ValueError: The name is none, or is taken; or prefect.yaml lacks what it needs.
    """
    if not re.fullmatch(NAME, name):
        told = "NAME must be like clean-gauges or clean_gauges, not"
        raise ValueError(f"{told} {name!r}: make flow NAME=clean-gauges")
    flow, run = name.replace("-", "_"), name.replace("_", "-")
    result = "".join(part.capitalize() for part in flow.split("_"))
    for word in (flow, result):
        if keyword.iskeyword(word) or hasattr(builtins, word) or word in OWN or find_spec(word):
            raise ValueError(f"{word} is something else in Python here: take another NAME")
    manifest, file, test = Manifest.load(), f"flows/{flow}.py", f"tests/flows/test_{flow}.py"
    before = manifest.path.read_bytes()
    there = [path for path in (file, test) if (ROOT / path).exists()]
    there += re.findall(rf"&{flow}\b", before.decode())
    there += [each.full_name for each in manifest.deployments if each.load_flow().name == run]
    if there:
        raise ValueError(f"there is {there[0]} already: take another NAME")
    values = {"flow": flow, "run": run, "result": result, "queue": "children"}
    if parent:
        values |= {"queue": "parents", **_find_child(manifest)}
    after = before + _declare(manifest, before, values)
    templates = (PARENT, PARENT_TEST) if parent else (CHILD, CHILD_TEST)
    code, proof = (template.format_map(values).encode() for template in templates)
    draft = manifest.path.with_suffix(".new")
    with contextlib.ExitStack() as undo:
        for path, text in ((ROOT / file, code), (ROOT / test, proof), (draft, after)):
            with path.open("xb") as opened:
                undo.callback(path.unlink)
                opened.write(text)
        for tidy in (["check", "--fix-only"], ["format"]):  # the order and length of the names
            ruff = [sys.executable, "-m", "ruff", *tidy, "--quiet", file, test]
            subprocess.run(ruff, cwd=ROOT, check=False)
        draft.replace(manifest.path)
        undo.pop_all()
    return [file, test, manifest.path.name]


def _find_child(manifest: Manifest) -> dict[str, str]:
    """Return the names of a child, its module and its result, for a parent to call."""
    for deployment in reversed(manifest.deployments):
        flow, place = deployment.load_flow(), deployment.entrypoint
        with contextlib.suppress(NameError, TypeError):
            hints, (taken, *_) = get_type_hints(flow.fn), inspect.signature(flow.fn).parameters
            inspect.signature(flow.fn).bind("one")
            result, found = hints["return"], re.fullmatch(r"flows/(\w+)\.py:(\w+)", place)
            of_flow = getattr(result, "__module__", "") == flow.fn.__module__
            if found and hints[taken] is str and of_flow and not flow.isasync:
                return {"module": found[1], "child": found[2], "result": result.__name__}
    raise ValueError(
        "a parent needs a child that takes one text and returns a model of its own file: "
        "make flow NAME=clean-gauges"
    )


def _declare(manifest: Manifest, before: bytes, values: dict[str, str]) -> bytes:
    """Return the entries of a flow, for the end of prefect.yaml."""
    queue, pools = values["queue"], manifest.definitions.work_pools
    fitting = [key for key, of in pools.items() if of.type == "process" and queue in of.queues]
    if not fitting:
        raise ValueError(f"prefect.yaml lacks a work pool of type process with a queue {queue}")
    entries = ENTRY + (DOCKER_ENTRY if re.search(rb"&docker\b", before) else "")
    text = entries.format_map(values | {"pool": fitting[0]}).encode()
    added = text if before.endswith(b"\n") else b"\n" + text
    problem = "it would not be in `deployments`"
    try:
        last = yaml.safe_load(before + added)["deployments"][-1]
        if last["entrypoint"] == f"flows/{values['flow']}.py:{values['flow']}":
            return added
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem)
    raise ValueError(
        f"prefect.yaml can't have a new entry at its end, {problem}: let `deployments` be its last "
        f"part, and declare &docker_{queue} if there is &docker"
    )
