"""A user's source files: which they are, the SHA-256 that identifies them, and a copy of them for other machines.

Imports neither that code nor torch with this module. The hashes name runs, so the hashed bytes must never change.
"""

import ast
import hashlib
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import taugrid
from taugrid.errors import CustomCodeError
from taugrid.hashing import SourceFile, file_sha256
from taugrid.workers.content import require_same
from taugrid.workers.custom.syntax import parsed, without_comments

NOT_USER_PACKAGES = {*sys.stdlib_module_names, "taugrid", "torch", "torch_fidelity"}
"""Top-level packages whose source is not part of an identity."""

PACKAGE = Path(taugrid.__file__).parent

NOT_USER_FOLDERS = [
    Path(sysconfig.get_path("stdlib")),
    PACKAGE,
    *((PACKAGE / room).resolve() for room in ("configs", "eval", "orchestrator", "workers")),  # links in a checkout
]
"""Where such packages are, so that they are recognised under any module name."""


@dataclass(frozen=True)
class SourceCode:
    """The source files of some modules and of all user modules that they import."""

    contents: dict[str, tuple[Path, bytes]]  # module -> its file and the bytes of it

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the names of the modules and their source without comments and docstrings."""
        return digest((name, without_comments(content)) for name, (_, content) in self.contents.items())

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Each module with its file and what `sha256` is a hash of, sorted."""
        files = ((name, path, without_comments(content)) for name, (path, content) in self.contents.items())
        return tuple(
            sorted(SourceFile(name, str(path), hashlib.sha256(text).hexdigest()) for name, path, text in files)
        )

    def require(self, sha256: str, files: Iterable[SourceFile], subject: str) -> None:
        """Raise `WorkerRefusal`, naming the file that differs, unless this is the planned source."""
        if sha256 != self.sha256:
            planned = {file.module: file.sha256 for file in files}
            changed = [file for file in self.files if planned.get(file.module, file.sha256) != file.sha256]
            differing = "; ".join(f"{file.path} differs" for file in changed)
            require_same(f"the source code of {subject}{differing and f' ({differing})'}", self.sha256, sha256)


def source_of(modules: Iterable[str]) -> SourceCode:
    """The source files of `modules` and of all user modules that they import.

    Import statements are followed wherever they stand in a file, so that every process finds the same ones. They are
    followed into user code, but not into Python's modules, installed packages or taugrid. An import by a computed name
    is not detected. `CustomCodeError` if one of `modules` can't be found, or has no file."""
    waiting = {name: _file_of(name) for name in modules}
    contents: dict[str, tuple[Path, bytes]] = {}
    while waiting:
        name, path = waiting.popitem()
        contents[name] = path, path.read_bytes()
        if is_user_file(path) and path.suffix == ".py":
            imported = _imports(name, path, contents[name][1])
            waiting |= {other: file for other in imported if other not in contents and (file := _user_file(other))}
    return SourceCode(contents)


def digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over lines of a name and the SHA-256 of its content, sorted by name."""
    lines = sorted(f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def is_user_file(path: Path) -> bool:
    """Whether a file belongs to neither Python, an installed package nor taugrid."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not installed and not any(map(path.is_relative_to, NOT_USER_FOLDERS))


def content_sha256(source: SourceCode, tensors: str) -> str:
    """SHA-256 of a source, every user file that this process has loaded by any means, and a `tensors_sha256`."""
    files = {name: file for name, module in sys.modules.items() if (file := getattr(module, "__file__", None))}
    users = {name: path for name, file in files.items() if is_user_file(path := Path(file)) and path.is_file()}
    loaded = digest((name, without_comments(path.read_bytes())) for name, path in users.items())
    return hashlib.sha256(f"{source.sha256} {loaded} {tensors}".encode()).hexdigest()


def identity_of_code(source: SourceCode, tensors: str, weights: str | None) -> dict[str, Any]:
    """The fields of a description of user code that identify it. `tensors` is a `tensors_sha256`, `weights` a path."""
    return {
        "weights_sha256": content_sha256(source, tensors) if weights is None else file_sha256(Path(weights)),
        "source_sha256": source.sha256,
        "tensors_sha256": tensors,
        "files": source.files,
    }


def tensors_sha256(tensors: Mapping[str, object]) -> str:
    """SHA-256 over the names, dtypes, shapes and values of the tensors in a mapping such as a `state_dict()`."""
    import torch

    def contents() -> Iterator[tuple[str, bytes]]:
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                values = tensor.detach().cpu().flatten().view(torch.uint8).numpy()
                yield f"{name} {tensor.dtype} {tuple(tensor.shape)}", values.tobytes()

    return digest(contents())


def _file_of(module: str) -> Path:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None and (spec := _spec(module)) is not None and spec.has_location:
        file = spec.origin
    if file is None:
        raise CustomCodeError(f"the module {module} has no source file that could identify it")
    return Path(file)


def _imports(name: str, path: Path, content: bytes) -> set[str]:
    """The module `name`, the modules that its source file imports, and the packages that contain them. For `from a
    import b` these are a and a.b: b may be a module or a name in one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = parsed(content)
    modules = {name}
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            modules |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {".".join(parts[:i]) for parts in (one.split(".") for one in modules) for i in range(1, len(parts) + 1)}


def _user_file(name: str) -> Path | None:
    """The source file of a user's module; None for any other or a missing module."""
    top = name.partition(".")[0]
    if not top or top in NOT_USER_PACKAGES or top == "__main__":
        return None
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin) if is_user_file(Path(spec.origin)) else None


def _spec(name: str) -> ModuleSpec | None:
    """The spec from which Python would import a module; None if there is no such module. Imports nothing."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module made by hand has no spec
        return None
    for i in range(len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *parts[: i + 1]]), spec.submodule_search_locations)
    return spec


@dataclass(frozen=True)
class Found:
    sha256: str | None  # `SourceCode.sha256`; None if there is no such module, or it has no file
    files: tuple[SourceFile, ...] = ()  # the files that `sha256` covers


def find_source(module: str) -> Found:
    """A module's source, for another process to ask for (`custom.describe.ask`). Imports nothing."""
    try:
        source = source_of([module])
        return Found(source.sha256, source.files)
    except (CustomCodeError, OSError):
        return Found(None)


def pack(files: Iterable[SourceFile], folder: Path) -> None:
    """Copy a user's source files into `folder`, each to where its module's name says, to send them to a cluster.

    Workers import them under the same names and find the same hash. Installed packages stay behind, as do files that
    the code opens and modules that it imports by a computed name. A file that is gone is left out: a worker that needs
    it will say so."""
    for module, path in ((file.module, Path(file.path)) for file in files):
        if not is_user_file(path) or not path.is_file():
            continue
        *packages, name = module.split(".")
        is_package = path.name == "__init__.py"
        target = folder.joinpath(*packages, name, path.name) if is_package else folder.joinpath(*packages, path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
