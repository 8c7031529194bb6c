"""In which image a child's container starts: a pipeline that is under way keeps its code.

No container is started here: an image is a job variable, and the parent runs in-process.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from prefect import Task, flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Failed, Pending, Running
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from deployments import child, parent_flow

pytestmark = pytest.mark.anyio

POOL = "containers"
OWN = "DEPLOYMENTS_IMAGE"


@flow
def shipped(number: int = 0) -> int:
    raise NotImplementedError(f"nobody works for the pool: {number}")


@pytest.fixture
async def client(prefect_server: object) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        template = await get_default_base_job_template_for_infrastructure_type("docker")
        pool = WorkPoolCreate(name=POOL, type="docker", base_job_template=template)
        await client.create_work_pool(pool, overwrite=True)
        yield client


async def deploy(client: PrefectClient, image: str) -> UUID:
    """Deploy the child as `local`, which a parent that is run by hand calls."""
    return await client.create_deployment(
        await client.create_flow(shipped),
        "local",
        work_pool_name=POOL,
        job_variables={"image": image, "mem_limit": "1g"},
    )


def variables_of(run: FlowRun) -> dict[str, Any]:
    return run.job_variables or {}


async def move_on(client: PrefectClient, run: FlowRun, *states: State[Any]) -> None:
    for state in states:
        await client.set_flow_run_state(run.id, state, force=True)


@pytest.mark.parametrize(
    ("own", "deployed", "options", "expected"),
    [
        ("acme:1", "acme:2", {}, {"image": "acme:1"}),
        ("acme:1", "acme:1", {}, {"image": "acme:1"}),  # it may be deployed before it starts
        ("acme:1-dirty", "acme", {}, {"image": "acme:1-dirty"}),
        ("host:5000/team/acme:1", "host:5000/team/acme:2", {}, {"image": "host:5000/team/acme:1"}),
        ("host:5000/acme", "host:5000/acme:1@sha256:5eed", {}, {"image": "host:5000/acme"}),
        ("acme:1", "acme-gpu:1", {}, {}),
        ("host:5000/acme:1", "host:5001/acme:1", {}, {}),
        (None, "acme:2", {}, {}),
        ("", "acme:2", {}, {}),  # what the build of an image gave no name
        ("acme:1", "acme:2", {"job_variables": {"image": "acme:3"}}, {"image": "acme:3"}),
        (
            "acme:1",
            "acme:2",
            {"job_variables": {"env": {"A": "b"}}},
            {"env": {"A": "b"}, "image": "acme:1"},
        ),
        ("acme:1", "acme:2", {"deployment": "local"}, {}),
    ],
)
async def test_a_child_runs_in_its_parents_own_image(
    client: PrefectClient,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    deployed: str,
    options: Any,
    expected: dict[str, Any],
) -> None:
    """It does where its deployment has another of the same name, and the call leaves it so."""
    if own is not None:
        monkeypatch.setenv(OWN, own)
    await deploy(client, deployed)

    @parent_flow
    async def parent() -> dict[str, Any]:
        run = await child(shipped, **options).submit()
        return variables_of(await client.read_flow_run(run.id))

    assert await parent() == expected


async def test_children_that_are_created_together_have_their_own_job_variables(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN, "acme:1")
    await deploy(client, "acme:2")
    given: list[Any] = [{"env": {"A": "b"}}, None, {"image": "acme:3"}, {"mem_limit": "2g"}]

    @parent_flow
    async def parent() -> list[dict[str, Any]]:
        calls = (child(shipped, job_variables=each).submit() for each in given)
        runs = await asyncio.gather(*calls)
        return [variables_of(await client.read_flow_run(run.id)) for run in runs]

    own: dict[str, Any] = {"image": "acme:1"}
    expected = [own | {"env": {"A": "b"}}, own, {"image": "acme:3"}, own | {"mem_limit": "2g"}]
    assert await parent() == expected


async def test_a_parent_that_is_retried_in_a_newer_image_takes_its_children_along(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has completed is used again; a nested parent is the same run, in the newer image."""
    await deploy(client, "acme:2")
    attempts: list[list[FlowRun]] = []

    @parent_flow(retries=1)
    async def parent() -> None:
        monkeypatch.setenv(OWN, f"acme:{len(attempts) + 1}")
        calls = [child(shipped, job_variables={"env": {}}) for _ in range(3)]
        handles = [await call.submit(number) for number, call in enumerate(calls)]
        attempts.append([await client.read_flow_run(handle.id) for handle in handles])
        if len(attempts) == 1:
            done, leaf, nested = attempts[0]
            await move_on(client, done, Running(), Completed())
            await move_on(client, leaf, Running(), Failed())
            await move_on(client, nested, Running(), Failed())
            await add_child(client, nested)
            raise RuntimeError("the parent broke")

    await parent()
    first, second = attempts
    assert [run.id for run in first][::2] == [run.id for run in second][::2]
    images = [[variables_of(run)["image"] for run in runs] for runs in attempts]
    assert images == [["acme:1"] * 3, ["acme:1", "acme:2", "acme:2"]]
    assert all(variables_of(run)["env"] == {} for run in second)
    nested = second[2]
    assert nested.state is not None
    assert nested.state.is_scheduled()
    assert nested.state.message == "Its parent was retried"
    due = nested.state.state_details.scheduled_time
    assert due is not None
    assert due <= datetime.now(UTC)


async def add_child(client: PrefectClient, parent: FlowRun) -> None:
    task = Task[[], None](fn=lambda: None, name="child")
    task_run = await client.create_task_run(task, parent.id, "0", state=Pending())
    await client.create_flow_run(shipped, parent_task_run_id=task_run.id, state=Completed())
