"""Versions of software, as they are recorded with what it made."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from taugrid import __version__


def versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those distributions that are installed. taugrid may be a checkout that is not."""
    found = {}
    for name in names:
        try:
            found[name] = __version__ if name == "taugrid" else version(name)
        except PackageNotFoundError:
            continue
    return found
