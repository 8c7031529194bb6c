"""What can go wrong with a child: each subclass of `ChildError` is one of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.urls import url_for

R = TypeVar("R")

NAMED = 10
# What is said where the server is given up.
WHICH_LIMIT = "the limit is `give_up_after` of @parent_flow"


@dataclass(frozen=True)
class RunInfo:
    """Tell which run of a child it is.

    Attributes:
        id: The id of the flow run.
        name: The name of the flow run.
        deployment: `flow-name/deployment-name`.
        url: The run's page in the Prefect UI.
    """

    id: UUID
    name: str
    deployment: str
    url: str

    @classmethod
    def of(cls, run: FlowRun, deployment: str) -> Self:
        """Return what tells a flow run from others."""
        return cls(run.id, run.name, deployment, url_for(run) or f"flow run {run.id}")

    def __str__(self) -> str:
        return f"{self.deployment} {self.name!r}"


class ChildError(Exception):
    """Tell that a child gave no result.

    The child's own exception, where it could be read, is the `__cause__`.

    Attributes:
        run: Which run it was, or None where none was created.
    """

    # Only the message is positional: Prefect's JSON serializer rebuilds an exception from it.
    def __init__(self, message: str, *, run: RunInfo | None = None) -> None:
        super().__init__(message)
        self.run = run

    @property
    def url(self) -> str | None:
        """The child's page in the Prefect UI."""
        return self.run.url if self.run else None


class ChildNotDeployed(ChildError):
    """Tell that the child's deployment does not exist on the server."""


class ChildFailed(ChildError):
    """Tell that the child's code raised."""


class ChildCrashed(ChildError):
    """Tell that the child's process died, never came up, or fell silent: then it may still run."""


class ChildCancelled(ChildError):
    """Tell that the child was cancelled."""


class ChildTimedOut(ChildError, TimeoutError):
    """Tell that the child did not finish in time, and was cancelled."""


class ChildResultUnavailable(ChildError):
    """Tell that the child completed, but its result can't be read."""


def raise_failures(results: Sequence[R | BaseException]) -> list[R]:
    """Return the results of `asyncio.gather(..., return_exceptions=True)` if all are results.

    Let all children finish, then fail with all the reasons:
    `raise_failures(await asyncio.gather(*calls, return_exceptions=True))`.

    Raises:
        ExceptionGroup: Some are exceptions; it counts and names their children.
    """
    failures = [result for result in results if isinstance(result, BaseException)]
    if not failures:
        return [result for result in results if not isinstance(result, BaseException)]
    names = [
        str(failure.run) if isinstance(failure, ChildError) and failure.run else repr(failure)
        for failure in failures
    ]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    raise BaseExceptionGroup(
        f"{len(failures)} of {len(results)} children failed: {', '.join(names[:NAMED])}{more}",
        failures,
    )
