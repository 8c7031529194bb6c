"""Take the example out of the template, and leave the smallest whole project in its place."""

import re
import shutil
from pathlib import Path

from deployments.commands._git import git, require_clean
from deployments.commands._manifest import ROOT
from deployments.commands._update import FOLDERS

STARTER = Path(__file__).parent / "starter"
# What only the template has. It is a fresh clone as long as the last one is there.
TEMPLATE = (
    "flows",
    "data",
    "benchmarks",
    "tests/flows",
    "tests/template",
    ".github/run-graph.png",
    ".github/children.png",
)
KEBAB = "[a-z][a-z0-9]*(-[a-z0-9]+)*"
SNAKE = "[a-z][a-z0-9]*(_[a-z0-9]+)*"
# In pyproject.toml: the template's name and licence, and what is said of what is taken out.
PYPROJECT = (
    (r'(?m)^name = ".*"$', 'name = "{package}"'),
    (r'(?m)^description = ".*"$', 'description = "Prefect parent flows and their children."'),
    (r'(?m)^license = ".*"\n', ""),
    (r'"benchmarks", ', ""),
    (r"(?m)^bench = .*\n", ""),
    (r'(?m)^"benchmarks/\*" = .*\n', ""),
)
DONE = """\
This is {name} now. It has one parent, flows/greet_all.py, and one child, flows/greet.py, with their
entries in prefect.yaml, their tests in tests/flows, and a README.md that says how to go on.
The example is gone, and so are data/, benchmarks/ and the template's own tests.

Look at it:   git status
See it work:  make demo && make test
Keep it:      git add --all && git commit -m "Start {name}"
"""


def start_project(name: str = "") -> str:
    """Make a fresh clone a project of this name, and return what was done and what comes next.

    Args:
        name: In kebab-case or snake_case.

    Raises:
        ValueError: It is neither; or this is no fresh clone of the template.
    """
    if not (re.fullmatch(KEBAB, name) or re.fullmatch(SNAKE, name)):
        raise ValueError(
            f"NAME must be like acme-pipelines or acme_pipelines, not {name!r}: "
            "make init NAME=acme-pipelines"
        )
    if not git(ROOT, "ls-files", TEMPLATE[-1]):
        raise ValueError("this is no fresh clone of the template: it was made a project before")
    require_clean(ROOT)
    kebab, snake = name.replace("_", "-"), name.replace("-", "_")
    git(ROOT, "rm", "-r", "--quiet", *TEMPLATE)  # not what git ignores, such as an `.env`
    _declare()
    shutil.copytree(STARTER, ROOT, dirs_exist_ok=True, ignore=lambda *_: {"deployments.yaml"})
    _edit_pyproject(snake)
    _leave_machines_out()
    _rename(kebab)
    readme = ROOT / "README.md"
    readme.write_text(readme.read_text().replace("{name}", kebab))
    if (installed := ROOT / ".venv" / "installed").exists():
        installed.touch()  # the lock has another name in its comments, and is the same
    return DONE.format(name=kebab)


def _declare() -> None:
    """Declare the starter's flows in place of the example's, above the engine's own."""
    path = ROOT / "prefect.yaml"
    head, start, tail = path.read_text().partition("\ndeployments:\n")
    entries = re.split(r"(?m)^(?=  - )", tail)
    own = next(each for each in entries if "entrypoint: deployments/" in each)
    starter = (STARTER / "deployments.yaml").read_text()
    path.write_text(head + start + starter + tail[tail.index(own) :])


def _edit_pyproject(package: str) -> None:
    path = ROOT / "pyproject.toml"
    text = path.read_text()
    for pattern, new in PYPROJECT:
        text = re.sub(pattern, new.format(package=package), text)
    path.write_text(text)


def _leave_machines_out() -> None:
    """Keep from the project's CI what proves docker/README.md, which is the project's own now."""
    path = ROOT / ".ci" / "run"
    path.write_text(path.read_text().partition("\n# Of the template:")[0])


def _rename(name: str) -> None:
    """Say the project's name wherever the template's stands: not in the engine."""
    engine = tuple(f"{folder}/" for folder in FOLDERS)
    (old,) = re.findall(r"(?m)^name: (?:&\w+ )?(.+)$", (ROOT / "prefect.yaml").read_text())
    every = ("--cached", "--others", "--exclude-standard")
    for file in git(ROOT, "ls-files", "-z", *every).split("\0")[:-1]:
        path = ROOT / file
        if file.startswith(engine) or not path.is_file():
            continue
        content = path.read_bytes()
        if old.encode() in content:
            path.write_bytes(content.replace(old.encode(), name.encode()))
