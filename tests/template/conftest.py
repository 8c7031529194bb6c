from pathlib import Path

import pytest

from tests.engine.conftest import clean_env, copy_repository

__all__ = ["clean_env"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, with this environment in its `.venv`."""
    return copy_repository(tmp_path_factory.mktemp("a clone") / "parent flows")
