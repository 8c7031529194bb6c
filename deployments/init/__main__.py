"""`make init`: from a fresh clone of the template to a project of one's own.

It takes itself out, too. `make update` runs it in clones of the template, as it was and as it is:
so it needs nothing but Python and git, and makes the same of the same, wherever it runs.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "deployments" / "init" / "starter"
# What only the template has, besides this command.
TEMPLATE = (
    "CONTRIBUTING.md",
    "flows",
    "data",
    "benchmarks",
    "tests/flows",
    "tests/engine",
    "tests/template",
    ".github/run-graph.png",
    ".github/workflows/newest-prefect.yml",
)
KEBAB = "[a-z][a-z0-9]*(-[a-z0-9]+)*"
SNAKE = "[a-z][a-z0-9]*(_[a-z0-9]+)*"
# In pyproject.toml: the template's name and licence, and what is said of what is taken out.
PYPROJECT = (
    (r'(?m)^name = ".*"$', 'name = "{package}"'),
    (r'(?m)^description = ".*"$', 'description = "Prefect parent flows and their children."'),
    (r'(?m)^license = ".*"\n', ""),
    (r"(?m)^template = .*\n", ""),
    (r'(?m)^"(benchmarks|tests/engine)/\*" = .*\n', ""),
    (r'(?m)^    "(slow|machines|chaos): .*\n', ""),
    (r"(?m)^.*deployments/init/starter.*\n", ""),
)
ORIGIN = """\
The git remote `origin` is `template` now: `make update` brings what is new there. Add your own, as
`origin`; or, if that was yours already: git remote rename template origin"""
NO_ORIGIN = "`make update FROM=<url or path of the template>` brings what is new there."
DONE = """\
This is {name} now. It has one parent, flows/greet_all.py, and one child, flows/greet.py, with their
entries in prefect.yaml, their tests in tests/flows, and a README.md that says how to go on.
The example is gone, and so are data/, benchmarks/, the template's own tests and this command.

{remote}
The commits so far are the template's: go on from them, or begin with none. LICENSE is the
template's, too, and holds for what is of it; what you write is yours.

Look at it:   git status
See it work:  make dev
Test it:      make test
Keep it:      git add --all && git commit -m "Start {name}"
"""


def start_project(name: str = "") -> str:
    """Make a fresh clone a project of this name, and return what was done and what comes next.

    Args:
        name: In kebab-case or snake_case.

    Raises:
        ValueError: It is neither; or there are changes that are not committed.
    """
    if not (re.fullmatch(KEBAB, name) or re.fullmatch(SNAKE, name)):
        raise ValueError(
            f"NAME must be like acme-pipelines or acme_pipelines, not {name!r}: "
            "make init NAME=acme-pipelines"
        )
    if changes := _git("status", "--short"):
        raise ValueError(f"commit or stash what has changed here first:\n{changes.rstrip()}")
    kebab, snake = name.replace("_", "-"), name.replace("-", "_")
    _git("rm", "-r", "--quiet", *TEMPLATE)  # not what git ignores, such as an `.env`
    _declare(kebab)
    shutil.copytree(STARTER, ROOT, dirs_exist_ok=True, ignore=lambda *_: {"deployments.yaml"})
    _git("rm", "-r", "--quiet", "deployments/init")
    _edit_lock()
    _edit_pyproject(snake)
    _rename(kebab)
    readme = ROOT / "README.md"
    readme.write_text(readme.read_text().replace("{name}", kebab))
    if (installed := ROOT / ".venv" / "installed").exists():
        installed.touch()  # it has all that is left in the lock
    return DONE.format(name=kebab, remote=ORIGIN if _move_origin() else NO_ORIGIN)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def _declare(name: str) -> None:
    """Declare the starter's flows in place of the example's."""
    path = ROOT / "prefect.yaml"
    head, start, _ = path.read_text().partition("\ndeployments:\n")
    entries = (STARTER / "deployments.yaml").read_text().replace("{name}", name)
    path.write_text(head + start + entries)


def _edit_lock() -> None:
    """Take out what only the template's own tools need, as `make lock` would."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = project["optional-dependencies"]["template"]
    path = ROOT / "requirements-dev.txt"
    head, *blocks = re.split(r"(?m)^(?=\w)", path.read_text())
    packages = {block.partition("==")[0]: block for block in blocks}
    for name in tools:
        packages[name] = packages[name].replace(f" {project['name']} (pyproject.toml)", " nobody")
    unneeded = ["nobody"]
    for name in unneeded:  # which grows
        for other, block in packages.items():
            rest = re.sub(rf"(?m)^    #   {name}\n|(?<=# via) {name}$", "", block)
            rest = re.sub(r"# via\n    #   (.+)\n$", r"# via \1\n", rest)
            packages[other] = rest
            if rest.endswith("# via\n") and other not in unneeded:
                unneeded.append(other)
    kept = [block for name, block in packages.items() if name not in unneeded]
    path.write_text("".join([head.replace(" --extra template", ""), *kept]))


def _edit_pyproject(package: str) -> None:
    path = ROOT / "pyproject.toml"
    text = path.read_text()
    for pattern, new in PYPROJECT:
        text = re.sub(pattern, new.format(package=package), text)
    # The tree, since a copy without the template's history has it, too.
    tree = _git("rev-parse", "HEAD^{tree}").strip()
    path.write_text(
        f"{text}\n"
        "# What this project was made from, for `make update`: the tree of the template's commit.\n"
        f'[tool.template]\ntree = "{tree}"\nname = "{package}"\n'
    )


def _rename(name: str) -> None:
    """Say the project's name wherever the template's stands."""
    (old,) = re.findall(r"(?m)^name: (\S+)", (ROOT / "prefect.yaml").read_text())
    for file in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        path = ROOT / file
        if path.is_file() and old.encode() in (content := path.read_bytes()):
            path.write_bytes(content.replace(old.encode(), name.encode()))


def _move_origin() -> bool:
    """Make the git remote `origin` `template`, and say so: in a clone, not in a copy."""
    remotes = _git("remote").split()
    commits = _git("rev-list", "--max-count=2", "HEAD").split()
    cloned = len(commits) > 1 or _git("rev-parse", "--is-shallow-repository") == "true\n"
    if not cloned or "origin" not in remotes or "template" in remotes:
        return False
    url = _git("remote", "get-url", "origin").strip()
    _git("remote", "remove", "origin")  # not `rename`: a mere `git push` would go to the template
    _git("remote", "add", "template", url)
    return True


if __name__ == "__main__":
    try:
        print(start_project(*sys.argv[1:2]))  # noqa: T201 - a command
    except (ValueError, subprocess.CalledProcessError) as error:  # git has said why by itself
        sys.exit(f"error: {error}")
