"""What a child returns arrives as it is, or is refused: each through a process of its own."""

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.flows import Flow
from prefect.states import Completed

from deployments import ChildResultUnavailable, child, parent_flow
from deployments.commands._deploy import run_prefect_deploy
from deployments.commands._manifest import ROOT
from deployments.commands._processes import TemporaryServer
from deployments.runtime import Returns, Unreadable, read_value
from tests.engine import returns

REFUSED: dict[str, str] = {
    "frame": "Failed to serialize object of type 'Frame'",
    "raw": "Failed to serialize object of type 'bytes'",
    "secret": "asterisks",
    "excluded": "Partial.lost",
    "lie": "Input should be a valid integer",
}
FLOWS = {
    name: value
    for name, value in vars(returns).items()
    if isinstance(value, Flow) and not value.isgenerator
}
ARRIVES = set(FLOWS) - set(REFUSED) - {"no_annotation"}
# One of each kind; `make test-all` runs the whole table.
QUICK = {"frame", "models", "pickle_in_record", "secret", "strict_models", "union"}


def table(names: Iterable[str]) -> list[Any]:
    slow = pytest.mark.slow
    return [pytest.param(n, marks=() if n in QUICK else slow) for n in sorted(names)]


Results = dict[str, Any]


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
    prefect_server: TemporaryServer,
    worker: object,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    """Run each flow that a test asks for as a child; return results and errors by name."""
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    names = {each.params.get("name") for each in asked if each} | {"no_annotation"}
    flows = {name: FLOWS[name] for name in FLOWS if name in names}
    directory = str(ROOT)
    manifest: dict[str, Any] = {
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": directory}}],
        "deployments": [
            {
                "name": "local",
                "entrypoint": f"tests/engine/returns.py:{name}",
                "work_pool": {
                    "name": "local",
                    "work_queue_name": "children",
                    "job_variables": {
                        "working_dir": directory,
                        "command": ".venv/bin/python -I -S deployments/warm_start.py",
                    },
                },
            }
            for name in flows
        ],
    }
    file = tmp_path_factory.mktemp("returns") / "prefect.yaml"
    file.write_text(json.dumps(manifest))  # JSON is YAML
    run_prefect_deploy(prefect_server.env, "--all", "--prefect-file", str(file))

    @parent_flow
    async def parent() -> None:
        calls = [child(each)() for each in flows.values()]
        gathered = await asyncio.gather(*calls, return_exceptions=True)
        found.update(zip(flows, gathered, strict=True))
        found["by name"] = await child("no-annotation/local")()

    found: Results = {}
    asyncio.run(parent())
    return found


@pytest.mark.parametrize("name", table(ARRIVES))
def test_it_arrives_equal_to_what_was_returned(results: Results, name: str) -> None:
    row = returns.make_row.fn(9)
    of_tasks = {"future": row, "futures": [row], "state": row}
    expected = of_tasks.get(name) or FLOWS[name].fn()
    assert results[name] == expected
    assert type(results[name]) is type(expected)


@pytest.mark.parametrize("name", table(REFUSED))
def test_it_is_refused_with_an_error_that_is_true(results: Results, name: str) -> None:
    error = results[name]
    assert isinstance(error, ChildResultUnavailable), error
    assert REFUSED[name] in str(error)


def test_without_an_annotation_it_is_plain_data(results: Results) -> None:
    (by_name,) = results["by name"]
    assert by_name == {"name": "Mia"}
    assert results["no_annotation"] == results["by name"]


def test_a_flow_that_yields_is_refused() -> None:
    with pytest.raises(TypeError, match=r"child\(generator\): what a flow yields has no result"):
        child(returns.generator)


@pytest.mark.anyio
async def test_a_block_that_is_refused_is_named_without_its_values(
    prefect_server: TemporaryServer,
) -> None:
    async with get_client() as client:
        kind = await client.read_block_type_by_slug("remote-file-system")
        schema = await client.get_most_recent_block_schema_for_block_type(kind.id)
        assert schema is not None
        block = await client.create_block_document(
            BlockDocumentCreate(
                name="refused",
                data={"basepath": "a-secret"},  # no address
                block_schema_id=schema.id,
                block_type_id=kind.id,
            )
        )
    record = SimpleNamespace(storage_key="a", storage_block_id=block.id)
    with pytest.raises(Unreadable, match="refused: its values are refused") as raised:
        await read_value(Completed(data=record), Returns[Any](Any))
    assert "a-secret" not in str(raised.value)
    assert raised.value.__cause__ is None
