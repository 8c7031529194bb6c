"""`prefect.yaml` as data: its deployments, and the work pools and queues that they need."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect.automations import AutomationCore
from prefect.events import ResourceSpecification
from prefect.flows import Flow, load_flow_from_entrypoint
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[2]


class WorkQueue(BaseModel):
    """A queue of a work pool.

    Attributes:
        concurrency_limit: How many of its runs may be under way at once; None is no limit.
    """

    model_config = ConfigDict(extra="forbid")
    concurrency_limit: int | None = None


class WorkPool(BaseModel):
    """A work pool, as `definitions.work_pools` declares it.

    Attributes:
        base_job_template: What is other there than in Prefect's own; nothing leaves it alone.
    """

    model_config = ConfigDict(extra="forbid")
    type: str
    base_job_template: dict[str, Any] = {}
    queues: dict[str, WorkQueue]


class WorkPoolOf(BaseModel):
    """The `work_pool` of a deployment."""

    name: str
    work_queue_name: str = "default"
    job_variables: dict[str, Any] = {}


class Schedule(BaseModel):
    """A schedule of a deployment."""

    parameters: dict[str, Any] = {}


class Trigger(BaseModel):
    """A trigger of a deployment or an automation.

    Attributes:
        expect: The events that it waits for.
        match_related: What such an event must be related to; each by one of its resources.
        parameters: Of the run that it starts.
        triggers: Its parts, where it is made of several.
    """

    expect: set[str] = set()
    match_related: Annotated[
        list[ResourceSpecification],
        BeforeValidator(lambda given: given if isinstance(given, list) else [given or {}]),
    ] = []
    parameters: dict[str, Any] | None = None
    triggers: list[Trigger] = []


class Deployment(BaseModel):
    """A deployment, as `deployments` declares it.

    Attributes:
        declared: All of it, as `prefect deploy` reads it.
    """

    name: str
    entrypoint: str
    work_pool: WorkPoolOf
    parameters: dict[str, Any] = {}
    tags: list[str] = []
    build: list[dict[str, Any]] = []
    schedules: list[Schedule] | None = None
    triggers: list[Trigger] | None = None
    declared: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_declared(cls, given: Any) -> Any:
        return {**given, "declared": given} if isinstance(given, dict) else given

    def load_flow(self) -> Flow[..., Any]:
        """Import the flow.

        Raises:
            ValueError: It can't be imported.
        """
        # Prefect leaves the file's directory there, where a `docker.py` would hide the package.
        path = sys.path.copy()
        try:
            return load_flow_from_entrypoint(self.entrypoint, use_placeholder_flow=False)
        except Exception as error:
            raise ValueError(f"{self.entrypoint} can't be imported: {error!r}") from error
        finally:
            sys.path[:] = path


class Definitions(BaseModel):
    """The part of `definitions` that is not only anchors."""

    work_pools: dict[str, WorkPool]
    automations: list[AutomationCore] = []


class Manifest(BaseModel):
    """All of `prefect.yaml` that this template reads.

    Attributes:
        name: Of the project.
        path: Of the file.
        build: The steps of each deployment that has none of its own; as are the next two.
        push: The same.
        pull: The same.
    """

    name: str = ""
    path: Path
    build: list[dict[str, Any]] | None = None
    push: list[dict[str, Any]] | None = None
    pull: list[dict[str, Any]] | None = None
    definitions: Definitions
    deployments: list[Deployment]

    @classmethod
    def load(cls, path: Path = ROOT / "prefect.yaml") -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: It can't be read; in one line, with the place.
        """
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.model_validate({**read, "path": path} if isinstance(read, dict) else read)
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            raise ValueError(f"{path}: {first_problem(error)}") from error

    def named(self, *names: str) -> Manifest:
        """Return the part that deployments of these names are and need.

        Raises:
            ValueError: There is none of one of the names.
        """
        there = {deployment.name for deployment in self.deployments}
        if unknown := sorted(set(names) - there):
            raise ValueError(
                f"prefect.yaml has no deployment named {', '.join(unknown)}, only "
                f"{', '.join(sorted(there))}"
            )
        return self._part([each for each in self.deployments if each.name in names])

    def of_type(self, pool_type: str) -> Manifest:
        """Return the part that deployments in work pools of a type are and need.

        Raises:
            ValueError: There is none.
        """
        pools = self.definitions.work_pools
        named = {name for name, pool in pools.items() if pool.type == pool_type}
        chosen = [each for each in self.deployments if each.work_pool.name in named]
        if not chosen:
            raise ValueError(f"prefect.yaml has no deployment in a work pool of type {pool_type}")
        return self._part(chosen)

    def _part(self, chosen: list[Deployment]) -> Manifest:
        used = {deployment.work_pool.name for deployment in chosen}
        pools = self.definitions.work_pools
        definitions = self.definitions.model_copy(
            update={"work_pools": {name: pools[name] for name in pools if name in used}}
        )
        return self.model_copy(update={"definitions": definitions, "deployments": chosen})

    @property
    def names(self) -> list[str]:
        """Of the deployments, each once."""
        return list(dict.fromkeys(deployment.name for deployment in self.deployments))


def first_problem(error: ValidationError) -> str:
    """Return what is wrong first, in one line, with its place."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return ": ".join(filter(None, [place, first["msg"]]))
