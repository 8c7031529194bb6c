"""`make update`: git merges what is new in the template into a project, and loses nothing."""

import shutil
from pathlib import Path

import pytest

from tests.template.conftest import clone, commit, git, run, succeed

# What users and the template both change. The template has the first for projects elsewhere.
FILES = (
    "Makefile",
    "prefect.yaml",
    "pyproject.toml",
    "docker/Dockerfile",
    "deployments/__init__.py",
)
STARTER = Path("deployments", "init", "starter")
GONE = "docker/nginx.conf"
NEW = "deployments/new.py"
UNDO = "Undo it: git reset --hard.\n"


def edit(file: Path, before: str = "", after: str = "") -> None:
    file.write_text(before + file.read_text() + after)


@pytest.fixture(scope="module")
def newer(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with a newer commit; its branch `older` is without."""
    path = clone(template, tmp_path_factory.mktemp("newer") / "template")
    git(path, "branch", "older")
    for name in (STARTER / FILES[0], *FILES[1:]):
        edit(path / name, before="# The template's.\n")
    (path / NEW).touch()
    (path / GONE).unlink()
    commit(path, "What is new")
    return path


def start(newer: Path, path: Path, how: str = "a clone") -> Path:
    """Make a project of the older template."""
    clone(newer, path, "--branch=older", *(["--depth=1"] if how == "a shallow clone" else []))
    if how == "a copy without history":
        shutil.rmtree(path / ".git")
        git(path, "init", "--quiet")
        git(path, "remote", "add", "origin", str(path))
        (path / ".git" / "info" / "exclude").write_text(".venv\n")
        commit(path, "A copy")
    succeed(path, "make", "init", "NAME=acme-pipelines")
    commit(path, "Start acme-pipelines")
    return path


@pytest.mark.parametrize("how", ["a clone", "a shallow clone", "a copy without history"])
def test_edits_are_kept_and_what_is_new_is_in(newer: Path, tmp_path: Path, how: str) -> None:
    path = start(newer, tmp_path / "my project", how)
    for name in FILES:
        edit(path / name, after="\n# Mine.\n")
    (path / "flows" / "mine.py").touch()
    (path / "flows" / "greet.py").unlink()
    commit(path, "My own")
    (path / ".env").write_text("MINE=1\n")  # git ignores it
    source = [f"FROM={newer}"] if how == "a copy without history" else []

    told = succeed(path, "make", "update", *source)

    assert told.endswith(UNDO), told
    for name in FILES:
        text = (path / name).read_text()
        assert text.startswith("# The template's.\n"), name
        assert text.endswith("\n# Mine.\n"), name
    assert git(path, "status", "--porcelain").splitlines() == sorted(
        [*(f"M  {name}" for name in FILES), f"A  {NEW}", f"D  {GONE}"], key=lambda line: line[3:]
    )
    assert (path / ".env").read_text() == "MINE=1\n"
    assert "origin" in git(path, "remote") if source else git(path, "remote") == "template\n"
    commit(path, "What is new")
    assert "Nothing is newer" in succeed(path, "make", "update", *source)
    assert git(path, "status", "--porcelain") == ""


def test_conflicts_are_marked_told_and_can_be_undone(newer: Path, tmp_path: Path) -> None:
    path = start(newer, tmp_path / "project")
    edit(path / "prefect.yaml", before="# Mine.\n")
    edit(path / GONE, after="# Mine.\n")
    commit(path, "My own")

    done = run(path, "make", "update")

    assert done.returncode != 0
    assert f"error: all is merged but these conflicts: {GONE}, prefect.yaml." in done.stdout
    assert UNDO in done.stdout
    text = (path / "prefect.yaml").read_text()
    assert text.startswith("<<<<<<< HEAD\n# Mine.\n=======\n# The template's.\n>>>>>>> ")
    status = git(path, "status", "--porcelain").splitlines()
    assert {f"UD {GONE}", "UU prefect.yaml", f"A  {NEW}"} < set(status)
    git(path, "reset", "--quiet", "--hard")
    assert git(path, "status", "--porcelain") == ""


def test_a_project_of_before_is_told_its_commit(newer: Path, tmp_path: Path) -> None:
    """Up to 1.2, `init` wrote down nothing, stayed in the project, and imported the engine."""
    template = clone(newer, tmp_path / "template", "--branch=older")
    init = template / STARTER.parent
    text = (init / "__main__.py").read_text()
    for new in ("[tool.template]", '_git("rm", "-r", "--quiet", "deployments/init")'):
        assert new in text
        text = text.replace(new, "")
    (init / "_init.py").write_text(text)
    (init / "__main__.py").write_text(
        "import sys\nfrom deployments.init._init import start_project\nstart_project(sys.argv[1])\n"
    )
    (template / "deployments" / "__init__.py").write_text("")  # without Prefect, which takes long
    commit(template, "The template of before")
    base = git(template, "rev-parse", "HEAD").strip()
    path = clone(template, tmp_path / "project")
    succeed(path, ".venv/bin/python", "-m", "deployments.init", "acme-pipelines")
    edit(path / "prefect.yaml", after="\n# Mine.\n")
    commit(path, "Start acme-pipelines")
    git(template, "rm", "-r", "--quiet", ".")
    git(template, "checkout", "--quiet", "origin/main", "--", ".")
    commit(template, "The newer one")

    done = run(path, "make", "update")
    assert done.returncode != 0
    assert "make update ARGS=--base=<commit>\n" in done.stdout
    assert UNDO in succeed(path, "make", "update", f"ARGS=--base={base}")

    assert not (path / STARTER).exists()
    text = (path / "prefect.yaml").read_text()
    assert text.startswith("# The template's.\n")
    assert text.endswith("\n# Mine.\n")
    commit(path, "What is new")
    assert "Nothing is newer" in succeed(path, "make", "update")


def test_what_can_not_be_done_is_told_and_changes_nothing(newer: Path, tmp_path: Path) -> None:
    path = start(newer, tmp_path / "project")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    commit(other, "Nothing", "--allow-empty")
    for arguments, problem in (
        ([f"FROM={tmp_path}/nowhere"], "`git clone"),
        ([f"FROM={other}"], "the template has no commit that pyproject.toml says"),
        (["ARGS=--ref=unheard-of"], "`git checkout"),
        (["ARGS=--base=unheard-of"], "`git checkout"),
    ):
        done = run(path, "make", "update", *arguments)
        assert done.returncode != 0
        assert done.stdout.startswith(f"error: {problem}"), done.stdout
        assert git(path, "status", "--porcelain") == ""

    (path / ".git" / "info" / "exclude").write_text(f".venv\n{NEW}\n")
    (path / NEW).write_text("# Mine.\n")
    done = run(path, "make", "update")
    assert done.stdout.startswith(f"error: {NEW} is in the template, and here, but not in git")
    assert (path / NEW).read_text() == "# Mine.\n"

    (path / "mine.txt").touch()
    done = run(path, "make", "update")
    assert done.stdout.startswith(
        "error: commit or stash what has changed here first:\n?? mine.txt"
    )

    git(path, "clean", "--quiet", "--force")
    git(path, "remote", "remove", "template")
    done = run(path, "make", "update")
    assert done.stdout.startswith("error: there is no git remote `template`: make update FROM=")
