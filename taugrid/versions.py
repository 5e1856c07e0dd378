"""Versions of software, to be recorded with its results."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from taugrid import __version__


def versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of the distributions that are installed. taugrid may run from a checkout that isn't."""
    found = {}
    for name in names:
        try:
            found[name] = __version__ if name == "taugrid" else version(name)
        except PackageNotFoundError:
            continue
    return found
