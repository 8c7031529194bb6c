"""`prefect.yaml` as data: its deployments, and the work pools and queues that they need."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Annotated, Any

import httpx
import yaml
from prefect.automations import AutomationCore
from prefect.exceptions import ScriptError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.types import Name
from prefect.utilities.templating import find_placeholders
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from yaml.constructor import ConstructorError

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}


def check_name(name: str) -> str:
    """Return a name that Prefect's client, which does not quote, can put into a URL.

    Raises:
        ValueError: It is none.
    """
    if find_placeholders(name):
        raise ValueError(f"{name!r} is a template, which is not resolved when this is looked up")
    with contextlib.suppress(httpx.InvalidURL):
        if httpx.URL(f"http://server/{name}").path == f"/{name}":
            return name
    raise ValueError(f"{name!r} can't stand in a URL: leave out signs such as # and ?")


ServerName = Annotated[Name, AfterValidator(check_name)]


class WorkQueue(BaseModel):
    """A queue of a work pool."""

    model_config = ConfigDict(extra="forbid")
    concurrency_limit: int | None = None
    priority: PositiveInt | None = None  # the lower, the sooner


class JobVariables(BaseModel):
    """The job variables of a work pool or a deployment, as far as they are read here."""

    model_config = ConfigDict(extra="allow")
    env: Annotated[dict[str, Any], BeforeValidator(lambda given: given or {})] = {}
    volumes: Annotated[list[str], BeforeValidator(lambda given: given or [])] = []


class WorkPool(BaseModel):
    """A work pool, as `definitions.work_pools` declares it."""

    model_config = ConfigDict(extra="forbid")
    type: str
    base_job_template: dict[str, Any] = {}  # laid over Prefect's own
    job_variables: JobVariables = JobVariables()  # its defaults there
    queues: dict[ServerName, WorkQueue]


class DeploymentWorkPool(BaseModel):
    """The `work_pool` of a deployment."""

    name: str
    work_queue_name: str = "default"
    job_variables: JobVariables = JobVariables()


class Trigger(BaseModel):
    """A trigger of a deployment, as far as it is read here."""

    parameters: dict[str, Any] | None = None  # of the run that it starts


class Deployment(BaseModel):
    """A deployment, as `deployments` declares it."""

    name: ServerName
    entrypoint: str
    tags: list[str] = []
    work_pool: DeploymentWorkPool
    parameters: dict[str, Any] = {}
    schedules: list[dict[str, Any]] | None = None
    triggers: list[Trigger] | None = None
    declared: dict[str, Any]  # all of it, as `prefect deploy` reads it
    _flow: Flow[..., Any] | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_declared(cls, given: Any) -> Any:
        return {**given, "declared": given} if isinstance(given, dict) else given

    @property
    def full_name(self) -> str:
        """Its `flow-name/deployment-name`, for which the flow is imported."""
        return f"{self.load_flow().name}/{self.name}"

    def load_flow(self) -> Flow[..., Any]:
        """Import the flow, once.

        Raises:
            ValueError: It can't be imported; in one line, with the place.
        """
        if self._flow is None:
            self._flow = self._import_flow()
        return self._flow

    def _import_flow(self) -> Flow[..., Any]:
        # Prefect leaves the file's directory there, where a `docker.py` would hide the package.
        path = sys.path.copy()
        try:
            return load_flow_from_entrypoint(self.entrypoint, use_placeholder_flow=False)
        except Exception as error:
            raised = error.user_exc if isinstance(error, ScriptError) else error
            told = " ".join(f"{_place(raised)}{type(raised).__name__}: {raised}".split())
            raise ValueError(f"{self.entrypoint} can't be imported: {told}") from error
        finally:
            sys.path[:] = path


def _place(error: Exception) -> str:
    """Return where in the user's own code an error was raised: `file:line: `, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:  # of the file that could not be read
        places.append((error.filename, error.lineno))
    for file, line in reversed(places):
        path = Path(file)
        engine = path.is_relative_to(ROOT / "deployments")
        if path.is_file() and not engine and not is_installed(path):
            return f"{os.path.relpath(path, ROOT)}:{line}: "
    return ""


