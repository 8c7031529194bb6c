"""Parents of the engine's own tests, whose results are none, many, gone or wrong."""

from deployments import parent_flow

print("imported")  # noqa: T201 - it must not get among JSON


@parent_flow
async def nothing() -> None:
    """Return nothing."""


@parent_flow
async def numbers() -> list[int]:
    """Return numbers."""
    return [1, 2]


@parent_flow(persist_result=False)
async def gone() -> int:
    """Return what nobody keeps."""
    return 1


@parent_flow
async def wrong() -> list[int]:
    """Return what the annotation does not say."""
    return ["x"]  # type: ignore[list-item]  # pyright: ignore
