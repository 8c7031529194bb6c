"""The arrows between children in the run graph.

Prefect has no public way to link a child deployment's result to its run: with these two functions
of its own the run graph gets its arrows, as it does for tasks and subflows.
"""

from typing import Any

from prefect.client.schemas.objects import TaskRunResult
from prefect.context import FlowRunContext, TaskRunContext
from prefect.telemetry.run_telemetry import LABELS_TRACEPARENT_KEY
from prefect.utilities.engine import collect_task_run_inputs, link_state_to_flow_run_result

__all__ = ["find_caller", "find_inputs", "find_trace", "link_state_to_flow_run_result"]


async def find_inputs(argument: Any) -> list[TaskRunResult]:
    """Return the children whose results an argument holds."""
    # They are flow runs, but with that type in a task run's inputs Prefect's UI shows no task
    # runs at all (PrefectHQ/prefect#18680). The run graph looks at the id alone.
    found = await collect_task_run_inputs(argument)
    return [TaskRunResult(id=run.id) for run in found]


def find_caller() -> list[TaskRunResult]:
    """Return the task that calls a child, if one does: in the run graph it holds the child."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    run_id = flow.flow_run.id if flow and flow.flow_run else None
    if task is None or run_id not in (None, task.task_run.flow_run_id):  # a subflow in the task
        return []
    return [TaskRunResult(id=task.task_run.id)]


def find_trace() -> dict[str, Any]:
    """Return the labels by which a child goes on with the OpenTelemetry trace of its parent."""
    flow_run = FlowRunContext.get()
    labels = flow_run.flow_run.labels if flow_run and flow_run.flow_run else {}
    key = LABELS_TRACEPARENT_KEY
    return {key: labels[key]} if key in labels else {}
