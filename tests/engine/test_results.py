"""What a child returns arrives as it is, or is refused."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.flows import Flow
from prefect.results import resolve_serializer
from prefect.serializers import JSONSerializer, PickleSerializer, Serializer
from prefect.states import Completed
from pydantic import ValidationError, create_model

from deployments import ChildResultUnavailable, child, parent_flow
from deployments.deploy._deploy import run_prefect_deploy
from deployments.project import ROOT, Manifest
from deployments.run._prepare import Prepared
from deployments.run._run import read_outcome
from deployments.servers import TemporaryServer
from deployments.values import Returns, Unreadable, read_value
from tests.engine import returns

ANOTHER = "would arrive as another value than was returned"
UNION = "may be one or another member of a union"
NOT_WRITTEN = "was not written: Failed to serialize object of type"
REFUSED: dict[str, str] = {
    "by_date": f"{NOT_WRITTEN} 'dict' with serializer 'json'",
    "counter": f"{ANOTHER} at name",
    "date_as_text": ANOTHER,
    "date_in_a_model": UNION,
    "doubled": f"{ANOTHER} at number",
    "doubled_itself": ANOTHER,
    "exceptions": "is or holds an exception",
    "frame": f"{NOT_WRITTEN} 'Frame'",
    "grown": f"{ANOTHER} at number",
    "hidden": f"{ANOTHER} at hidden",
    "lie": "Input should be a valid integer",
    "lifted": f"{ANOTHER} at 0.number",
    "named": f"{ANOTHER} at weeks",
    "number_and_text_as_keys": "has two keys that are the same text in JSON",
    "number_as_key": UNION,
    "owner": f"{ANOTHER} at pet.weeks",
    "raw": f"{NOT_WRITTEN} 'bytes'",
    "secret": "is or holds a secret, for which JSON has asterisks",
    "secret_of_another_type": "Input should be a valid string [type=string_type]\n",
}
FLOWS = {
    name: value
    for name, value in vars(returns).items()
    if isinstance(value, Flow) and not value.isgenerator
}
ARRIVES = set(FLOWS) - set(REFUSED) - {"no_annotation"}
# Through a process of their own: one of each kind, and what another process makes different.
CHILDREN = {"by_date", "doubled", "frame", "future", "future_of_a_set", "futures"}
CHILDREN |= {"models", "no_annotation"}
CHILDREN |= {"pickle_in_record", "pickled", "secret_of_another_type", "sets_of_sets", "state"}
CHILDREN |= {"strict_models", "swapped", "union"}
ROW = returns.make_row.fn(9)
OF_TASKS: dict[str, Any] = {"future": ROW, "future_of_a_set": {1}, "futures": [ROW], "state": ROW}


def sent(declared: Flow[..., Any], value: Any) -> Any:
    """Return what arrives of a value in the parent of a flow."""
    serializer: Serializer[Any] = resolve_serializer(declared.result_serializer or "json")
    return Returns[Any].of(declared).load(serializer.dumps(value), serializer.type)


def returning(annotation: Any, **options: Any) -> Flow[..., Any]:
    def give() -> None: ...

    give.__annotations__["return"] = annotation
    return flow(give, **options)


def is_as_returned(name: str, value: Any) -> bool:
    expected = OF_TASKS.get(name) or FLOWS[name].fn()
    return value == expected and type(value) is type(expected)


@pytest.mark.parametrize("name", sorted(ARRIVES - set(OF_TASKS)))
def test_it_arrives_equal_to_what_was_returned(name: str) -> None:
    assert is_as_returned(name, sent(FLOWS[name], FLOWS[name].fn()))


@pytest.mark.parametrize("name", sorted(n for n in REFUSED if NOT_WRITTEN not in REFUSED[n]))
def test_it_is_refused_with_the_field(name: str) -> None:
    with pytest.raises((Unreadable, ValidationError)) as error:
        sent(FLOWS[name], FLOWS[name].fn())
    assert REFUSED[name] in str(error.value)


@pytest.fixture(scope="module")
def results(
    prefect_server: TemporaryServer, worker: object, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Run flows as children; return results and errors by name."""
    names = sorted(CHILDREN)
    manifest: dict[str, Any] = {
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "deployments": [
            {
                "name": "local",
                "entrypoint": f"tests/engine/returns.py:{name}",
                "work_pool": {"name": "engine-tests-local", "work_queue_name": "children"},
            }
            for name in names
        ],
    }
    file = tmp_path_factory.mktemp("returns") / "prefect.yaml"
    file.write_text(json.dumps(manifest))  # JSON is YAML
    run_prefect_deploy(prefect_server.env, "--all", "--prefect-file", str(file))

    @parent_flow
    async def parent() -> None:
        calls = [child(FLOWS[name])() for name in names]
        gathered = await asyncio.gather(*calls, return_exceptions=True)
        found.update(zip(names, gathered, strict=True))
        found["by name"] = await child("no-annotation/local")()

    found: dict[str, Any] = {}
    asyncio.run(parent())
    return found


@pytest.mark.slow
def test_children_return_what_arrives(results: dict[str, Any]) -> None:
    changed = {n: results[n] for n in CHILDREN & ARRIVES if not is_as_returned(n, results[n])}
    assert not changed


