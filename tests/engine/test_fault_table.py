"""The table in deployments/docs/faults.md names tests that exist, and each fault test once."""

import re

from deployments.project import ROOT

TABLE = (ROOT / "deployments" / "docs" / "faults.md").read_text()


def test_every_fault_test_is_in_the_table() -> None:
    named = re.findall(r"`(test_\w+)(?:\[\w+\])?` \|$", TABLE, re.MULTILINE)
    written = [
        name
        for path in (ROOT / "tests" / "engine" / "faults").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    assert sorted(set(named)) == sorted(written)
