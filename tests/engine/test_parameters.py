"""What arrives in a child of the arguments of its call, and what is refused."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import os
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
from prefect import flow
from prefect.filesystems import LocalFileSystem
from prefect.flows import Flow
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    computed_field,
)
from typing_extensions import TypedDict

from deployments import child, parent_flow
from deployments.project import ROOT
from deployments.testing import Stubs
from deployments.values import to_json, validate

pytestmark = pytest.mark.anyio


class Colour(enum.Enum):
    RED = "red"


class Size(BaseModel):
    width: int
    made: dt.date = dt.date(2013, 1, 1)


class Wide(Size):
    depth: int


class Box(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2


class ByAlias(BaseModel):
    width: int = Field(1, alias="Width")


class Renamed(BaseModel):
    width: int = Field(1, serialization_alias="Width")


class Hidden(BaseModel):
    width: int = Field(1, exclude=True)


class Shortened(BaseModel):
    name: Annotated[str, PlainSerializer(lambda name: name[:3])]


class Settings(BaseModel):
    numbers: Json[list[int]]


class Tags(RootModel[set[str]]):
    pass


class Point(NamedTuple):
    x: int
    y: dt.date


class Options(TypedDict, total=False):
    until: dt.date


@dataclasses.dataclass
class Row:
    at: dt.datetime
    sizes: tuple[Size, ...] = ()


class Swapped(BaseModel):
    net: int = Field(alias="gross")
    gross: int = Field(alias="net")


class Handle:
    """A class without equality, from a text and back."""

    def __init__(self, text: str) -> None:
        self.text = text


def split(text: str) -> list[str]:
    return text.split(",")  # an AttributeError for what it returns itself


AsText = Annotated[list[str], BeforeValidator(split)]


def double(text: str) -> str:
    if len(text) > 1:
        raise ValueError("too long")
    return text * 2


class Doubled(BaseModel):
    text: Annotated[str, AfterValidator(double)]


AnyHandle = Annotated[
    Handle,
    BeforeValidator(lambda value: Handle(value) if isinstance(value, str) else value),
    PlainSerializer(lambda handle: handle.text),
]


def taking(hint: Any) -> Flow[..., Any]:
    def take(value: Any) -> None: ...

    take.__annotations__["value"] = hint
    return flow(take)


async def arrived(stubs: Stubs, hint: Any, value: Any) -> Any:
    """Return what a child with a parameter of a type gets."""

    @parent_flow
    async def parent() -> None:
        await child(target)(value)

    target = taking(hint)
    stubs.returns(target, None)
    await parent()
    ((_, parameters),) = stubs.calls
    return parameters["value"]


TODAY = dt.date(2013, 1, 31)
NOW = dt.datetime(2013, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Size, Size(width=1, made=TODAY)),
        (list[Size] | None, [Size(width=1)]),
        (dict[int, list[Size]], {1: [Size(width=1)]}),
        (Box, Box(side=2)),
        (ByAlias, ByAlias(Width=2)),
        (Renamed, Renamed(width=2)),
        (list[Renamed], [Renamed(width=2)]),
        (Settings, Settings(numbers="[1, 2]")),
        (Row, Row(NOW, (Size(width=1),))),
        (Point, Point(1, TODAY)),
        (Options, {"until": TODAY}),
        (Tags, Tags({"a", "b"})),
        (Mapping[str, dt.date], collections.OrderedDict(a=TODAY)),
        (collections.deque[dt.date], collections.deque([TODAY])),
        (set[tuple[str, dt.date]], {("a", TODAY)}),
        (frozenset[Colour], frozenset(Colour)),
        (dt.timedelta, dt.timedelta(milliseconds=1)),
        (decimal.Decimal, decimal.Decimal("0.1")),
        (uuid.UUID, uuid.UUID(int=1)),
        (bytes, b"text"),
        (str, "********** is no secret"),
        (str, r"nor is \u0000 a NUL"),
        (str, '{"__prefect_kind": "json"} is a text'),
        (list[str | dt.date], ["2013-01-31"]),
        (dict[int | str, int], {"1": 2}),
        (Swapped, Swapped(gross=1, net=2)),
        (SecretStr, SecretStr("")),
    ],
)
async def test_an_argument_arrives_as_it_is(stubs: Stubs, hint: Any, value: Any) -> None:
    assert await arrived(stubs, hint, value) == value


@pytest.mark.parametrize(
    ("hint", "given", "expected"),
    [
        (AsText, "a,b", ["a", "b"]),
        (Json[list[int]], "[1, 2]", [1, 2]),
        (Annotated[int, AfterValidator(lambda number: number + 1)], 1, 2),
        (Size, {"width": "1"}, Size(width=1)),
        (Sequence[dt.date], (TODAY,), [TODAY]),
        (Any, (1, {2}), [1, [2]]),
        (dict[str, Any], {"a": {1: (TODAY,)}}, {"a": {"1": ["2013-01-31"]}}),
        (frozenset[Any], {TODAY}, frozenset({"2013-01-31"})),
        (Any, Box(side=2), {"side": 2, "area": 4}),
    ],
)
async def test_an_argument_arrives_as_it_is_validated(
    stubs: Stubs, hint: Any, given: Any, expected: Any
) -> None:
    assert await arrived(stubs, hint, given) == expected


async def test_what_has_no_equality_arrives(stubs: Stubs) -> None:
    assert (await arrived(stubs, AnyHandle, Handle("a"))).text == "a"


async def test_a_block_arrives(stubs: Stubs) -> None:
    assert (await arrived(stubs, LocalFileSystem, LocalFileSystem(basepath="a"))).basepath == "a"


def test_an_iterator_is_passed_as_what_it_yields() -> None:
    target = taking(Iterable[dt.date])
    given = {"value": iter([TODAY])}
    assert to_json(target, given, validate(target, given)) == {"value": ["2013-01-31"]}


def test_a_secret_that_is_refused_is_not_shown() -> None:
    for hint in (SecretStr, Secret[int], list[SecretBytes]):
        with pytest.raises(ValidationError, match="for take\n") as error:
            validate(taking(hint), {"value": {"fish": "sword"}})
        assert "sword" not in str(error.value)
    with pytest.raises(ValidationError, match="input_value='sword'"):
        validate(taking(int), {"value": "sword"})


def test_job_variables_are_refused_as_arguments_are() -> None:
    with pytest.raises(ValueError, match="job_variables can't be passed as JSON: it has a key __"):
        child("elsewhere/prod", job_variables={"env": {"__prefect_kind": "json"}})


class Circle:
    """A class that has no JSON."""


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Hidden, Hidden(width=2), r"would arrive as Hidden\(width=1\)"),
        (list[Hidden], [Hidden(width=2)], r"would arrive as \[Hidden\(width=1\)\]"),
        (Shortened, Shortened(name="long"), r"would arrive as Shortened\(name='lon'\)"),
        (Size, Wide(width=1, depth=2), r"would arrive as Size\(width=1, made=.*\)"),
        (
            Doubled,
            Doubled(text="a"),
            "would be refused when it arrives, as .*: Value error, too long",
        ),
        (Path | str, Path("a"), "would arrive as 'a'"),
        (list[str | dt.date], [TODAY, "a"], r"would arrive as \['2013-01-31', 'a'\]"),
        (tuple[Any, bytes | str], (TODAY, b"a"), r"would arrive as \('2013-01-31', 'a'\)"),
        (set[int] | list[int], {1}, r"would arrive as \[1\]"),
        (dict[int | str, int], {1: 2}, r"would arrive as \{'1': 2\}"),
        (dict, {1: 2}, r"would arrive as \{'1': 2\}"),
        (Any, {1: 2, "1": 3}, "can't be passed as JSON: two of its keys are the same text"),
        (dict[int | str, int], {1: 2, "1": 3}, "can't be passed as JSON: two of its keys are"),
        (Any, [{"a": {"__prefect_kind": "none"}}], "can't be passed as JSON: it has a key __pre"),
        (Any, Circle(), "can't be passed as JSON: .*Circle.* by reference, such as a path"),
        (Circle, Circle(), "can't be passed as JSON: .*Circle.* by reference, such as a path"),
        (Iterable[Any], iter([Circle(), 1]), "can't be passed as JSON: .*Circle"),
        (list[Any], [{"a": Circle()}], "can't be passed as JSON: .*Circle"),
        (float, float("inf"), "can't be passed as JSON: .*not JSON compliant"),
        (str, "a\0b", "can't be passed as JSON: it has a NUL character"),
        (dict[str, list[str]], {"a": ["\0"]}, "can't be passed as JSON: it has a NUL character"),
        (Any, {"\0": 1}, "can't be passed as JSON: it has a NUL character"),
        (str, "\ud800", "can't be passed as JSON: .*surrogates not allowed"),
        (SecretStr, SecretStr("swordfish"), "a secret would be passed"),
        (SecretStr, "swordfish", "a secret would be passed"),
        (dict[str, list[SecretBytes]], {"a": [SecretBytes(b"fish")]}, "a secret would be passed"),
        (Secret[int], Secret[int](1), "a secret would be passed"),
        (Any, {"a": (SecretStr("swordfish"),)}, "a secret would be passed"),
    ],
)
async def test_what_would_not_arrive_is_refused_with_its_name(
    stubs: Stubs, hint: Any, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^take: parameter value:? {message}") as caught:
        await arrived(stubs, hint, value)
    assert "\n" not in str(caught.value)
    assert stubs.calls == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Circle(), "elsewhere: parameter value can't be passed as JSON: .*Circle"),
        ("\0", "elsewhere: parameter value can't be passed as JSON: it has a NUL"),
        ({1: 2, "1": 3}, "elsewhere: parameter value can't be passed as JSON: two of its keys"),
        ({"__prefect_kind": 1}, "elsewhere: parameter value can't be passed .* __prefect_kind"),
        ([SecretStr("swordfish")], "elsewhere: parameter value: a secret"),
    ],
)
async def test_a_child_called_by_name_is_refused_what_has_no_json(
    stubs: Stubs, value: Any, message: str
) -> None:
    @parent_flow
    async def parent() -> None:
        await child("elsewhere/prod")(value=value)

    stubs.returns("elsewhere", None)
    with pytest.raises(ValueError, match=message):
        await parent()
    assert stubs.calls == []


IDENTITY = """
from pydantic import BaseModel, Field, computed_field
from pydantic.dataclasses import dataclass
from prefect import flow
from deployments.values import bind, to_json, to_json_untyped, validate
from deployments.parent._call import Call

class Tag(BaseModel, frozen=True):
    names: frozenset[str] = Field(frozenset(), alias="Names")

    @computed_field
    @property
    def by_size(self) -> dict[int, set[str]]: return {1: {name.upper() for name in self.names}}

@dataclass
class Row:
    tags: set[Tag] = Field(alias="Tags")

    @computed_field
    @property
    def more(self) -> set[str]: return {name for tag in self.tags for name in tag.names}

@flow
def tagged(a: set[str], b: list[dict[int, frozenset[str]]], c: Row, d: dict[str, Tag]): ...

names = {f"tag {number}" for number in range(20)}
tag = Tag(Names=names)
values = {"a": names, "b": [{1: names}], "c": Row(Tags={tag, Tag()}), "d": {"x": tag}}
given = bind(tagged, (), values)
for parameters in (
    to_json(tagged, given, validate(tagged, given)),
    to_json_untyped("tagged", values | {"e": {("a", name) for name in names}}),
):
    print(Call(flow_name="a", deployment_name="b", parameters=parameters).digest(), parameters)
"""


def test_sets_are_the_same_in_every_process() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", IDENTITY],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1, printed
