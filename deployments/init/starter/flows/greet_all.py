"""A parent: one child run per person, side by side."""

import asyncio

from deployments import child, parent_flow
from flows.greet import Greeting, greet


@parent_flow
async def greet_all(names: list[str] = ["Ada", "Grace", "Katherine"]) -> list[Greeting]:
    """Greet many people at once.

    Args:
        names: The names of the people; each is a child run of its own.
    """
    return await asyncio.gather(*(child(greet)(name) for name in names))
