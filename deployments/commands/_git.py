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
