import pytest

from deployments import ChildFailed
from deployments.testing import Stubs
from flows.greet import Greeting, greet
from flows.greet_all import greet_all

pytestmark = pytest.mark.anyio


async def test_everybody_is_greeted(stubs: Stubs) -> None:
    """With stand-ins for the children: no worker, and no code of theirs."""
    stubs.runs(greet, lambda name: Greeting(name=name, text=f"Hi {name}"))
    assert [greeting.text for greeting in await greet_all(["Ada", "Eve"])] == ["Hi Ada", "Hi Eve"]


async def test_a_child_that_fails_fails_the_parent(stubs: Stubs) -> None:
    stubs.raises(greet, ValueError("no voice"))
    with pytest.raises(ChildFailed, match="no voice"):
        await greet_all(["Ada"])
