"""What git says of a repository."""

import subprocess
from pathlib import Path


def git(repository: Path, *arguments: str) -> str:
    """Run git in a repository, and return what it says.

    Raises:
        ValueError: It failed; with what it said, in one line.
    """
    done = subprocess.run(
        ["git", *arguments], cwd=repository, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"`git {' '.join(arguments)}` failed: {' '.join(done.stderr.split())}")
    return done.stdout


def require_clean(repository: Path) -> None:
    """Refuse a repository with changes, which would be mixed with what is to come.

    Raises:
        ValueError: There are some that are not committed.
    """
    if changes := git(repository, "status", "--porcelain"):
        raise ValueError(
            f"there are changes that are not committed, such as {changes.splitlines()[0].strip()}: "
            "commit or stash them first"
        )
