"""`make init` leaves a whole project, in which every command works."""

import re
import sys
from pathlib import Path

import pytest

from tests.template.conftest import clone, commit, git, run, succeed

EXAMPLE = re.compile("flight|airport|parent-flows", re.IGNORECASE)


@pytest.fixture(scope="session")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was just made."""
    path = clone(template, tmp_path_factory.mktemp("project") / "my project")
    told = succeed(path, "make", "init", "NAME=acme-pipelines")
    assert "This is acme-pipelines now." in told
    commit(path, "Start acme-pipelines")
    return path


@pytest.mark.parametrize("name", ["NAME=AcmePipelines", "NAME=acme-big_one", "NAME=1st", ""])
def test_what_is_no_name_is_refused(template: Path, tmp_path: Path, name: str) -> None:
    path = clone(template, tmp_path / "clone")
    done = run(path, "make", "init", *filter(None, [name]))
    assert done.returncode != 0
    assert done.stdout.startswith(
        "error: NAME must be like acme-pipelines or acme_pipelines, not "
        f"{name.removeprefix('NAME=')!r}: make init NAME=acme-pipelines\n"
    )
    assert git(path, "status", "--porcelain") == ""


def test_a_dirty_tree_is_refused(template: Path, tmp_path: Path) -> None:
    path = clone(template, tmp_path / "clone")
    (path / "mine.txt").touch()
    done = run(path, "make", "init", "NAME=acme")
    assert done.returncode != 0
    assert "error: commit or stash what has changed here first:\n?? mine.txt\n" in done.stdout
    assert git(path, "status", "--porcelain") == "?? mine.txt\n"


def test_a_project_is_not_made_twice(project: Path) -> None:
    done = run(project, "make", "init", "NAME=acme")
    assert done.returncode != 0
    assert "No rule to make target 'init'" in done.stdout


def test_it_needs_python_and_git_alone_and_makes_the_same_of_the_same(
    project: Path, template: Path, tmp_path: Path
) -> None:
    """`make update` relies on that: it makes a project of the template again."""
    path = clone(template, tmp_path / "clone")
    succeed(path, sys.executable, "-I", "-S", "deployments/init", "acme_pipelines")
    commit(path, "Start acme-pipelines")
    assert git(path, "diff", git(project, "rev-parse", "HEAD^{tree}").strip(), "HEAD") == ""


def test_a_push_does_not_go_to_the_template(project: Path) -> None:
    assert git(project, "remote") == "template\n"
    assert git(project, "for-each-ref", "--format=%(upstream)", "refs/heads").strip() == ""


def test_names_are_in_kebab_case_and_the_package_in_snake_case(
    template: Path, tmp_path: Path
) -> None:
    path = clone(template, tmp_path / "clone")
    note = path / "docker" / 'größe "1".md'  # git quotes such names
    note.write_text("Of parent-flows.\n")
    commit(path, "A note")
    succeed(path, "make", "init", "NAME=acme_pipelines")
    assert note.read_text() == "Of acme-pipelines.\n"
    assert re.search("(?m)^name: .*acme-pipelines$", (path / "prefect.yaml").read_text())
    assert 'name = "acme_pipelines"' in (path / "pyproject.toml").read_text()
    assert "(http" not in (path / "README.md").read_text().splitlines()[0]
    assert (path / "README.md").read_text().startswith("# acme-pipelines\n")


def test_nothing_speaks_of_the_example(project: Path) -> None:
    files = git(project, "ls-files", "-z").split("\0")[:-1]
    for name in files:
        found = EXAMPLE.search(name + "\n" + (project / name).read_text(errors="replace"))
        assert not found, f"{name}: {found}"
    assert [name for name in files if name.startswith(("flows", "tests/flows", "data"))] == [
        "flows/__init__.py",
        "flows/greet.py",
        "flows/greet_all.py",
        "tests/flows/__init__.py",
        "tests/flows/test_greet_all.py",
    ]


def test_the_links_of_its_readme_lead_somewhere(project: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (project / "README.md").read_text()):
        assert (project / link).exists(), link


def test_it_is_checked_linted_and_formatted(project: Path) -> None:
    assert "agree" in succeed(project, "make", "check")
    succeed(project, "make", "lint")
    mine = project / "flows" / "mine.py"
    mine.write_text('"""Mine."""\nfrom prefect import flow\nimport csv\nprint  ( csv,flow )\n')
    succeed(project, "make", "format")
    assert (
        mine.read_text()
        == '"""Mine."""\n\nimport csv\n\nfrom prefect import flow\n\nprint(csv, flow)\n'
    )
    mine.unlink()


def test_its_demo_is_its_own_parent(project: Path) -> None:
    demo = [".venv/bin/python", "-m", "deployments", "demo", "--json"]
    told = succeed(project, *demo, "-p", 'names=["Ada", "Eve"]')
    assert '"Hello, Ada!"' in told
    assert '"Hello, Eve!"' in told


@pytest.mark.slow
def test_its_own_tests_pass(project: Path) -> None:
    """With them those of the engine that look at what is around; all others see nothing new."""
    around = ("house", "check", "fault_table", "stack", "testing", "typing")
    engine = " ".join(f"tests/engine/test_{name}.py" for name in around)
    assert " passed" in succeed(project, "make", "test", f"ARGS=tests/flows {engine}")


@pytest.mark.docker
def test_continuous_integration_passes(project: Path) -> None:
    """All that `.ci/run` does, with few tests: the others are those of this repository."""
    few = "-k 'greet or house or runs_its_children_in_containers'"
    told = succeed(project, ".ci/run", ARGS=few)
    assert len(re.findall(r"\d+ passed", told)) == 3, told
