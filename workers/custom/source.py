"""What identifies a user's code: SHA-256 of its source files, of the files that it loaded, and of its tensors.

These hashes name runs, so the hashed bytes must never change.
"""

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

import torch

from taugrid.errors import CustomCodeError
from taugrid.workers.custom.find import find_module

NOT_USER_PACKAGES = {*sys.stdlib_module_names, "taugrid", "torch", "torch_fidelity"}
"""Top-level packages whose source is not part of an identity."""

NOT_USER_FOLDERS = [
    Path(sysconfig.get_path("stdlib")),
    *(Path(__file__).parents[2] / room for room in ("configs", "eval", "orchestrator", "taugrid", "workers")),
]
"""Where such packages are, so that they are recognised under any module name."""


def source_sha256(modules: Iterable[str]) -> str:
    """SHA-256 over the names and source files of `modules`, which are imported, and of all user modules they import.

    Import statements are followed wherever they stand in a file, so that every process finds the same ones. They are
    followed into user code, but not into Python's modules, installed packages or taugrid. An import by a computed name
    is not seen.

    Raises:
        CustomCodeError: if one of `modules` can't be found, or has no file.
    """
    waiting = {name: _file_of(name) for name in modules}
    sources: dict[str, bytes] = {}
    while waiting:
        name, path = waiting.popitem()
        sources[name] = path.read_bytes()
        if _is_user_file(path) and path.suffix == ".py":
            waiting |= {
                other: file for other in _imports(name, path) if other not in sources and (file := _user_file(other))
            }
    return _digest(sources.items())


def content_sha256(source: str, tensors: str) -> str:
    """SHA-256 of a `source_sha256`, every user file that this process has loaded so far, and a `tensors_sha256`."""
    return hashlib.sha256(f"{source} {_loaded_sha256()} {tensors}".encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, object]) -> str:
    """SHA-256 over the names, dtypes, shapes and values of the tensors in a mapping such as a `state_dict()`."""
    return _digest(_contents(tensors))


def _contents(tensors: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            values = tensor.detach().cpu().flatten().view(torch.uint8).numpy()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}", values.tobytes()


def _digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over lines of a name and the SHA-256 of its content, sorted by name."""
    lines = sorted(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_of(module: str) -> Path:
    file = getattr(find_module(module), "__file__", None)
    if file is None:
        raise CustomCodeError(f"the module {module} has no source file that could identify it")
    return Path(file)


def _imports(name: str, path: Path) -> set[str]:
    """The module `name`, the modules that its source file imports, and the packages that contain them.

    For `from a import b` these are a and a.b: b may be a module or a name in one.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = {name}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:i]) for parts in (one.split(".") for one in found) for i in range(1, len(parts) + 1)}


def _user_file(name: str) -> Path | None:
    """The source file of a user's module; None for any other or a missing module. Imports nothing."""
    top, *parts = name.split(".")
    if not top or top in NOT_USER_PACKAGES or top == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module made by hand has no spec
        return None
    for i in range(len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *parts[: i + 1]]), spec.submodule_search_locations)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin) if _is_user_file(Path(spec.origin)) else None


def _is_user_file(path: Path) -> bool:
    """Whether a file belongs to neither Python, an installed package nor taugrid."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not installed and not any(map(path.is_relative_to, NOT_USER_FOLDERS))


def _loaded_sha256() -> str:
    """SHA-256 of the files of all user modules that this process has loaded so far, by any name or means."""
    files = {name: Path(file) for name, module in sys.modules.items() if (file := getattr(module, "__file__", None))}
    users = {name: path for name, path in files.items() if _is_user_file(path) and path.is_file()}
    return _digest((name, path.read_bytes()) for name, path in users.items())
