"""`make init` leaves a whole project: every command works, and it takes newer engines."""

import re
import shutil
from pathlib import Path

import pytest

from deployments.commands._manifest import ROOT
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
    for command in (["init", "NAME=acme"], ["update", f"FROM={template}"]):
        done = run(path, "make", *command)
        assert done.returncode != 0
        assert "error: there are changes that are not committed, such as ?? mine" in done.stdout
        assert git(path, "status", "--porcelain") == "?? mine.txt\n"


def test_a_project_is_not_made_twice(project: Path) -> None:
    done = run(project, "make", "init", "NAME=acme")
    assert done.returncode != 0
    assert "error: this is no fresh clone of the template" in done.stdout


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
    assert "3 passed" in succeed(project, "make", "test", "ARGS=tests/flows")


@pytest.mark.slow
def test_all_its_quick_tests_pass(project: Path) -> None:
    assert " passed" in succeed(project, "make", "test")


@pytest.mark.docker
def test_continuous_integration_passes(project: Path) -> None:
    """All that `.ci/run` does, with few tests: the others are those of this repository."""
    few = "-k 'greet or house or runs_its_children_in_containers'"
    told = succeed(project, ".ci/run", ARGS=few)
    assert len(re.findall(r"\d+ passed", told)) == 3, told


@pytest.mark.slow
def test_the_command_can_be_removed_after_use(project: Path, tmp_path: Path) -> None:
    path = clone(project, tmp_path / "clone")
    shutil.rmtree(path / "deployments" / "init")
    assert "agree" in succeed(path, "make", "check")
    assert " passed" in succeed(path, "make", "test", "ARGS=tests/engine/test_house.py")


@pytest.mark.slow
@pytest.mark.parametrize("edited", [False, True])
def test_a_project_of_an_older_template_takes_a_newer_engine(
    template: Path, tmp_path: Path, edited: bool
) -> None:
    path = clone(template, tmp_path / "clone")
    git(path, "checkout", "--quiet", "-B", "main", "HEAD~1")
    succeed(path, "make", "init", "NAME=acme-pipelines")
    (path / "flows" / "mine.py").write_text('"""A flow of my own."""\n')
    if edited:
        (path / "deployments" / "mine.py").write_text('"""Mine, too."""\n')
    commit(path, "Start acme-pipelines")

    told = succeed(path, "make", "update", f"FROM={template}")

    changelog = (ROOT / "deployments" / "CHANGELOG.md").read_text()
    newest, text = re.findall(r"(?m)^## (\S+)\n\n(.*)", changelog)[0]
    assert f"The engine is {newest} now; it was 0.1.0.\n\n## {newest}\n\n{text}" in told
    lacking = re.findall("the engine is tested with '(.*)': take it over, and `make lock`", told)
    assert lacking == ["prefect-docker"]
    assert ("deployments/ had changes that no engine has" in told) == edited
    changed = git(path, "diff", "--cached", "--name-only").split()
    assert {"deployments/commands/_gone.py", "tests/engine/test_auth.py"} < set(changed)
    assert all(name.startswith(("deployments/", "tests/engine/")) for name in changed)
    assert git(path, "status", "--porcelain").count("\n") == len(changed)
    for folder in ("deployments", "tests/engine"):
        theirs = git(template, "rev-parse", f"HEAD:{folder}")
        assert git(path, "write-tree", f"--prefix={folder}/") == theirs
    if not edited:
        assert "agree" in succeed(path, "make", "check")
        assert "3 passed" in succeed(path, "make", "test", "ARGS=tests/flows")
    commit(path, "A newer engine")
    assert "already" in succeed(path, "make", "update", f"FROM={template}")


def test_what_has_no_newer_engine_is_refused(project: Path, template: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "README.md").touch()
    commit(tmp_path, "Nothing")
    for arguments, problem in (
        ([], "say where the newer engine is: make update FROM=<git url or path>"),
        ([f"FROM={tmp_path}/nowhere"], "`git clone"),
        ([f"FROM={tmp_path}"], "there is no engine in that repository"),
        ([f"FROM={template}", "ARGS=--ref=unheard-of"], "`git checkout"),
        ([f"FROM={template}", "ARGS=--ref=HEAD~1"], "the engine there is 0.1.0, older than this"),
    ):
        done = run(project, "make", "update", *arguments)
        assert done.returncode != 0
        assert done.stdout.startswith(f"error: {problem}"), done.stdout
        assert git(project, "status", "--porcelain") == ""
