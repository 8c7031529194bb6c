"""Flows that return values of all kinds, each annotated with its type."""

import base64
import dataclasses
import datetime as dt
import enum
import pickle
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from pydantic import AfterValidator, BaseModel, Field, SecretStr, SerializeAsAny
from typing_extensions import TypedDict


class Color(enum.Enum):
    """Colors by number."""

    RED = 1


class Cat(BaseModel):
    """A pet that looks like a dog."""

    name: str


class Dog(BaseModel):
    """A pet that looks like a cat."""

    name: str


class Puppy(Dog):
    """A dog, and more than that."""

    weeks: int


class Row(BaseModel):
    """A row with what a row may hold."""

    number: int = 0
    day: dt.date = dt.date(2013, 1, 31)
    price: Decimal = Decimal("1.10")
    color: Color = Color.RED
    tags: set[str] = {"a", "b"}
    renamed: str = Field("as ever", alias="Renamed")
    extra: dict[str, Any] = {}


class Strict(BaseModel, strict=True, ser_json_bytes="base64", val_json_bytes="base64"):
    """A model that takes no text for a date, and has its own form of bytes in JSON."""

    day: dt.date
    raw: bytes


@dataclasses.dataclass
class Point:
    """A point with a label."""

    x: int
    label: str | None = None


class Swapped(BaseModel):
    """A model whose fields have each other's names as aliases."""

    net: int = Field(alias="gross")
    gross: int = Field(alias="net")


class Sparse(BaseModel):
    """A model that leaves out of JSON what is as ever, or secret enough."""

    day: dt.date | str = "any"
    usual: int = Field(0, exclude_if=lambda value: value == 0)
    hidden: int = Field(0, exclude_if=lambda value: value > 3)


class Evil:
    """When it is unpickled, a file is written."""

    def __reduce__(self) -> Any:
        """Say how it is unpickled."""
        return Path("unpickled").write_text, ("executed",)


PICKLE = base64.encodebytes(pickle.dumps(Evil())).decode()
DAY = dt.date(2013, 1, 31)


@flow
def model() -> Row:
    """Return other values than the defaults."""
    return Row(number=7, day=DAY, tags={"c"}, Renamed="again")


@flow
def default_model() -> Row:
    """Return the defaults."""
    return Row()


@flow
def strict_models() -> dict[str, Strict]:
    """Return what only JSON may convert."""
    return {"one": Strict(day=DAY, raw=b"\xff\x00")}


@flow
def no_annotation():  # type: ignore[no-untyped-def]
    """Return a model that nobody announces."""
    return [Cat(name="Mia")]


@flow
def models() -> list[Row]:
    """Return some."""
    return [Row(number=1), Row(number=2)]


@flow
def models_by_name() -> dict[str, Row]:
    """Return them by name."""
    return {"one": Row(number=1)}


@flow
def model_and_number() -> tuple[Row, int]:
    """Return two things."""
    return Row(number=1), 2


@flow
def nested() -> dict[str, list[tuple[Point, Row | None]]]:
    """Return what is deep."""
    return {"a": [(Point(1), None), (Point(2, "two"), Row(number=2))]}


@flow
def optional() -> Row | None:
    """Return the model of two."""
    return Row(number=3)


@flow
def union() -> list[Cat | Dog]:
    """Return two that have the same fields."""
    return [Dog(name="Rex"), Cat(name="Mia")]


@flow
def subclass() -> Dog:
    """Return more than is announced."""
    return Puppy(name="Rex", weeks=8)


@flow
def date_or_text() -> list[dt.date | str]:
    """Return a date, and a text that looks like one."""
    return [DAY, "2013-01-31"]


@flow
def text_or_date() -> dt.date | str:
    """Return a text that looks like a date."""
    return "2013-01-31"


@flow
def point() -> Point:
    """Return a dataclass."""
    return Point(1, "one")


@flow
def points() -> list[Point]:
    """Return dataclasses."""
    return [Point(1), Point(2, "two")]


@flow
def color() -> Color:
    """Return a member of an enumeration."""
    return Color.RED


@flow
def colors() -> list[Color]:
    """Return members."""
    return [Color.RED]


@flow
def numbers() -> set[int]:
    """Return a set."""
    return {1, 2}


