"""What type checkers and editors see of children: mypy checks this file, and so does basedpyright,
whose engine is that of VS Code.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=error

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Optional, assert_type

from prefect import flow, task
from pydantic import BaseModel, Field

from deployments import ChildRun, child, parent_flow


class Model(BaseModel):
    """A result."""


@flow
def plain(x: int) -> Model: ...  # type: ignore[empty-body]


@flow
async def awaited(x: int) -> Model: ...  # type: ignore[empty-body]


@flow(name="with options")
async def listing(x: int, y: str = "") -> list[Model]: ...  # type: ignore[empty-body]


@flow
async def anything(x: int) -> dict[str, Any]: ...  # type: ignore[empty-body]


@flow
async def nothing(x: int) -> None: ...


@parent_flow
async def parent(x: int) -> Model:
    return await child(awaited)(x)


@parent_flow(name="with options")
async def other_parent(x: int) -> Model:
    return await child(plain)(x)


@task
async def no_flow(x: int) -> Model: ...  # type: ignore[empty-body]


async def by_flow() -> None:
    assert_type(await child(plain)(1), Model)
    assert_type(await child(awaited)(1), Model)
    assert_type(await child(listing)(1, y="a"), list[Model])
    assert_type(await child(anything)(x=1), dict[str, Any])
    await child(nothing)(1)
    assert_type(await child(parent)(1), Model)
    assert_type(await child(other_parent)(1), Model)
    assert_type(await child(awaited, deployment="docker").submit(1), ChildRun[Model])
    assert_type(await (await child(awaited).submit(1)).result(), Model)
    assert_type(await asyncio.gather(child(plain)(1), child(listing)(1)), tuple[Model, list[Model]])


async def by_name() -> None:
    assert_type(await child("f/d")(x=1), Any)
    assert_type(await child("f/d", returns=Model)(x=1), Model)
    assert_type(await child("f/d", returns=list[Model])(x=1), list[Model])
    assert_type(await child("f/d", returns=Optional[Model])(x=1), Model | None)  # noqa: UP045
    assert_type(await child("f/d", returns=list[Model] | None)(x=1), list[Model] | None)
    assert_type(await child("f/d", returns=Model | int)(x=1), Model | int)
    assert_type(await child("f/d", returns=Annotated[int, Field(ge=1)])(x=1), int)


async def wrong() -> None:
    await child(awaited)("one")  # type: ignore[arg-type]  # pyright: ignore
    await child(listing)(1, z="a")  # type: ignore[call-arg]  # pyright: ignore
    child(awaited, returns=Model)  # type: ignore[call-overload]  # pyright: ignore
    child(awaited, colour="red")  # type: ignore[call-overload]  # pyright: ignore
    child("f/d", deployment="local")  # type: ignore[call-overload]  # pyright: ignore
    child(no_flow)  # type: ignore[call-overload]  # pyright: ignore
    child(plain(1))  # type: ignore[call-overload]  # pyright: ignore


def test_editors_see_what_mypy_sees() -> None:
    python = Path(sys.executable)
    checked = subprocess.run(
        [python.with_name("basedpyright"), "--pythonpath", python, "--level", "error", __file__],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
