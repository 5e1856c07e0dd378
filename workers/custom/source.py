"""What one's own code is known by: SHA-256 of its source files, of the files it had loaded, and of tensors.

Shared by extractors (eval/features/custom.py) and networks (workers/network/custom.py) that a config names.
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

NOT_ONES_OWN = {*sys.stdlib_module_names, "taugrid", "torch", "torch_fidelity"}
"""Packages that are no part of an identity."""

NOT_ONES_OWN_FOLDERS = [
    Path(sysconfig.get_path("stdlib")),
    *(Path(__file__).parents[2] / room for room in ("configs", "eval", "orchestrator", "taugrid", "workers")),
]
"""Where those lie, so that modules loaded by any name are told apart."""


def source_sha256(modules: Mapping[str, Path]) -> str:
    """SHA-256 over the names and source files of `modules`, and of all that these import.

    Imports are followed as they are written in the files, wherever in them, so that every process finds the same: into
    one's own modules, not into Python's, installed packages or taugrid. What is imported by a computed name is not
    seen.
    """
    waiting = dict(modules)
    sources: dict[str, bytes] = {}
    while waiting:
        name, path = waiting.popitem()
        sources[name] = path.read_bytes()
        if _is_ones_own(path) and path.suffix == ".py":
            waiting |= {
                other: file for other in _imports(name, path) if other not in sources and (file := _file(other))
            }
    return _digest(sources.items())


def content_sha256(source: str, tensors: str) -> str:
    """Of a `source_sha256`, every file of one's own that this process has loaded by now, and a `tensors_sha256`."""
    return hashlib.sha256(f"{source} {_loaded_sha256()} {tensors}".encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, object]) -> str:
    """SHA-256 over names, dtypes, shapes and values of what is a tensor in `tensors`, such as a `state_dict()`."""
    return _digest(_contents(tensors))


def _contents(tensors: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            values = tensor.detach().cpu().flatten().view(torch.uint8).numpy()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}", values.tobytes()


def _digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names and the SHA-256 of what they name, sorted by name."""
    lines = sorted(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _imports(name: str, path: Path) -> set[str]:
    """The modules that the source file of the module `name` imports, with the packages that hold them and itself.

    What may be a module or a name in one is given too: `from a import b` gives a and a.b.
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


def _file(name: str) -> Path | None:
    """The source file of a module of one's own; None for any other, and for what is no module. Imports nothing."""
    top, *parts = name.split(".")
    if not top or top in NOT_ONES_OWN or top == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand, of no file
        return None
    for i in range(len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *parts[: i + 1]]), spec.submodule_search_locations)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin) if _is_ones_own(Path(spec.origin)) else None


def _is_ones_own(path: Path) -> bool:
    """Whether a file is neither Python's nor an installed package's nor taugrid's."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not installed and not any(map(path.is_relative_to, NOT_ONES_OWN_FOLDERS))


def _loaded_sha256() -> str:
    """Of the files of one's own modules that this process has loaded by now, by whatever name or means."""
    files = {name: Path(file) for name, module in sys.modules.items() if (file := getattr(module, "__file__", None))}
    own = {name: path for name, path in files.items() if _is_ones_own(path) and path.is_file()}
    return _digest((name, path.read_bytes()) for name, path in own.items())
