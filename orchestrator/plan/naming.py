"""File names made from settings."""

from collections.abc import Iterable
from typing import Any

from taugrid.hashing import identity

LONGEST_NAME = 100
"""Most characters of a file name that may come from settings: file systems allow 255, and a list of times is long."""


def name_of(parts: Iterable[Any]) -> str:
    """`parts` as part of a file name, or a hash of them if that would be too long."""
    text = "-".join(map(str, parts))
    if len(text) > LONGEST_NAME:
        return identity({"parts": text})
    return "".join(character if character.isalnum() or character in "=.-_" else "_" for character in text)
