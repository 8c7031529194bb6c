"""The arrows of imports point down: flows -> `deployments` -> its runtime, never in a circle."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import deployments
import deployments.runtime

ENGINE = Path(deployments.__file__).parent
RUNTIME = "deployments.runtime"
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


def is_in(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = graphlib.TopologicalSorter[str]()
    for module, other in ARROWS:
        graph.add(module, other)
    graph.prepare()  # raises a CycleError, which names them


def test_the_runtime_knows_nothing_around_it() -> None:
    up = [
        (module, other)
        for module, other in ARROWS
        if is_in(module, RUNTIME)
        and is_in(other, "deployments", *OUTSIDE)
        and not is_in(other, RUNTIME)
    ]
    assert up == []


def test_the_runtime_has_one_door() -> None:
    past_it = [
        (module, other)
        for module, other in ARROWS
        if not is_in(module, RUNTIME) and is_in(other, RUNTIME) and other != RUNTIME
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


@pytest.mark.parametrize("face", [deployments, deployments.runtime])
def test_a_face_is_sorted_and_complete(face: ModuleType) -> None:
    """It has all that it imports: constants, classes, functions, as the linter sorts them."""
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
    assert (
        {each.__name__ for each in met}
        <= set(deployments.__all__)
        <= set(deployments.runtime.__all__)
    )
