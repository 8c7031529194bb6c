"""The arrows of imports: flows -> `deployments` -> its rooms, each by its one door."""

import ast
import graphlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import deployments

ENGINE = Path(deployments.__file__).parent
# What each room, or module beside them, may use of the others.
ROOMS = {
    "": "parent",  # what flows import
    "__main__": "_cli project",
    "_cli": "_console check deploy dev project run servers stack",
    "stack": "_console deploy project runs",
    "dev": "deploy project runs servers",
    "run": "_console check deploy parent project runs servers values",
    "check": "deploy parent project runs values",
    "testing": "deploy parent project servers values",
    "deploy": "_console parent project runs servers",
    "servers": "project",
    "project": "",
    "maintenance": "runs",
    "parent": "runs values",
    "runs": "",
    "values": "",
    "_console": "",
    "_warm_process": "",
    "warm_start": "",
    "install": "",
    "update": "",
    "init": "",
}
FACES = [path.parent.name for path in ENGINE.glob("*/__init__.py")]
OUTSIDE = ("flows", "tests", "benchmarks")


def name_of(path: Path) -> str:
    parts = path.relative_to(ENGINE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# The starter's files are for another tree: that of a project that was just made.
PATHS = [path for path in ENGINE.rglob("*.py") if "starter" not in path.parts]
MODULES = {name_of(path): ast.parse(path.read_text()) for path in PATHS}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports, also inside of functions and under an `if`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where from"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


ARROWS = sorted({(module, other) for module, tree in MODULES.items() for other in imports(tree)})


def room_of(module: str) -> str:
    """Return the room that a module is in; of `deployments` itself, the empty name."""
    return f"{module}.".split(".")[1]


def is_in(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = graphlib.TopologicalSorter[str]()
    for module, other in ARROWS:
        graph.add(module, other)
    graph.prepare()  # raises a CycleError, which names them


def test_arrows_between_rooms_are_drawn() -> None:
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, other in ARROWS:
        here, there = room_of(module), room_of(other)
        if is_in(other, "deployments") and here != there:
            found[here].add(there)
    assert {room: " ".join(sorted(others)) for room, others in found.items()} == ROOMS


def test_a_room_has_one_door() -> None:
    past_it = [
        (module, other)
        for module, other in ARROWS
        if is_in(other, "deployments")
        and other.count(".") > 1
        and room_of(module) != room_of(other)
    ]
    assert past_it == []


def test_the_engine_knows_no_flows_and_no_tests() -> None:
    assert [arrow for arrow in ARROWS if is_in(arrow[1], *OUTSIDE)] == []


def test_nothing_is_imported_for_type_checkers_only() -> None:
    """It would hide a circle, and keep from Prefect and pydantic what annotations mean."""
    names = {
        (module, name)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        for name in (vars(node).get("id"), vars(node).get("attr"), vars(node).get("name"))
    }
    assert [module for module, name in names if name == "TYPE_CHECKING"] == []


@pytest.mark.parametrize("name", ["deployments", *(f"deployments.{face}" for face in FACES)])
def test_a_face_is_sorted_and_complete(name: str) -> None:
    """It has all that it imports: constants, classes, functions, as the linter sorts them."""
    face = importlib.import_module(name)
    imported = [
        alias.asname or alias.name
        for node in ast.walk(MODULES[face.__name__])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    imported.sort(key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert face.__all__ == imported


def test_flows_can_name_what_they_meet() -> None:
    errors = deployments.ChildError.__subclasses__()
    met: list[type] = [deployments.ChildError, *errors, deployments.RunInfo, deployments.ChildRun]
    assert {each.__name__ for each in met} <= set(deployments.__all__)
