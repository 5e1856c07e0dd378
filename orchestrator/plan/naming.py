"""Names of files made of settings."""

from collections.abc import Iterable
from typing import Any

from taugrid.hashing import identity

LONGEST_NAME = 100
"""Characters of a figure's name that are made of settings: file systems end at 255, and a list of times can be long."""


def name_of(parts: Iterable[Any]) -> str:
    """`parts` as part of a file's name, or a hash of them where that would be too long for one."""
    text = "-".join(map(str, parts))
    if len(text) > LONGEST_NAME:
        return identity({"parts": text})
    return "".join(character if character.isalnum() or character in "=.-_" else "_" for character in text)
