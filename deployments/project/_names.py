"""Names by which a server can be asked for what has them."""

from __future__ import annotations

from typing import Annotated

import httpx
from prefect.types import Name
from prefect.utilities.templating import find_placeholders
from pydantic import AfterValidator


def check_name(name: str) -> str:
    """Return a name that Prefect's client, which does not quote, can put into a URL.

    Raises:
        ValueError: It is none.
    """
    if find_placeholders(name):
        raise ValueError(f"{name!r} is a template, which is not resolved when this is looked up")
    try:
        usable = httpx.URL(f"http://server/{name}").path == f"/{name}"
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise ValueError(f"{name!r} can't stand in a URL: leave out signs such as # and ?")
    return name


ServerName = Annotated[Name, AfterValidator(check_name)]
