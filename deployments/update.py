"""`make update`: what is new in the template is merged by git into a project that was made from it.

It needs nothing of the engine, which may be what an update has to mend.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AUTHOR = ("-c", "user.name=template", "-c", "user.email=template@localhost")
NEXT = "Try it: make check && make test. Keep it: git commit. Undo it: git reset --hard."


def update(source: str, ref: str | None, base: str | None) -> str:
    """Merge what changed in the template since this project was made, and return what that is.

    The template's own `init` makes two projects, of its commit of then and of now. What differs
    between them is what git applies here, as it picks a commit of another branch.

    Args:
        source: The template: a git URL, a path, or a git remote.
        ref: A branch, tag or commit of it; by default its HEAD.
        base: The commit that this project was made from; by default, what pyproject.toml says.

    Raises:
        ValueError: There is nothing to take from there; there are changes here that are not
            committed; or there are conflicts, which are marked, and are to be solved.
    """
    if changes := _git(ROOT, "status", "--short"):
        raise ValueError(f"commit or stash what has changed here first:\n{changes.rstrip()}")
    url = _git(ROOT, "ls-remote", "--get-url", source).strip()
    if url == "template":
        raise ValueError(
            "there is no git remote `template`: make update FROM=<git url or path>, or, once for "
            "all, git remote add template <git url or path>"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    made = project.get("tool", {}).get("template", {})
    name = made.get("name", project["project"]["name"])
    with tempfile.TemporaryDirectory(prefix="template-") as directory:
        template = Path(directory)
        _git(ROOT, "clone", "--quiet", url, directory)
        _git(template, "checkout", "--quiet", ref or "HEAD")
        newer = _git(template, "rev-parse", "HEAD").strip()
        older = base or _find_base(template, made.get("tree"))
        before = _commit_project(template, older, name)
        after = _commit_project(template, newer, name, "-p", before)
        changed = _git(template, "diff", "--no-renames", "--name-only", "-z", before, after)
        if not changed:
            return f"Nothing is newer: this project is of {newer[:7]}, as {source} is."
        # What git ignores here, its merges would overwrite.
        names = changed.split("\0")[:-1]
        if ignored := _git(ROOT, "ls-files", "--others", "-z", "--", *names).split("\0")[0]:
            raise ValueError(
                f"{ignored} is in the template, and here, but not in git: move it away"
            )
        _git(template, "update-ref", "refs/heads/newer", after)
        _git(ROOT, "fetch", "--quiet", directory, "newer")
    _pick("FETCH_HEAD")
    changes = _git(ROOT, "diff", "--cached", "--shortstat").strip()
    return f"{changes}: see git diff --cached, deployments/CHANGELOG.md first. {NEXT}"


def _git(repository: Path, *arguments: str) -> str:
    return _run(repository, "git", *arguments)


def _run(directory: Path, *command: str) -> str:
    """Run a command in a directory, and return what it says, or raise what it says in one line."""
    # The path is for the `init` of before 1.2, which imported what is around it.
    env = os.environ | {"PYTHONPATH": str(directory)}
    done = subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"`{' '.join(command)}` failed: {' '.join(done.stderr.split())}")
    return done.stdout


def _find_base(template: Path, tree: str | None) -> str:
    """Return the template's commit that has a tree."""
    for line in _git(template, "log", "--all", "--format=%H %T").splitlines():
        commit, its_tree = line.split()
        if its_tree == tree:
            return commit
    raise ValueError(
        "the template has no commit that pyproject.toml says this project was made from: name it, "
        "make update ARGS=--base=<commit>"
    )


def _commit_project(template: Path, commit: str, name: str, *parent: str) -> str:
    """Commit the project that the template makes at one of its commits, and return that."""
    _git(template, "checkout", "--quiet", "--force", commit)
    _run(template, sys.executable, "-B", "deployments/init", name)
    _git(template, "add", "--all")
    tree = _git(template, "write-tree").strip()
    message = f"the template at {commit[:7]}"
    return _git(template, *AUTHOR, "commit-tree", tree, *parent, "-m", message).strip()


def _pick(commit: str) -> None:
    try:
        _git(ROOT, "cherry-pick", "--no-commit", commit)
    except ValueError:
        conflicts = _git(ROOT, "diff", "--name-only", "-z", "--diff-filter=U").split("\0")[:-1]
        if not conflicts:
            raise
        raise ValueError(
            f"all is merged but these conflicts: {', '.join(conflicts)}. Solve them, as in any "
            f"merge, and git add or git rm them. {NEXT}"
        ) from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make update")
    parser.add_argument("source", nargs="?", default="template")
    parser.add_argument("--ref")
    parser.add_argument("--base")
    try:
        print(update(**vars(parser.parse_args())))  # noqa: T201 - a command
    except ValueError as error:
        sys.exit(f"error: {error}")
