"""The rules of docs/architecture.md about files, imports and names, checked on the text of the product code.

Each rule takes the root of a source tree and returns what breaks it, a line per finding.
"""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

import setuptools

FLOORS = ("taugrid", "configs", "workers/diffusion", "workers", "eval", "orchestrator")
"""Where the product code is, lowest first: a file imports from its own floor and from floors below."""

GROUND = ("taugrid", "configs")

DOORS = ("taugrid/__init__.py", "taugrid/api.py", "taugrid/__main__.py")
"""What people import or start. A door may load any floor once it is called."""

LOAD_TORCH = ("torch", "torchvision", "diffusers", "torch_fidelity", "safetensors.torch")
"""Modules that are torch or load it."""

HEAVY = (*LOAD_TORCH, "ray")

RAY_BELONGS = (
    "orchestrator/dispatch/",
    "orchestrator/jobs/",
    "workers/actor.py",
    "workers/ray_compat.py",
    "workers/training/",
)

POLICY = "orchestrator/dispatch/policy/"

POLICY_KNOWS = (f"{POLICY}", "orchestrator/task.py")
"""What the policy imports of the product code. It is told what happens and when, so that a test can tell it a story."""

SURROUNDINGS = ("time", "datetime", "random", "os", "pathlib", "threading", "ray")
"""Modules whose answers are no function of what they are asked."""

MOST_FILES = 13
"""Python files in a folder: a dozen, and `__init__.py`."""

NOT_SHIPPED = ("benchmarks", "docs", "tests", "tools")


When = Literal["imported", "called", "typed"]
"""At the import of the file, in a function, or by type checkers alone."""


class Import(NamedTuple):
    """That a file imports a module, or a name from one."""

    file: str
    """Relative to the root, as in `eval/actor.py`."""
    target: str
    """What is imported: a file of the product code, else the name of a module."""
    when: When

    @property
    def package(self) -> str:
        return self.target.split(".")[0]

    def is_of(self, modules: tuple[str, ...]) -> bool:
        """The target is one of `modules` or inside of one."""
        return any(f"{self.target}.".startswith(f"{module}.") for module in modules)

    def __str__(self) -> str:
        return f"{self.file} -> {self.target}"


def files(root: Path) -> list[str]:
    """Every Python file of the product code, relative to `root`."""
    rooms = {floor.split("/")[0] for floor in FLOORS}
    return sorted(path.relative_to(root).as_posix() for room in rooms for path in (root / room).rglob("*.py"))


def module_of(file: str) -> str:
    """`eval/actor.py` is imported as `taugrid.eval.actor`."""
    parts = Path(file).with_suffix("").parts
    parts = parts if parts[0] == "taugrid" else ("taugrid", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path) -> list[Import]:
    """Every import of one file of the product code after the other, wherever in the file it stands."""
    paths = {module_of(file): file for file in files(root)}
    found = []
    for file in paths.values():
        package = module_of(file) if file.endswith("__init__.py") else module_of(file).rpartition(".")[0]
        for node, when in _import_statements((root / file).read_text()):
            for name in _names(node, package, paths):
                found.append(Import(file, paths.get(name, name), when))
    return found


@cache
def _import_statements(text: str) -> list[tuple[ast.Import | ast.ImportFrom, When]]:
    """Those of a file; most rules ask for the same files."""
    return list(_statements(ast.parse(text), "imported"))


def _statements(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, "called")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _statements(child, "typed")
        else:
            yield from _statements(child, when)


def _names(node: ast.Import | ast.ImportFrom, package: str, paths: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1]] if node.level else [])
    module = ".".join(filter(None, (base, node.module)))
    for alias in node.names:
        name = f"{module}.{alias.name}"
        yield name if name in paths else module


def floor(file: str) -> int:
    """The index in FLOORS of the floor that `file` is on; the ground floor's folders count as one."""
    at = max((name for name in FLOORS if file.startswith(f"{name}/")), key=len)
    return 0 if at in GROUND else FLOORS.index(at)


def climbing_imports(root: Path) -> list[str]:
    """Imports of a higher floor. A door may, when it is called; `__main__` is nothing but a call."""
    there = set(files(root))
    return [
        str(found)
        for found in imports(root)
        if found.target in there
        and floor(found.target) > floor(found.file)
        and not (found.file in DOORS and (found.when != "imported" or found.file.endswith("__main__.py")))
    ]


