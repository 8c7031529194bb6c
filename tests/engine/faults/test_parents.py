"""Parents that go wrong, as deployments: their children are cancelled, or used again."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import arun_deployment
from prefect.states import AwaitingRetry, Cancelling
from pydantic import ValidationError

from deployments import child
from deployments.servers import temporary_server, temporary_worker
from tests.engine.faults.conftest import InProcess, deploy_faults, is_alive, pid_of, start
from tests.engine.faults.steps import region, silent, step
from tests.engine.waiting import assert_truthful, children_of, ended, in_states, outcome, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_parent_raises_midway(client: PrefectClient, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    steps = [
        {"name": "quick", "do": "hold", "unless": str(go_on)},
        {"name": "long", "do": "hold"},
    ]
    parent = await start("family", steps=steps, then="raise")
    # Prefect calls a run that is cancelled while its process starts Crashed: let it run first.
    await in_states(client, parent, "Running", "Running")
    go_on.touch()
    parent = await ended(client, parent)
    assert parent.state is not None
    assert "the parent broke" in str(parent.state.message)
    assert await outcome(client, parent) == [("long", "Cancelled"), ("quick", "Completed")]


async def test_parent_exceeds_its_own_timeout(client: PrefectClient, in_process: InProcess) -> None:
    async def code() -> None:
        await asyncio.gather(child(step)("a", "hold"), child(step, deployment="nobody")("b"))

    with pytest.raises(TimeoutError):
        await in_process(code, timeout_seconds=15)  # a run that only starts would be Crashed
    assert in_process.run is not None
    await in_states(client, in_process.run, "Cancelled", "Cancelled")


async def test_parent_fails_while_it_fans_out(client: PrefectClient, in_process: InProcess) -> None:
    """What is still to be created when a call of the gather fails is never created."""

    async def code() -> None:
        good = [child(step, deployment="nobody")(f"{number}") for number in range(20)]
        bad = child(step)("bad", "nonsense")  # type: ignore[arg-type]
        await asyncio.gather(*good[:10], bad, *good[10:])

    with pytest.raises(ValidationError):
        await in_process(code)
    assert in_process.run is not None
    runs = await children_of(client, in_process.run)
    assert {run.state_name for run in runs} <= {"Cancelled"}
    assert len(runs) < 20


async def test_parent_fails_while_its_tasks_call_children(client: PrefectClient) -> None:
    """Their threads wait for children at every stage, or only come to call one."""
    steps = [{"name": f"{number}", "do": "hold"} for number in range(30)]
    parent = await ended(client, await start("mapped", steps=steps, then="raise"))
    assert parent.state is not None
    assert "the parent broke" in str(parent.state.message)
    assert {state for _, state in await outcome(client, parent)} <= {"Cancelled", "Crashed"}


async def test_parent_is_cancelled_while_it_waits_for_tasks(client: PrefectClient) -> None:
    steps = [{"name": "done"}, *({"name": f"{number}", "do": "hold"} for number in range(3))]
    parent = await start("mapped", steps=steps)
    await in_states(client, parent, "Completed", "Running", "Running", "Running")
    await client.set_flow_run_state(parent.id, Cancelling())
    assert (await ended(client, parent)).state_name == "Cancelled"
    cancelled = [(f"{number}", "Cancelled") for number in range(3)]
    assert await outcome(client, parent) == [*cancelled, ("done", "Completed")]


async def test_parent_is_killed_midway(client: PrefectClient) -> None:
    steps = [{"name": "a", "do": "hold"}, {"name": "b", "do": "hold", "deployment": "nobody"}]
    parent = await start("family", steps=steps)
    children = await in_states(client, parent, "Running", "Scheduled")
    os.kill(pid_of(await client.read_flow_run(parent.id)), signal.SIGKILL)
    parent = await ended(client, parent)
    assert parent.state_name == "Crashed"
    assert await outcome(client, parent) == [("a", "Cancelled"), ("b", "Cancelled")]
    pids = [pid_of(run) for run in children if run.infrastructure_pid]
    assert not any(is_alive(pid) for pid in pids)


async def test_parent_is_cancelled_with_children_in_all_stages(client: PrefectClient) -> None:
    queue = await client.read_work_queue_by_name("paused", work_pool_name="engine-tests-local")
    await client.update_work_queue(queue.id, is_paused=True)
    steps: list[dict[str, Any]] = [
        {"name": "done"},
        {"name": "failed", "do": "raise"},
        *({"name": f"run {n}", "do": "hold"} for n in range(4)),
        *({"name": f"nobody {n}", "deployment": "nobody"} for n in range(2)),
        *({"name": f"queued {n}", "deployment": "paused"} for n in range(2)),
    ]
    parent = await start("family", steps=steps)
    await in_states(client, parent, "Completed", "Failed", *["Running"] * 4, *["Scheduled"] * 4)
    await client.set_flow_run_state(parent.id, Cancelling())
    parent = await ended(client, parent)
    assert parent.state_name == "Cancelled"
    alive = [("done", "Completed"), ("failed", "Failed")]
    cancelled = [(str(each["name"]), "Cancelled") for each in steps[2:]]
    assert await outcome(client, parent) == sorted(alive + cancelled)
    await assert_truthful(client, parent)


async def test_nested_parent_is_cancelled(client: PrefectClient) -> None:
    steps = [{"name": "a", "do": "hold"}, {"name": "b", "do": "hold"}]
    oldest = await start("grandparent", steps=steps)
    (family,) = await in_states(client, oldest, "Running")
    await in_states(client, family, "Running", "Running")
    await client.set_flow_run_state(oldest.id, Cancelling())
    oldest, family = await ended(client, oldest), await ended(client, family)
    assert (oldest.state_name, family.state_name) == ("Cancelled", "Cancelled")
    assert await outcome(client, family) == [("a", "Cancelled"), ("b", "Cancelled")]


async def test_parent_with_retries_runs_only_what_failed(
    client: PrefectClient, tmp_path: Path
) -> None:
    steps = [{"name": "good"}, {"name": "bad", "do": "raise", "unless": str(tmp_path / "once")}]
    parent = await ended(client, await start("retrying", steps=steps))
    assert (parent.state_name, parent.run_count) == ("Completed", 2)
    assert await outcome(client, parent) == [
        ("bad", "Completed"),
        ("bad", "Failed"),
        ("good", "Completed"),
    ]
    await assert_truthful(client, parent)


async def retry(client: PrefectClient, parent: FlowRun) -> FlowRun:
    """Do what the button *Retry* of the UI does."""
    await client.set_flow_run_state(parent.id, AwaitingRetry(message="Retry from the UI"))
    return await completed(client, parent.id)


async def completed(client: PrefectClient, run_id: UUID) -> FlowRun:
    async def is_completed() -> FlowRun | None:
        run = await client.read_flow_run(run_id)
        return run if run.state and run.state.is_completed() else None

    return await wait_for(is_completed, f"run {run_id} completes")


async def test_retry_of_a_failed_parent(client: PrefectClient, tmp_path: Path) -> None:
    steps = [{"name": "good"}, {"name": "bad", "do": "raise", "unless": str(tmp_path / "once")}]
    parent = await ended(client, await start("family", steps=steps))
    assert "1 of 2 children failed: step/local 'bad'" in str(parent.state and parent.state.message)
    parent = await retry(client, parent)
    assert await outcome(client, parent) == [
        ("bad", "Completed"),
        ("bad", "Failed"),
        ("good", "Completed"),
    ]
    await assert_truthful(client, parent)
    assert parent.state is not None
    assert await parent.state.aresult() == [4, 3]


async def test_retry_of_a_cancelled_parent(client: PrefectClient, tmp_path: Path) -> None:
    go = tmp_path / "go"
    steps = [{"name": "done"}, {"name": "cut", "do": "hold", "unless": str(go)}]
    parent = await start("family", steps=steps)
    await in_states(client, parent, "Completed", "Running")
    await client.set_flow_run_state(parent.id, Cancelling())
    await ended(client, parent)
    go.touch()
    parent = await retry(client, parent)
    assert await outcome(client, parent) == [
        ("cut", "Cancelled"),
        ("cut", "Completed"),
        ("done", "Completed"),
    ]
    await assert_truthful(client, parent)


async def test_parents_worker_is_killed(tmp_path: Path) -> None:
    """As if its machine went down: only the server can notice, and another worker clean up."""
    steps = [{"name": "a", "do": "hold"}, {"name": "b", "deployment": "nobody"}]
    own = {"PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "30"}
    with (
        temporary_server(tmp_path, own=own) as server,
        server.used(),
    ):
        async with get_client() as client:
            await deploy_faults(server, silent=50)  # heartbeats come every 30 s
            with temporary_worker(server, "engine-tests-local") as worker:
                parent = await start("family", steps=steps)
                await in_states(client, parent, "Running", "Scheduled")
                await heartbeat_of(client, parent)
                os.killpg(worker.pid, signal.SIGKILL)
                await asyncio.to_thread(worker.wait, 60)
            with temporary_worker(server, "engine-tests-local"):
                parent = await ended(client, parent, 300)
            assert parent.state_name == "Crashed"
            a, b = await outcome(client, parent)
            assert a in (("a", "Crashed"), ("a", "Cancelled"))  # whichever comes first
            assert b == ("b", "Cancelled")


async def heartbeat_of(client: PrefectClient, run: FlowRun) -> None:
    """Wait until the server has heard of a run: silence counts from its first heartbeat."""

    async def heard() -> bool:
        response = await client.request(
            "POST",
            "/events/filter",
            json={
                "filter": {
                    "event": {"name": ["prefect.flow-run.heartbeat"]},
                    "resource": {"id": [f"prefect.flow-run.{run.id}"]},
                }
            },
        )
        return bool(response.json()["events"])

    await wait_for(heard, "the parent's heartbeat is heard")


async def test_a_suspended_parent_goes_on_with_its_children(
    client: PrefectClient, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    parent = await start("patient", steps=[{"name": "a", "do": "hold", "unless": str(go)}])

    async def suspended() -> bool:
        return (await client.read_flow_run(parent.id)).state_name == "Suspended"

    await wait_for(suspended, "the parent is suspended")
    await in_states(client, parent, "Running")
    await client.resume_flow_run(parent.id)
    go.touch()
    parent = await ended(client, parent)
    assert parent.state_name == "Completed"
    assert await outcome(client, parent) == [("a", "Completed")]
    await assert_truthful(client, parent)


class Twice:
    """The body of a parent that fails once: it counts its attempts."""

    def __init__(self) -> None:
        self.attempt = 0

    def fail_once(self) -> None:
        if self.attempt == 1:
            raise RuntimeError("once")


async def test_calls_in_another_order_find_their_children(
    client: PrefectClient, in_process: InProcess
) -> None:
    twice = Twice()

    async def code() -> list[int]:
        twice.attempt += 1
        names = ["a", "bb", "bb"] if twice.attempt == 1 else ["bb", "a", "bb"]
        lengths = [await child(step)(name) for name in names]
        twice.fail_once()
        return lengths

    assert await in_process(code, retries=1) == [2, 1, 2]
    assert in_process.run is not None
    assert len(await children_of(client, in_process.run)) == 3


async def test_a_key_names_a_call_whose_parameters_change(
    client: PrefectClient, in_process: InProcess
) -> None:
    twice = Twice()

    async def code() -> int:
        twice.attempt += 1
        length = await child(step, key="the call")(f"at attempt {twice.attempt}")
        twice.fail_once()
        return length

    assert await in_process(code, retries=1) == len("at attempt 1")
    assert in_process.run is not None
    assert len(await children_of(client, in_process.run)) == 1


async def test_calls_that_differ_in_their_job_variables(
    client: PrefectClient, in_process: InProcess
) -> None:
    twice = Twice()

    async def code() -> list[str]:
        twice.attempt += 1
        regions = ["eu", "us"] if twice.attempt == 1 else ["us", "eu"]
        variables: list[dict[str, Any]] = [{"env": {"REGION": name}} for name in regions]
        answers = [await child(region, job_variables=each)() for each in variables]
        twice.fail_once()
        return answers

    assert await in_process(code, retries=1) == ["us", "eu"]
    assert in_process.run is not None
    assert len(await children_of(client, in_process.run)) == 2


async def test_a_repeated_key_is_refused(client: PrefectClient, in_process: InProcess) -> None:
    twice = Twice()

    async def code() -> list[int]:
        twice.attempt += 1
        length = await child(step, key="the call")("a")
        with pytest.raises(ValueError, match="step/local: key 'the call' is that of an earlier"):
            await child(step, key="the call")("bb")
        twice.fail_once()
        return [length]

    assert await in_process(code, retries=1) == [1]
    assert in_process.run is not None
    assert await outcome(client, in_process.run) == [("a", "Completed")]


async def test_a_live_child_is_attached_again(
    client: PrefectClient, in_process: InProcess, tmp_path: Path
) -> None:
    twice, go = Twice(), tmp_path / "go"

    async def code() -> int:
        twice.attempt += 1
        run = await child(step).submit("long", "hold", str(go))
        twice.fail_once()
        go.touch()
        return await run.result()

    assert await in_process(code, retries=1) == 4
    assert in_process.run is not None
    assert await outcome(client, in_process.run) == [("long", "Completed")]
    await assert_truthful(client, in_process.run)


async def test_a_child_whose_result_is_gone_runs_again(
    client: PrefectClient, in_process: InProcess, prefect_server: Any
) -> None:
    twice = Twice()

    async def code() -> int:
        twice.attempt += 1
        run = await child(step).submit("again")
        length = await run.result()
        if twice.attempt == 1:
            state = (await client.read_flow_run(run.id)).state
            assert state is not None
            (prefect_server.home / "storage" / str(state.data.storage_key)).unlink()
        twice.fail_once()
        return length

    assert await in_process(code, retries=1) == 5
    assert in_process.run is not None
    assert await outcome(client, in_process.run) == [("again", "Completed")] * 2


async def test_a_parents_own_timeout_leaves_the_children_to_its_retry(
    client: PrefectClient, in_process: InProcess, tmp_path: Path
) -> None:
    twice, go = Twice(), tmp_path / "go"

    async def code() -> int:
        twice.attempt += 1
        if twice.attempt == 2:
            go.touch()
        return await child(step)("long", "hold", str(go))

    # A machine that is slow takes more than two attempts until the child has started and ended.
    assert await in_process(code, timeout_seconds=5, retries=30) == 4
    assert twice.attempt >= 2
    assert in_process.run is not None
    assert await outcome(client, in_process.run) == [("long", "Completed")]


async def test_a_result_that_nobody_asks_for_is_not_missed(
    client: PrefectClient, in_process: InProcess, tmp_path: Path
) -> None:
    """A retried parent does not run a child again because its result was not persisted."""
    twice, lines = Twice(), tmp_path / "lines"

    async def code() -> None:
        twice.attempt += 1
        run = await child(silent).submit(str(lines))
        await completed(client, run.id)
        twice.fail_once()

    await in_process(code, retries=1)
    assert in_process.run is not None
    assert await outcome(client, in_process.run) == [("silent", "Completed")]
    assert lines.read_text() == "once\n"


async def test_a_retry_goes_down_to_the_children_of_nested_parents(
    client: PrefectClient, tmp_path: Path
) -> None:
    steps = [{"name": "good"}, {"name": "bad", "do": "raise", "unless": str(tmp_path / "once")}]
    oldest = await ended(client, await start("grandparent", steps=steps))
    assert oldest.state_name == "Failed"
    oldest = await retry(client, oldest)
    (family,) = await children_of(client, oldest)
    assert (family.state_name, family.run_count) == ("Completed", 2)
    assert await outcome(client, family) == [
        ("bad", "Completed"),
        ("bad", "Failed"),
        ("good", "Completed"),
    ]
    await assert_truthful(client, oldest)
    await assert_truthful(client, family)


async def test_a_parent_inside_a_plain_flow_calls_the_deployments_of_that_flow(
    client: PrefectClient,
) -> None:
    plain = await arun_deployment(
        "plain/second", parameters={"steps": [{"name": "a"}]}, poll_interval=0.5
    )
    assert plain.state_name == "Completed"
    (family,) = await children_of(client, plain)
    (run,) = await children_of(client, family)
    assert run.deployment_id == (await client.read_deployment_by_name("step/second")).id
