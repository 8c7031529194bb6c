"""A result of any type, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TextIO

from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python
from rich.table import Table

from deployments.commands._console import ESCAPES, PlainConsole

OTHERWISE: Any = {"by_alias": False, "bytes_mode": "base64", "fallback": str}


def print_json(value: Any, file: TextIO) -> None:
    """Print a value as JSON."""
    text = to_json(value, indent=2, inf_nan_mode="null", **OTHERWISE)
    print(text.decode().translate(ESCAPES), file=file, flush=True)


def print_tables(value: Any, file: TextIO) -> None:
    """Print a model or a list of models as tables, and anything else as JSON.

    A field of a model that is itself a list of models is a table of its own.
    """
    rows = _rows(value)
    fields = _fields(value)
    console = PlainConsole(file=file)
    if rows:
        console.print(_table_of_rows(rows))
    elif fields:
        tables = {name: rows for name, each in fields.items() if (rows := _rows(each))}
        table = Table(title=type(value).__name__, show_header=False)
        for name, each in fields.items():
            if name not in tables:
                table.add_row(_label(name), _cell(each))
        if table.rows:
            console.print(table)
        for name, rows in tables.items():
            console.print(_table_of_rows(rows, _label(name)))
    else:
        print_json(value, file)


def _table_of_rows(rows: list[Mapping[str, Any]], title: str | None = None) -> Table:
    table = Table(title=title)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(_label(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    return table


def _rows(value: Any) -> list[Mapping[str, Any]] | None:
    """Return the fields of each of some models, if that is what a value is."""
    if not isinstance(value, list | tuple):
        return None
    rows = [fields for each in value if (fields := _fields(each))]
    return rows if rows and len(rows) == len(value) else None


def _fields(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a model, if a value is one."""
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _label(name: str) -> str:
    return name.replace("_", " ")  # so that it is broken between words


def _cell(value: Any) -> str:
    """Return a value in few words."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if 0.001 <= abs(value) < 1e9 else f"{value:.4g}"
    if fields := _fields(value):
        return ", ".join(_cell(each) for each in fields.values())
    plain = to_jsonable_python(value, **OTHERWISE)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
