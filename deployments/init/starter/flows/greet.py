"""A child: it greets one person."""

from prefect import flow
from pydantic import BaseModel


class Greeting(BaseModel):
    """What was said to whom."""

    name: str
    text: str


@flow(flow_run_name="greet {name}")
def greet(name: str) -> Greeting:
    """Greet a person.

    Args:
        name: The name of the person.
    """
    return Greeting(name=name, text=f"Hello, {name}!")