def cycles(root: Path) -> list[str]:
    """The first cycle of files that import each other, if any, whenever they do; the doors aside."""
    return _cycle(root, lambda file: file)


def cycles_of_folders(root: Path) -> list[str]:
    """The first cycle of folders that import each other, if any, as for files.

    A folder is one directly in a room, with all below it. A file directly in a room stands for itself.
    """
    return _cycle(root, lambda file: "/".join(file.split("/")[:2]))


def _cycle(root: Path, part: Callable[[str], str]) -> list[str]:
    """The first cycle among the parts that files belong to."""
    there = set(files(root)) - set(DOORS)
    graph: dict[str, set[str]] = {part(file): set() for file in sorted(there)}
    for found in imports(root):
        if found.file in there and found.target in there and part(found.target) != part(found.file):
            graph[part(found.file)].add(part(found.target))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def heavy_imports(root: Path) -> list[str]:
    """Imports of HEAVY packages on the ground floor, of torch by the driver at import, of ray where it has no place."""
    found = []
    for each in imports(root):
        on_the_ground = each.file.split("/")[0] in GROUND and each.is_of(HEAVY)
        by_the_driver = each.file.startswith("orchestrator/") and each.is_of(LOAD_TORCH) and each.when == "imported"
        misplaced = each.package == "ray" and not each.file.startswith(RAY_BELONGS)
        if on_the_ground or by_the_driver or misplaced:
            found.append(str(each))
    return sorted(set(found))


def impure_policy(root: Path) -> list[str]:
    """Imports by the scheduling policy of a clock, files, Ray, or product code other than tasks."""
    return [
        str(each)
        for each in imports(root)
        if each.file.startswith(POLICY)
        and (each.package in SURROUNDINGS or ("/" in each.target and not each.target.startswith(POLICY_KNOWS)))
    ]


def driver_imports_of_torch(root: Path) -> list[str]:
    """Chains of imports that load torch when a file of the orchestrator is imported."""
    nexts: dict[str, list[str]] = defaultdict(list)
    for each in imports(root):
        if each.when == "imported":
            nexts[each.file].append("torch" if each.is_of(LOAD_TORCH) else each.target)
    found = []
    for start in (file for file in files(root) if file.startswith("orchestrator/")):
        came_from = {start: ""}
        waiting = [start]
        for at in waiting:
            for following in nexts[at]:
                if following not in came_from:
                    came_from[following] = at
                    waiting.append(following)
        if "torch" in came_from:
            chain = ["torch"]
            while came_from[chain[-1]]:
                chain.append(came_from[chain[-1]])
            found.append(" -> ".join(reversed(chain)))
    return found


def repeated_classes(root: Path) -> list[str]:
    """Names of classes and of types that more than one place defines."""
    where: dict[str, list[str]] = defaultdict(list)
    for file in files(root):
        tree = ast.parse((root / file).read_text())
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for name in (*names, *_aliases(tree)):
            where[name].append(file)
    return [f"{name}: {', '.join(places)}" for name, places in sorted(where.items()) if len(places) > 1]


def _aliases(tree: ast.Module) -> Iterator[str]:
    """Names in CamelCase that are assigned at the top of a file: types under another name."""
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and re.fullmatch("[A-Z]+[a-z0-9]+[A-Za-z0-9]*", target.id):
                yield target.id


def crowded_folders(root: Path) -> list[str]:
    """Folders of more than MOST_FILES Python files."""
    count: dict[str, int] = defaultdict(int)
    for file in files(root):
        count[file.rpartition("/")[0]] += 1
    return [f"{folder}: {number} files" for folder, number in sorted(count.items()) if number > MOST_FILES]


def packages_of_the_wheel(root: Path) -> list[str]:
    """The packages that setuptools finds as `root`'s pyproject.toml says."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    return setuptools.find_packages(str(root), **settings["tool"]["setuptools"]["packages"]["find"])


def misplaced_packages(root: Path) -> list[str]:
    """Packages of the wheel that are not `taugrid`'s or not to be shipped, and folders of code that it leaves out."""
    packages = set(packages_of_the_wheel(root))
    folders = {module_of(f"{Path(file).parent}/__init__.py") for file in files(root)}
    stray = {name for name in packages if name.split(".")[0] != "taugrid" or set(name.split(".")) & set(NOT_SHIPPED)}
    return [f"{name} is shipped" for name in sorted(stray)] + [
        f"{name} is left out" for name in sorted(folders - packages)
    ]
