import pytest
from prefect.deployments import arun_deployment

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


@pytest.mark.usefixtures("worker")
async def test_it_runs_as_it_is_deployed() -> None:
    """On a real server, with a real worker, as prefect.yaml says."""
    run = await arun_deployment(
        "greet-all/local", parameters={"names": ["Ada"]}, timeout=120, poll_interval=0.5
    )
    assert run.state is not None
    assert run.state.is_completed(), run.state
