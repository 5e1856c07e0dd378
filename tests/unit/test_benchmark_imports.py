"""Benchmarks import names that exist: no other test runs them, and what they measure moves."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def imported(text):
    """Module and name of what a file imports from taugrid, in functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "taugrid":
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module, name):
    found = import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_a_benchmark_imports_is_there(path):
    assert [name for name in imported(path.read_text()) if not is_there(*name)] == []


def test_what_has_moved_is_found():
    moved = "def main():\n    from taugrid.jobs import Result, Moved"
    assert [name for name in imported(moved) if not is_there(*name)] == [("taugrid.jobs", "Moved")]
