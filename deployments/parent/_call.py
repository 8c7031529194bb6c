"""A parent's calls, and the keys by which a retried parent finds their runs."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a parent asks for: a deployment, run with these parameters.

    Attributes:
        deployment: `flow-name/deployment-name`.
        parameters: As JSON data.
        inputs: The same before they became JSON; they may be other children's results.
        name: Of the run.
        tags: For the run, besides the deployment's.
        job_variables: For the run, over the deployment's, as JSON data.
        key: The identity of the call, where its parameters and job variables are not.
    """

    deployment: str
    parameters: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    tags: tuple[str, ...] = ()
    job_variables: dict[str, Any] | None = None
    key: str | None = None

    def digest(self) -> str:
        """Return a short hash of what makes this call the same call in a retried parent."""
        identity = [self.parameters, self.job_variables] if self.key is None else self.key
        text = json.dumps([self.deployment, identity], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Keys:
    """The keys of the calls that one attempt of a parent run makes.

    A key is made of the parent's run, what is called, and which of several identical calls it is.
    With the number of the run, how often the call ran, it is the idempotency key of that run.
    """

    def __init__(self, parent_id: UUID) -> None:
        self._parent_id = parent_id
        self._calls: Counter[str] = Counter()

    def claim(self, call: Call) -> str:
        """Return the key of a call; identical calls are told apart by their order.

        Raises:
            ValueError: It was given that of an earlier call: a retried parent could not tell
                them apart.
        """
        digest = call.digest()
        self._calls[digest] += 1
        if call.key is not None and self._calls[digest] > 1:
            raise ValueError(
                f"{call.deployment}: key {call.key!r} is that of an earlier call: give each "
                "call its own"
            )
        return f"{self._parent_id}:{digest}:{self._calls[digest]}"


def split_key(run: FlowRun) -> tuple[str, int]:
    """Return the key of the call that a run was made by, and the number of the run."""
    key, _, number = (run.idempotency_key or "").rpartition(":")
    return key, int(number)


def next_key(run: FlowRun) -> str:
    """Return the idempotency key of the run after this one."""
    key, number = split_key(run)
    return f"{key}:{number + 1}"
