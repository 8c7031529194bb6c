"""Durable runs: where their process is taken away, they are run again, a few times."""

from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

# The tag of a deployment whose runs are restarted once they are Crashed.
DURABLE = "durable"
# Seconds before each restart: a machine, or an image, may take minutes to come back.
PAUSES = (0, 30, 120)
# How the message of a restart begins.
RESTART = "Restart "


def is_durable(run: FlowRun) -> bool:
    """Tell whether a run is restarted when it crashes."""
    # Without a deployment, no worker would run it.
    return DURABLE in run.tags and run.deployment_id is not None


def may_restart(run: FlowRun) -> bool:
    """Tell whether a run is one that is restarted, and is Crashed."""
    return run.state is not None and run.state.is_crashed() and is_durable(run)


async def will_restart(client: PrefectClient, run: FlowRun) -> bool:
    """Tell whether a run is Crashed, and `cancel_orphans` has yet to restart it."""
    return may_restart(run) and await count_restarts(client, run.id) < len(PAUSES)


async def count_restarts(client: PrefectClient, run_id: UUID) -> int:
    """Return how often a run was restarted.

    Not how often it was Crashed: one loss is told by several. Nor its `run_count`, which stays 0
    where it never started.
    """
    told = [state.message or "" for state in await client.read_flow_run_states(run_id)]
    # Where two have restarted it at once, both have said the same number.
    return len({message.partition(":")[0] for message in told if message.startswith(RESTART)})