@flow
def days() -> frozenset[dt.date]:
    """Return a set of what JSON does not know."""
    return frozenset({DAY})


@flow
def by_number() -> dict[int, dt.timedelta]:
    """Return keys that JSON does not know."""
    return {1: dt.timedelta(seconds=1.5)}


@flow
def day() -> dt.date:
    """Return a date."""
    return DAY


@flow
def moment() -> dt.datetime:
    """Return a time with its zone."""
    return dt.datetime(2013, 1, 31, 12, 30, 15, 250, tzinfo=dt.UTC)


@flow
def duration() -> dt.timedelta:
    """Return a duration."""
    return dt.timedelta(days=1, microseconds=1)


@flow
def decimal() -> Decimal:
    """Return more digits than a float has."""
    return Decimal("1.1000000000000000000000001")


@flow
def identity() -> uuid.UUID:
    """Return an id."""
    return uuid.UUID(int=7)


@flow
def path() -> Path:
    """Return a path."""
    return Path("a") / "b"


@flow
def text_as_bytes() -> bytes:
    """Return bytes that are text."""
    return b"abc"


@flow
def nothing() -> None:
    """Return nothing."""


@flow
def text() -> str:
    """Return a text that is JSON."""
    return '{"data": 1}'


@flow
def data_and_total() -> dict[str, Any]:
    """Return keys that Prefect's records have."""
    return {"data": {"id": 7}, "total": 2}


@flow
def result_and_metadata() -> dict[str, Any]:
    """Return all keys that Prefect's records have."""
    return {"result": "[1]", "metadata": {"serializer": {"type": "json"}}}


@flow
def class_key() -> dict[str, Any]:
    """Return a key that Prefect's wrapper has."""
    return {"__class__": "a.b.C", "other": 1}


@flow
def class_key_in_model() -> Row:
    """Return a model that holds what looks like Prefect's wrapper."""
    return Row(extra={"__class__": "a.b.C", "data": 1})


@flow
def pickle_in_data() -> dict[str, str]:
    """Relay what somebody else sent."""
    return {"data": PICKLE}


@flow
def pickle_in_record() -> dict[str, Any]:
    """Relay what somebody sent who knows Prefect."""
    return {"data": PICKLE, "serializer": {"type": "pickle", "picklelib": "pickle"}}


@flow(result_serializer="compressed/json")
def compressed() -> list[Row]:
    """Return what is written smaller."""
    return [Row(number=1)]


@flow(result_serializer="pickle")
def pickled() -> dict[str, bytes]:
    """Return what JSON can't hold."""
    return {"raw": b"\xff\x00"}


@task
def make_row(number: int) -> Row:
    """Return a row."""
    return Row(number=number)


@flow
def future() -> Row:
    """Return a task's result as its own."""
    return make_row.submit(9)  # type: ignore[return-value]


@task
def count() -> set[int]:
    """Return a set."""
    return {1}


@flow
def future_of_a_set() -> set[int]:
    """Return a task's result as its own."""
    return count.submit()  # type: ignore[return-value]


@flow
def futures() -> list[Row]:
    """Return the results of tasks as its own."""
    return [make_row.submit(9)]  # type: ignore[list-item]


@flow
def state() -> Row:
    """Return a task's state as its own."""
    return make_row(9, return_state=True)  # type: ignore[return-value]


@flow(result_serializer="pickle")
def pickled_secret() -> SecretStr:
    """Return what a pickle holds all of."""
    return SecretStr("swordfish")


@flow
def swapped() -> Swapped:
    """Return what is written by name, and read by alias, too."""
    return Swapped(gross=1, net=2)


@flow
def sparse() -> Sparse:
    """Return what JSON need not tell, and a text that is no date."""
    return Sparse()


@flow
def one_of_many() -> list[dt.date | int | str | uuid.UUID | None]:
    """Return one of each, and texts that look like others."""
    return [DAY, 1, "1", str(uuid.UUID(int=7)), uuid.UUID(int=7), None]


@flow
def by_date_or_text() -> dict[dt.date | str, int]:
    """Return texts as keys, that look like dates: JSON has no others."""
    return {"2013-01-31": 1}


@flow
def set_or_list() -> list[set[int] | list[int]]:
    """Return one of each."""
    return [{1}, [1]]


