"""What a parent calls, and the keys by which a retried parent finds the runs of its calls."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefect.client.schemas.objects import FlowRun


@dataclass(kw_only=True)
class Call:
    """A deployment, to be run with these parameters.

    Attributes:
        flow_name: The name of the child's flow.
        deployment_name: The deployment's own name. Where it is None, the parent's run sets it.
        parameters: The parameters as JSON data.
        inputs: The parameters before they became JSON; they may be other children's results.
        name: The run's name.
        tags: The run's tags, besides the deployment's.
        job_variables: The run's job variables, over the deployment's, as JSON data.
        work_queue_name: The work queue of the run, where it is not the deployment's.
        scheduled_time: When the run is to start, where that is not at once.
        image: The parent's own image, where the call leaves the deployment to the parent.
        key: The identity of the call, where its parameters and job variables are not.
        timeout: Seconds after which the call is given up, once its run is due.
        made_at: When the call was made, by the clock of event loops.
    """

    flow_name: str
    deployment_name: str | None
    parameters: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    tags: tuple[str, ...] = ()
    job_variables: dict[str, Any] | None = None
    work_queue_name: str | None = None
    scheduled_time: datetime | None = None
    image: str | None = None
    key: str | None = None
    timeout: float | None = None
    made_at: float = field(default_factory=time.monotonic)

    @property
    def deployment(self) -> str:
        """The deployment's whole name: `flow-name/deployment-name`."""
        return f"{self.flow_name}/{self.deployment_name}"

    @property
    def deadline(self) -> float | None:
        """When the call is given up."""
        if self.timeout is None:
            return None
        due = self.made_at
        if self.scheduled_time is not None:
            later = (self.scheduled_time - datetime.now(UTC)).total_seconds()
            due = max(time.monotonic() + later, due)
        return due + self.timeout

    def digest(self) -> str:
        """Return a short hash of what makes this call the same call in a retried parent."""
        identity = [self.parameters, self.job_variables] if self.key is None else self.key
        text = json.dumps([self.deployment, identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_key(run: FlowRun) -> tuple[str, int]:
    """Return the key of the call that a run was made by, and the number of the run."""
    key, _, number = (run.idempotency_key or "").rpartition(":")
    return key, int(number)
