"""Copies a user's modules into a folder from which they are imported under the same names, to send them to a cluster.

Exactly the files that `custom.source` found and hashed are copied, so that a worker that imports them finds the same
hash. Files that the code opens, and modules that it imports by a computed name, are not among them.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from taugrid.errors import UserError
from taugrid.hashing import SourceFile
from taugrid.words import quantity
from taugrid.workers.custom.source import is_user_file

MOST_BYTES = 50 * 10**6
"""Source code has less. Every node keeps a copy, and Ray's head keeps one in memory."""


def pack(files: Iterable[SourceFile], folder: Path) -> None:
    """Copy a user's source files into `folder`, each to where its module's name says. Installed packages stay behind.

    A file that is gone is left out: a worker that needs it will say so.

    Raises:
        UserError: if they are larger than `MOST_BYTES` together.
    """
    found = {file.module: Path(file.path) for file in files}
    own = {module: path for module, path in found.items() if is_user_file(path) and path.is_file()}
    sizes = {path: path.stat().st_size for path in own.values()}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"the modules that your config names take {quantity(sum(sizes.values()))} bytes, most of them {largest}, "
            f"but only {quantity(MOST_BYTES)} are sent to a cluster; install them on every node instead"
        )
    for module, path in own.items():
        *packages, name = module.split(".")
        is_package = path.name == "__init__.py"
        target = folder.joinpath(*packages, name, path.name) if is_package else folder.joinpath(*packages, path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
