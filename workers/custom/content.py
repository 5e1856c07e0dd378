"""What identifies what a user's code has loaded: SHA-256 of the files of its modules, and of its tensors.

These hashes name runs, so the hashed bytes must never change.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import torch

from taugrid.workers.custom.source import SourceCode, digest, is_user_file
from taugrid.workers.custom.syntax import without_comments


def content_sha256(source: SourceCode, tensors: str) -> str:
    """SHA-256 of a source, every user file that this process has loaded so far, and a `tensors_sha256`."""
    return _sha256(source.sha256, _loaded_sha256(without_comments), tensors)


def content_sha256_by_bytes(source: SourceCode, tensors: str) -> str:
    """The same as it was before comments were cut out, for runs with ids of that time."""
    return _sha256(source.by_bytes, _loaded_sha256(bytes), tensors)


def tensors_sha256(tensors: Mapping[str, object]) -> str:
    """SHA-256 over the names, dtypes, shapes and values of the tensors in a mapping such as a `state_dict()`."""
    return digest(_contents(tensors))


def _sha256(source: str, loaded: str, tensors: str) -> str:
    return hashlib.sha256(f"{source} {loaded} {tensors}".encode()).hexdigest()


def _contents(tensors: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            values = tensor.detach().cpu().flatten().view(torch.uint8).numpy()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}", values.tobytes()


def _loaded_sha256(content: Callable[[bytes], bytes]) -> str:
    """SHA-256 of the files of all user modules that this process has loaded so far, by any name or means."""
    files = {name: file for name, module in sys.modules.items() if (file := getattr(module, "__file__", None))}
    users = {name: Path(file) for name, file in files.items() if _is_users(file)}
    return digest((name, content(path.read_bytes())) for name, path in users.items() if path.is_file())


@cache
def _is_users(file: str) -> bool:
    return is_user_file(Path(file))
