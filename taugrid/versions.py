"""Versions of software, to be recorded with its results."""

from collections.abc import Iterable
from functools import cache
from importlib import metadata

from taugrid import __version__


def versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of the distributions that are installed. taugrid may run from a checkout that isn't."""
    found = {name: __version__ if name == "taugrid" else _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


@cache
def _version(name: str) -> str | None:
    """A distribution's version, whose metadata take milliseconds to parse; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
