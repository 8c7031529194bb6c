"""`flow`: a new flow, its test, and its entries at the end of prefect.yaml."""

from __future__ import annotations

import builtins
import keyword
import re
import subprocess
import sys
from typing import Any

import yaml

from deployments.project._manifest import ROOT, Manifest

NAME = "[a-z][a-z0-9]*((-[a-z0-9]+)*|(_[a-z0-9]+)*)"
# What the templates below name otherwise, beside Python itself.
USED = ("BaseModel", "ChildFailed", "Stubs", "child", "flow", "flows", "name", "names", "stubs")
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
        if keyword.iskeyword(word) or hasattr(builtins, word) or word in USED:
            raise ValueError(f"{word} is something else in Python here: take another NAME")
    manifest, file, test = Manifest.load(), f"flows/{flow}.py", f"tests/flows/test_{flow}.py"
    taken = [path for path in (file, test) if (ROOT / path).exists()]
    taken += [found.full_name for found in manifest.deployments if found.load_flow().name == run]
    if taken:
        raise ValueError(f"there is {taken[0]} already: take another NAME")
    values = {"flow": flow, "run": run, "result": result, "queue": "children"}
    templates = CHILD, CHILD_TEST
    if parent:
        values |= {"queue": "parents", **_find_child(manifest)}
        templates = PARENT, PARENT_TEST
    text = _declare(manifest, values)
    for path, template in zip((file, test), templates, strict=True):
        (ROOT / path).write_text(template.format_map(values), encoding="utf-8")
    for tidy in (["check", "--fix-only"], ["format"]):  # the order and length of the names
        ruff = [sys.executable, "-m", "ruff", *tidy, "--quiet", file, test]
        subprocess.run(ruff, cwd=ROOT, check=False)
    manifest.path.write_text(text, encoding="utf-8")
    return [file, test, manifest.path.name]


def _find_child(manifest: Manifest) -> dict[str, str]:
    """Return the names of a child, its module and its result, for a parent to call."""
    for deployment in reversed(manifest.deployments):
        flow = deployment.load_flow()
        place = re.fullmatch(r"flows/(\w+)\.py:(\w+)", deployment.entrypoint)
        taken = [flow.parameters.properties[name] for name in flow.parameters.required or ()]
        result: Any = flow.fn.__annotations__.get("return")
        own = getattr(result, "__module__", None) == flow.fn.__module__
        if place and own and [one.get("type") for one in taken] == ["string"]:
            return {"module": place[1], "child": place[2], "result": result.__name__}
    raise ValueError(
        "a parent needs a child that takes one text and returns a model of its own file: "
        "make flow NAME=clean-gauges"
    )


def _declare(manifest: Manifest, values: dict[str, str]) -> str:
    """Return prefect.yaml with the entries of a flow at its end, and all else as it is."""
    text, queue = manifest.path.read_text(encoding="utf-8"), values["queue"]
    pools = manifest.definitions.work_pools.items()
    fitting = [name for name, pool in pools if pool.type == "process" and queue in pool.queues]
    if not fitting:
        raise ValueError(f"prefect.yaml lacks a work pool of type process with a queue {queue}")
    entries = ENTRY + (DOCKER_ENTRY if re.search(r"&docker\b", text) else "")
    text = text.rstrip("\n") + "\n" + entries.format_map(values | {"pool": fitting[0]})
    problem = "it would not be in `deployments`"
    try:
        if yaml.safe_load(text)["deployments"][-1]["entrypoint"].endswith(f":{values['flow']}"):
            return text
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem)
    raise ValueError(
        f"prefect.yaml can't have a new entry at its end, {problem}: let `deployments` be its last "
        f"part, and declare &docker_{queue} if there is &docker"
    )