@pytest.mark.slow
def test_children_are_refused_with_the_cause(results: dict[str, Any]) -> None:
    for name in CHILDREN & set(REFUSED):
        assert isinstance(results[name], ChildResultUnavailable), results[name]
        assert REFUSED[name] in str(results[name])


@pytest.mark.slow
def test_without_an_annotation_it_is_plain_data(results: dict[str, Any]) -> None:
    (by_name,) = results["by name"]
    assert by_name == {"name": "Mia"}
    assert results["no_annotation"] == results["by name"]


@pytest.mark.slow
@pytest.mark.anyio
async def test_run_tells_the_cause_too(results: dict[str, Any]) -> None:
    prepared = Prepared(
        Manifest.load(), "by-date/local", "local", {}, Returns[Any].of(returns.by_date)
    )
    async with get_client() as client:
        run = await client.read_flow_run(results["by_date"].run.id)
    outcome = await read_outcome(prepared, run)
    assert f"by-date/local completed. Its result {NOT_WRITTEN} 'dict'" in str(outcome.problem)


@pytest.mark.slow
def test_a_secret_is_not_shown(results: dict[str, Any]) -> None:
    error = results["secret_of_another_type"]
    assert "20130131" not in f"{error}{error.__cause__}"


def test_classes_of_one_name_are_told_apart_by_their_modules() -> None:
    cats = [create_model("Cat", name=(str, ...), __module__=name) for name in ("here", "there")]
    declared = returning(list[cats[0] | cats[1]])  # type: ignore[valid-type]
    value = [cat(name="Mia") for cat in cats]
    assert sent(declared, value) == value
    elsewhere = create_model("Cat", name=(str, ...), __module__="__main__")
    with pytest.raises(Unreadable, match=UNION):
        sent(declared, [elsewhere(name="Mia")])


def test_plain_data_stands_for_what_it_says() -> None:
    row = returns.Row(number=7)
    plain = row.model_dump() | {"tags": ["b", "a"]}
    assert sent(returning(returns.Row), plain) == row
    del plain["number"]
    with pytest.raises(Unreadable, match=f"{ANOTHER} at number"):
        sent(returning(returns.Row), plain)
    untyped: dict[str, Any] = {"row": row, "day": returns.DAY, "set": {1}}
    assert sent(returning(dict[str, Any]), untyped) == json.loads(
        json.dumps({"row": row.model_dump(mode="json"), "day": "2013-01-31", "set": [1]})
    )


def test_the_caller_of_a_child_by_name_may_read_a_part() -> None:
    blob = JSONSerializer().dumps([returns.Puppy(name="Rex", weeks=8)])
    assert Returns(list[returns.Named]).load(blob, "json") == [{"name": "Rex"}]
    wider: Any = returns.Cat | returns.Puppy
    assert Returns[Any](list[wider]).load(blob, "json") == [returns.Puppy(name="Rex", weeks=8)]
    blob = JSONSerializer().dumps([{"name": "Rex", "weeks": 8}])
    assert Returns[Any](list[wider]).load(blob, "json") == [returns.Puppy(name="Rex", weeks=8)]
    aged: Any = create_model("Aged", age=(int, 0))
    with pytest.raises(Unreadable, match=f"{ANOTHER} at 0.age"):
        Returns[Any](list[aged]).load(blob, "json")


def test_what_is_not_json_is_compared_itself() -> None:
    doubled = returning(returns.doubled_itself.fn.__annotations__["return"])
    with pytest.raises(Unreadable, match=ANOTHER):
        sent(doubled.with_options(result_serializer="pickle"), 2)
    own = returning(dict[int, int], result_serializer=JSONSerializer(object_decoder=None))
    assert sent(own, {1: 2}) == {1: 2}


@pytest.mark.slow
def test_a_state_decides_neither_what_reads_a_result_nor_where_it_is(
    results: dict[str, Any], prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    pickled = PickleSerializer()
    storage = prefect_server.home / "storage"
    (storage / "pickled").write_bytes(pickled.dumps(returns.Evil()))
    (tmp_path / "outside").write_text("1")
    record = SimpleNamespace(storage_block_id=None, storage_key="pickled", serializer=pickled)
    declared = Returns[Any].of(returning(Any))
    for each in (declared, Returns[Any](Any)):
        with pytest.raises(Unreadable, match="was written by the serializer 'pickle', not 'json'"):
            asyncio.run(read_value(Completed(data=record), each))
    assert not Path("unpickled").exists()
    for key in (tmp_path / "outside", "../outside", storage / ".." / "storage" / "pickled"):
        record = SimpleNamespace(
            storage_block_id=None, storage_key=str(key), serializer=JSONSerializer()
        )
        with pytest.raises(Unreadable, match="is outside of the"):
            asyncio.run(read_value(Completed(data=record), declared))


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
    with pytest.raises(
        Unreadable, match=r"remote-file-system/refused, .*\(its values are refused\)"
    ) as raised:
        await read_value(Completed(data=record), Returns[Any](Any))
    assert "a-secret" not in str(raised.value)
    assert raised.value.__cause__ is None
