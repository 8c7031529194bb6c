"""`make` alone tells of each target."""

import re
from pathlib import Path

import pytest

from tests.template.conftest import clone, start_project, succeed


@pytest.mark.parametrize("where", ["the template", "a project"])
def test_make_alone_has_a_line_for_each_target(template: Path, tmp_path: Path, where: str) -> None:
    make = clone if where == "the template" else start_project
    path = make(template, tmp_path / "my flows")
    makefiles = [path / "Makefile", path / "deployments" / "engine.mk"]
    rules = [
        name
        for file in makefiles
        for name in re.findall(r"(?m)^([\w-]+)\s*:(?!=)", file.read_text())
    ]
    told = succeed(path, "make")
    lines = [re.fullmatch(r"make (\S+) +\S.*", line) for line in told.splitlines()]
    assert [line and line[1] for line in lines] == rules
    assert all(len(line) <= 100 for line in told.splitlines())
    assert succeed(path, "make", "help") == told
    text = "\n".join(file.read_text() for file in makefiles)
    assert set(" ".join(re.findall(r"(?m)^\.PHONY: (.*)$", text)).split()) == set(rules)
    assert {"help", "demo", "flow", "test", "deploy"} < set(rules)
