"""The house rules, read from the source: what imports what, how long things are, what is where."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bertkit
from bertkit import errors

PACKAGE = Path(bertkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Rooms from the top of the house to the bottom; a room imports only from lower lines. Rooms on one
# line are siblings: they never import each other. "bertkit" is bertkit/__init__.py.
ORDER = """
__main__
cli | demo
verbs
bertkit
serve
explain
train
infer
tasks
model | data | text
checkpoint
batch
settings | runtime
errors
"""
LEVELS = {
    room.strip(): -level
    for level, line in enumerate(ORDER.strip().splitlines())
    for room in line.split("|")
}
# About 400 lines is the guide; the whole encoder in one file is worth a few more.
LONGEST_MODULE, LONGEST_FUNCTION = 500, 60


def dotted(path: Path) -> str:
    """bertkit/text/corpus.py -> bertkit.text.corpus; a package's __init__ is the package."""
    parts = ["bertkit", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "bertkit"


NAMES = {dotted(path): path for path in MODULES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in NAMES.items()}


def imports(name: str, tree: ast.Module) -> set[str]:
    """Every module of the package that `name` imports, anywhere in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in NAMES else base)
    return {module for module in found if module.split(".")[0] == "bertkit"}


IMPORTS = {name: imports(name, tree) for name, tree in TREES.items()}


def arrows_that_run_up(imported: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} imports {other}"
        for name, others in sorted(imported.items())
        for other in sorted(others)
        if room(name) != room(other) and LEVELS[room(name)] <= LEVELS[room(other)]
    ]


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in NAMES} <= set(LEVELS)


def test_imports_point_down_only() -> None:
    # The front door is lazy: its imports stand under TYPE_CHECKING and in a table of names, so that
    # every room below may be shown by it and none may import it but for the version.
    inside = {name: others - {"bertkit"} for name, others in IMPORTS.items()}
    assert arrows_that_run_up(inside) == []


def test_the_check_itself_sees_bad_arrows() -> None:
    bad = {"bertkit.model.bert": {"bertkit.data.loader"}, "bertkit.errors": {"bertkit.batch"}}
    assert arrows_that_run_up(bad) == [
        "bertkit.errors imports bertkit.batch",
        "bertkit.model.bert imports bertkit.data.loader",
    ]


def test_no_import_cycles() -> None:
    graph = {name: others - {"bertkit", name} for name, others in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_no_module_without_a_purpose_in_its_name() -> None:
    nameless = re.compile(r"(utils?|helpers?|common|misc|tools)$")
    assert [name for name in NAMES if nameless.search(name)] == []


def test_folders_are_two_levels_deep_at_most() -> None:
    assert [name for name in NAMES if name.count(".") > 2] == []


def test_no_module_is_empty() -> None:
    """A package's __init__ may hold a docstring alone; a module holds code."""
    for name, tree in TREES.items():
        assert ast.get_docstring(tree), f"{name} has no docstring"
        if NAMES[name].name != "__init__.py":
            assert len(tree.body) > 1, f"{name} is empty"


def test_modules_and_functions_are_short() -> None:
    too_long = [
        f"{name}: {lines} lines"
        for name, path in NAMES.items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_MODULE
    ]
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    too_long.append(f"{name}.{node.name}: {lines} lines")
    assert too_long == []


def test_every_room_has_tests_beside_it() -> None:
    """tests/ mirrors the package: a folder of modules has a folder of tests."""
    folders = {path.parent.name for path in MODULES if path.parent != PACKAGE}
    here = Path(__file__).parent
    rooms = {name for name in folders if any((PACKAGE / name).glob("[!_]*.py"))}
    assert {name for name in rooms if not any((here / name).glob("test_*.py"))} == set()


def test_the_drawn_error_tree_is_the_error_tree() -> None:
    assert errors.__doc__ is not None
    drawn: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"((?:\|   |\|-- |`-- |    )*)(\w+Error)\b", line):
            drawn.append((len(match[1]) // 4, match[2]))
    parents: dict[str, str] = {}
    above: list[str] = []
    for depth, name in drawn:
        above[depth:] = [name]
        parents[name] = above[depth - 1] if depth else "ValueError"
    real = {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and cls.__module__ == errors.__name__
    }
    assert parents == real
