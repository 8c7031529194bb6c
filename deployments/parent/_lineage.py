"""The arrows between children in the run graph.

Prefect has no public way to link a child deployment's result to its run: with these two functions
of its own the run graph gets its arrows, as it does for tasks and subflows.
"""

from typing import Any

from prefect.client.schemas.objects import TaskRunResult
from prefect.utilities.engine import collect_task_run_inputs, link_state_to_flow_run_result

__all__ = ["find_inputs", "link_state_to_flow_run_result"]


async def find_inputs(argument: Any) -> list[TaskRunResult]:
    """Return the children whose results an argument holds."""
    # They are flow runs, but with that type in a task run's inputs Prefect's UI shows no task
    # runs at all (PrefectHQ/prefect#18680). The run graph looks at the id alone.
    found = await collect_task_run_inputs(argument)
    return [TaskRunResult(id=run.id) for run in found]
