"""What to run: a deployment of prefect.yaml, and its parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prefect.flows import Flow
from pydantic import ValidationError

from deployments.check import required_parameters
from deployments.parent import is_parent
from deployments.project import Deployment, Manifest, first_problem
from deployments.values import Returns, to_json, validate_some


@dataclass(frozen=True)
class Prepared:
    """What to run.

    Attributes:
        manifest: The part of prefect.yaml in which it was found.
        name: `flow-name/deployment-name`.
    """

    manifest: Manifest
    name: str
    pool: str
    parameters: dict[str, Any]
    returns: Returns[Any]


def prepare(name: str | None, given: list[str], pool_type: str | None = None) -> Prepared:
    """Find a deployment in prefect.yaml, and read its parameters.

    Args:
        name: A flow's name, or `flow-name/deployment-name`; by default the first parent's.
        given: `key=value` for each parameter; the value is JSON, or else text.
        pool_type: Look only at deployments in work pools of this type.

    Raises:
        ValueError: There is no such deployment; or a parameter is unknown, missing or wrong.
    """
    manifest = Manifest.load()
    if pool_type:
        manifest = manifest.of_type(pool_type)
    names = []
    for deployment in manifest.deployments:
        flow = deployment.load_flow()
        names.append(deployment.full_name)
        if name in (flow.name, names[-1]) if name else is_parent(flow):
            break
    else:
        what = f"deployment {name}" if name else "parent"
        where = f" in a work pool of type {pool_type}" if pool_type else ""
        raise ValueError(f"prefect.yaml has no {what}{where}, only {', '.join(names)}")
    try:
        returns = Returns[Any].of(flow)
    except Exception as error:  # a type of the user's may raise anything
        raise ValueError(f"{flow.name}: what it returns can't be read: {error!r}") from error
    parameters = _read_parameters(flow, deployment, given)
    return Prepared(manifest, names[-1], deployment.work_pool.name, parameters, returns)


def _read_parameters(
    flow: Flow[..., Any], deployment: Deployment, given: list[str]
) -> dict[str, Any]:
    parameters = {}
    for argument in given:
        key, sign, text = argument.partition("=")
        if not (key and sign):
            raise ValueError(f"the parameter {argument!r} must be key=value")
        if key not in flow.parameters.properties:
            names = ", ".join(flow.parameters.properties)
            raise ValueError(f"{flow.name} has no parameter {key}, only {names or 'none'}")
        try:
            parameters[key] = json.loads(text)
        except ValueError:
            parameters[key] = text
    for key in required_parameters(flow):
        if key not in deployment.parameters | parameters:
            raise ValueError(f"{flow.name} needs the parameter {key}: give it by -p {key}=...")
    try:
        return to_json(flow, parameters, validate_some(flow, parameters))
    except ValidationError as error:
        shown = "input_value=" in str(error)  # not where it may be a secret
        wrong = f", not {error.errors()[0]['input']!r:.200}" if shown else ""
        raise ValueError(f"{first_problem(error)}{wrong}") from None
