"""The rules of docs/architecture.md that import-linter has no words for (its contracts are in pyproject.toml), and what
documents name."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import grimp
import mutants
import pytest
import setuptools

ROOT = Path(__file__).parents[2]
ROOMS = ("taugrid", "workers", "eval", "orchestrator")
FILES = sorted(path.relative_to(ROOT) for room in (*ROOMS, "configs") for path in (ROOT / room).rglob("*.py"))
TREES = {file: ast.parse((ROOT / file).read_text()) for file in FILES}
CLASSES = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))

POLICY = "taugrid.orchestrator.dispatch.policy"
POLICY_KNOWS = {"taugrid.orchestrator.task", "collections", "dataclasses", "enum", "heapq", "itertools", "typing"}
"""It is told what happens and when, so that a test can tell it a story: no clock, no files, no Ray."""

MOST_FILES = 16
"""Python files in a folder."""


def said(page):
    return (ROOT / "docs" / page).read_text()


def test_the_policy_asks_nothing_of_its_surroundings():
    graph = grimp.build_graph("taugrid", include_external_packages=True, cache_dir=None)
    modules = {POLICY, *graph.find_descendants(POLICY)}
    assert set.union(*map(graph.find_modules_directly_imported_by, modules)) - modules == POLICY_KNOWS


@pytest.mark.long
def test_no_file_of_the_driver_loads_torch_when_it_is_imported():
    """But for `in_memory`, which samples in the caller's process."""
    code = (
        "import importlib, pkgutil, sys, taugrid.orchestrator as driver\n"
        "names = [m.name for m in pkgutil.walk_packages(driver.__path__, driver.__name__ + '.')]\n"
        "kept = [name for name in names if not name.endswith(('__main__', '.in_memory'))]\n"
        "for name in kept: importlib.import_module(name)\n"
        "assert len(names) > 100\n"
        "sys.exit(' '.join({'torch', 'torchvision', 'diffusers', 'torch_fidelity'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_or_type_has_a_name_of_its_own():
    names = CLASSES.copy()
    for node in (node for tree in TREES.values() for node in tree.body):
        targets = {ast.Assign: lambda n: n.targets, ast.AnnAssign: lambda n: [n.target]}.get(type(node), lambda n: [])
        names.update(t.id for t in targets(node) if isinstance(t, ast.Name) and re.fullmatch("[A-Z]+[a-z]\\w+", t.id))
    assert [name for name, count in names.items() if count > 1] == []


def imported_by(file):
    """The top modules that a file imports, also by name: `import_module("benchmarks.x")`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"benchmarks(\.\w+)+", str(node.value)):
            yield "benchmarks"


def test_tests_import_no_benchmarks_and_neither_benchmarks_nor_tools_import_tests():
    """What both need is in tools/."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [file for file in tests if "benchmarks" in imported_by(file)] == []
    modules = {"tests", *(file.stem for file in tests)} - {"conftest"}
    others = [file for folder in ("benchmarks", "tools") for file in (ROOT / folder).rglob("*.py")]
    assert len(others) > 20
    assert [file for file in others if modules.intersection(imported_by(file))] == []


def test_no_folder_is_crowded():
    assert {folder for folder, count in Counter(file.parent for file in FILES).items() if count > MOST_FILES} == set()


def test_the_wheel_has_the_packages_of_the_rooms_and_no_others():
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    folders = {".".join(file.parent.parts) for file in FILES}
    folders = {name if name.split(".")[0] == "taugrid" else f"taugrid.{name}" for name in folders}
    assert set(setuptools.find_packages(str(ROOT), **find)) == folders


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_no_file_has_the_markers_of_a_conflict():
    found = subprocess.run(["git", "grep", "-lE", "^(<{7}|>{7}) "], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr


def test_the_files_folders_and_classes_that_the_map_names_exist():
    text = said("architecture.md")
    tests = [path.relative_to(ROOT) for path in ROOT.glob("tests/unit/*.py")]
    folders = {folder for file in FILES for folder in file.parents} | {Path(path.name) for path in ROOT.iterdir()}
    there = [path.as_posix() for path in (*FILES, *tests)] + [f"{folder}/" for folder in folders]
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    assert len(named) > 60
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)] == []
    classes = set(re.findall(r"`([A-Z][a-z]\w+)`", text))
    assert len(classes) > 10
    assert classes - CLASSES.keys() == set()


def test_the_tests_that_failures_and_defects_name_exist():
    named = set(re.findall(r"`(test_\w+\.py)`", said("failures.md")))
    assert len(named) > 30
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    rows = re.findall(r"^\| (\d+) \| .* \| (`test_.*`) \|$", said("decisions.md"), re.M)
    assert [int(number) for number, _ in rows] == [*range(1, 9), *range(10, 20)], "9 went with CUDA graphs"
    for number, names in rows:
        for name in re.findall(r"`(test_\w+\.py)`", names):
            assert re.search(rf"\bdefect {number}\b", (ROOT / "tests/unit" / name).read_text(), re.I), (number, name)


def test_the_mutants_fit_the_code():
    listed = mutants.read(mutants.LIST.read_text())
    assert [reason for mutant in listed if (reason := mutants.misfit(ROOT, mutant))] == []
