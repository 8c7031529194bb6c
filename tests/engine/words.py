"""Flows of the engine's own tests: a parent with children side by side, then one over them all."""

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, Field

from deployments import child, parent_flow

Word = Annotated[str, Field(pattern="^[a-z]+$")]
Times = Annotated[int, Field(ge=1, le=12)]


class Size(BaseModel):
    """How long a word is."""

    word: Word
    length: int
    initial: str | None = None


class Sizes(BaseModel):
    """How long words are, the longest first."""

    sizes: list[Size]
    total: int


@flow(flow_run_name="{word} x{times}")
def measure(word: Word, times: Times, hold: str | None = None) -> Size:
    """Measure a word some times; not `bad`, and not before there is a file to hold for."""
    while hold and not Path(hold).exists():
        time.sleep(0.1)
    if word == "bad":
        raise ValueError(f"{word} can't be measured by process {os.getpid()}")
    return Size(word=word, length=times * len(word), initial=word[0])


@flow(flow_run_name="sum of {sizes[0].word}")
def add_up(sizes: Annotated[list[Size], Field(min_length=1)]) -> Sizes:
    """Add up sizes, and publish the sum as an artifact."""
    total = sum(size.length for size in sizes)
    create_markdown_artifact(key="sizes", markdown=f"The sum is **{total}**.")
    return Sizes(sizes=sorted(sizes, key=lambda size: -size.length), total=total)


@parent_flow(flow_run_name="words x{times}")
async def measure_all(
    words: Annotated[list[Word], Field(min_length=1)] = ["a", "bb", "ccc"],
    times: Times = 1,
    hold: str | None = None,
) -> Sizes:
    """Measure words side by side, and add them up."""
    sizes = await asyncio.gather(*(child(measure)(word, times, hold) for word in words))
    return await child(add_up)(sizes)
