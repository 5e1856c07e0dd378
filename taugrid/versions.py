"""Versions of software, to be recorded with its results, and whether the installed torch is built for GPUs."""

import runpy
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from taugrid import __version__


def versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of the distributions that are installed. taugrid may run from a checkout that isn't."""
    by_name = {name: __version__ if name == "taugrid" else _version(name) for name in names}
    return {name: version for name, version in by_name.items() if version is not None}


@cache
def _version(name: str) -> str | None:
    """A distribution's version, whose metadata take milliseconds to parse; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torch_is_for_gpus() -> bool:
    """Whether torch here is built for CUDA or ROCm, from its file of versions: importing torch takes seconds."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    values = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    return values.get("cuda") is not None or values.get("hip") is not None
