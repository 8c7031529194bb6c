"""A newer engine for a project: its folders are replaced, and nothing else is touched."""

from __future__ import annotations

import re
import shutil
import tempfile
import tomllib
from pathlib import Path

from packaging.version import Version

from deployments.commands._git import git, require_clean
from deployments.commands._manifest import ROOT

# The folders that the engine is. What is in them is the engine's, all else is the project's.
FOLDERS = ("deployments", "tests/engine")
CHANGELOG = "deployments/CHANGELOG.md"


def update(source: str, ref: str | None) -> str:
    """Replace the engine by that of another repository, and return what changed.

    Args:
        source: A git URL, or the path of a repository.
        ref: A branch, tag or commit of it; by default its HEAD.

    Raises:
        ValueError: There is nothing to take from there; or there are changes here that are not
            committed.
    """
    if not source:
        raise ValueError("say where the newer engine is: make update FROM=<git url or path>")
    require_clean(ROOT)
    with tempfile.TemporaryDirectory(prefix="engine-") as directory:
        newer = Path(directory)
        git(ROOT, "clone", "--quiet", source, str(newer))
        if ref:
            git(newer, "checkout", "--quiet", ref)
        before, after = read_version(ROOT), read_version(newer)
        if after < before:
            raise ValueError(f"the engine there is {after}, older than this one, {before}")
        edited = _edited(newer)
        _replace(newer)
        if not git(ROOT, "status", "--porcelain"):
            return f"This is the engine of {source} already, {after}."
        return "\n".join(_tell(before, after, edited, _requirements(newer)))


def read_version(root: Path) -> Version:
    """Return the version of a repository's engine: the newest one that its changelog tells of.

    Raises:
        ValueError: There is no engine.
    """
    path = root / CHANGELOG
    found = re.search(r"(?m)^## (\d+\.\d+\.\d+)\b", path.read_text() if path.exists() else "")
    if not found:
        raise ValueError(f"there is no engine in that repository, with a version in {CHANGELOG}")
    return Version(found[1])


def _edited(newer: Path) -> list[str]:
    """Return the folders that are not as any commit of the newer engine's history has them."""
    return [
        folder
        for folder in FOLDERS
        if _tree(ROOT, "HEAD", folder)
        not in {
            _tree(newer, commit, folder)
            for commit in git(newer, "log", "--format=%H", "HEAD", "--", folder).split()
        }
    ]


def _tree(repository: Path, commit: str, folder: str) -> str:
    return git(repository, "ls-tree", "-d", commit, folder)


def _replace(newer: Path) -> None:
    for folder in FOLDERS:
        if (ROOT / folder).exists():
            shutil.rmtree(ROOT / folder)
        for name in git(newer, "ls-files", "-z", folder).split("\0")[:-1]:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(newer / name, ROOT / name)
    git(ROOT, "add", "--all", *FOLDERS)  # staged: new files are in the diff, too


def _requirements(newer: Path) -> list[str]:
    """Return what the newer engine's project requires, and this one does not."""
    theirs, ours = (
        {
            requirement
            for several in (
                project.get("dependencies", []),
                project.get("optional-dependencies", {}).get("dev", []),
            )
            for requirement in several
        }
        for project in (
            tomllib.loads((root / "pyproject.toml").read_text())["project"]
            for root in (newer, ROOT)
        )
    )
    return sorted(theirs - ours)


def _tell(before: Version, after: Version, edited: list[str], required: list[str]) -> list[str]:
    lines = [f"The engine is {after} now; it was {before}."]
    if after > before:
        text = (ROOT / CHANGELOG).read_text()
        start = text.index(f"## {after}")
        end = text.find(f"## {before}")
        lines += ["", text[start : None if end < 0 else end].rstrip()]
    lines += ["", git(ROOT, "diff", "--cached", "--stat").rstrip(), ""]
    lines += [
        f"{folder}/ had changes that no engine has: they are gone from it, and in the diff."
        for folder in edited
    ]
    lines += [
        f"pyproject.toml: the engine is tested with {requirement!r}: take it over, and `make lock`."
        for requirement in required
    ]
    return [
        *lines,
        "See it: git diff --cached. Try it: make check && make test. Keep it: git commit. "
        "Undo it: git reset --hard.",
    ]