def is_installed(path: Path) -> bool:
    """Tell whether a file is Python's own or of a package."""
    return any(path.is_relative_to(directory) for directory in INSTALLED)


class CrashedAfter(BaseModel):
    """After how many seconds a lost run is marked as crashed."""

    model_config = ConfigDict(extra="forbid")
    # Some heartbeats, and twice the 60 s that a server on SQLite may stand still.
    silent: int = Field(180, ge=60)
    # Longer than any pull of an image, clone of the code or wait for a machine.
    pending: int = Field(600, ge=60)


class Definitions(BaseModel):
    """The part of `definitions` that is not only anchors."""

    work_pools: dict[ServerName, WorkPool]
    automations: list[AutomationCore] = []
    crashed_after: CrashedAfter = CrashedAfter()


class Manifest(BaseModel):
    """All of `prefect.yaml` that this template reads, or a part of it."""

    name: str  # of the project
    path: Path
    # The steps of each deployment that has none of its own.
    build: list[dict[str, Any]] | None = None
    push: list[dict[str, Any]] | None = None
    pull: list[dict[str, Any]] | None = None
    definitions: Definitions
    deployments: list[Deployment]
    _whole: Manifest | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _share_steps(self) -> Manifest:
        """Give deployments without steps of their own those of all, as `prefect deploy` does."""
        shared = self.model_dump(include={"build", "push", "pull"}, exclude_unset=True)
        for deployment in self.deployments:
            deployment.declared = shared | deployment.declared
        return self

    @classmethod
    def load(cls, path: Path = ROOT / "prefect.yaml") -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: It can't be read; in one line, with the place.
        """
        try:
            read = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is safe
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
        if unknown := sorted(set(names).difference(self.names)):
            raise ValueError(
                f"prefect.yaml has no deployment named {', '.join(unknown)}, only "
                f"{', '.join(sorted(self.names))}"
            )
        return self._part([chosen for chosen in self.deployments if chosen.name in names])

    def of_type(self, pool_type: str) -> Manifest:
        """Return the part that deployments in work pools of a type are and need.

        Raises:
            ValueError: There is none.
        """
        pools = self.definitions.work_pools
        of_type = {name for name, pool in pools.items() if pool.type == pool_type}
        chosen = [found for found in self.deployments if found.work_pool.name in of_type]
        if not chosen:
            raise ValueError(f"prefect.yaml has no deployment in a work pool of type {pool_type}")
        return self._part(chosen)

    def _part(self, chosen: list[Deployment]) -> Manifest:
        used = {deployment.work_pool.name for deployment in chosen}
        pools = self.definitions.work_pools
        definitions = self.definitions.model_copy(
            update={"work_pools": {name: pools[name] for name in pools if name in used}}
        )
        part = self.model_copy(update={"definitions": definitions, "deployments": chosen})
        part._whole = self.whole
        return part

    @property
    def whole(self) -> Manifest:
        """All of the file, of which this may be a part."""
        return self._whole or self

    @property
    def stack(self) -> str:
        """The name of its stack of containers, and of their network."""
        return os.environ.get("COMPOSE_PROJECT_NAME") or self.name

    @property
    def names(self) -> list[str]:
        """The names of the deployments, each once."""
        return list(dict.fromkeys(deployment.name for deployment in self.deployments))


class _Loader(yaml.SafeLoader):
    """YAML without dates: neither a server nor a flow that takes text gets one."""


def _refuse_date(_: yaml.SafeLoader, node: yaml.ScalarNode) -> None:
    raise ConstructorError(problem=f"{node.value} must be in quotes", problem_mark=node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _refuse_date)


def first_problem(error: ValidationError) -> str:
    """Return what is wrong first, in one line, with its place."""
    first = error.errors()[0]
    # Not the types of unions, such as `list[str]`: they are not in the file.
    place = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    return ": ".join(filter(None, [place, first["msg"]]))