@flow
def sets_of_sets() -> set[tuple[int, frozenset[str]]]:
    """Return sets whose order differs from process to process, at every depth."""
    return {(number, frozenset("abcdefg"[number:])) for number in range(5)}


@flow
def numbers_that_are_none() -> list[float]:
    """Return what only Python's JSON has."""
    return [float("inf"), 1]


# What can't be returned.


@dataclasses.dataclass
class Counter:
    """A dataclass whose count is no parameter of it, and grows."""

    name: str
    count: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        """Count."""
        self.name += "!"


class Doubled(BaseModel):
    """A model that is not what it was made of."""

    number: Annotated[int, AfterValidator(lambda number: number * 2)]


class Grown(BaseModel):
    """A model that grows each time."""

    number: int

    def model_post_init(self, _: Any) -> None:
        """Grow."""
        self.number += 1


class Lifted(BaseModel):
    """A model with an `__init__` of its own."""

    number: int

    def __init__(self, number: int) -> None:
        """Add one."""
        super().__init__(number=number + 1)


class Owner(BaseModel):
    """A model that writes all of what it reads a part of."""

    pet: SerializeAsAny[Dog]


class Named(TypedDict):
    """A dict with a name."""

    name: str


class Account(BaseModel):
    """A model with a secret."""

    password: SecretStr


@flow
def counter() -> Counter:
    """Return what no parameter of its class gives."""
    value = Counter("c")
    value.count = 5
    return value


@flow
def doubled() -> Doubled:
    """Return 2, which would be doubled again."""
    return Doubled(number=1)


@flow
def doubled_itself() -> Annotated[int, AfterValidator(lambda number: number * 2)]:
    """Return 2, which nobody has doubled."""
    return 2


@flow
def grown() -> Grown:
    """Return 2, which would be 3."""
    return Grown(number=1)


@flow
def lifted() -> list[Lifted]:
    """Return 2, which would be 3."""
    return [Lifted(1)]


@flow
def hidden() -> Sparse:
    """Return what is left out this time."""
    return Sparse(hidden=5)


@flow
def date_in_a_model() -> Sparse:
    """Return what is the same JSON as a text."""
    return Sparse(day=DAY)


@flow
def number_as_key() -> dict[int | str, int]:
    """Return what is the same JSON as a text as key."""
    return {1: 2}


@flow
def number_and_text_as_keys() -> dict[Any, int]:
    """Return two keys that are one in JSON."""
    return {1: 2, "1": 3}


@flow
def owner() -> Owner:
    """Return a dog that is a puppy."""
    return Owner(pet=Puppy(name="Rex", weeks=8))


@flow
def named() -> Named:
    """Return more than is announced."""
    return {"name": "Rex", "weeks": 8}  # type: ignore[typeddict-unknown-key]


@flow
def exceptions() -> list[Any]:
    """Return what `gather` gives for what has failed."""
    return [1, ValueError("no")]


@flow
def date_as_text() -> str:
    """Return a date that is announced as a text."""
    return DAY  # type: ignore[return-value]


@flow
def by_date() -> dict[dt.date, int]:
    """Return keys that JSON does not have."""
    return {DAY: 1}


@flow
def secret_of_another_type() -> list[Account]:
    """Return a secret that is none to pydantic."""
    return [{"password": 20130131}]  # type: ignore[list-item]


class Frame:
    """Stands for a DataFrame: neither JSON nor pydantic knows it."""


@flow
def frame() -> Frame:
    """Return an object."""
    return Frame()


@flow
def raw() -> bytes:
    """Return bytes that are no text."""
    return b"\xff\x00"


@flow
def generator() -> Iterator[int]:
    """Yield."""
    yield 1
    yield 2


@flow
def secret() -> list[Account]:
    """Return a secret."""
    return [Account(password=SecretStr("swordfish"))]


class Partial(BaseModel):
    """A model that JSON gets a part of."""

    kept: int
    lost: int = Field(0, exclude=True)


@flow
def excluded() -> Partial:
    """Return a model whose author leaves a field out of JSON."""
    return Partial(kept=1)


@flow
def lie() -> int:
    """Return something else than announced."""
    return "a text"  # type: ignore[return-value]
