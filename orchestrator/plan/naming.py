"""File names made from settings."""

from collections.abc import Iterable
from typing import Any

from taugrid.hashing import identity

LONGEST_NAME = 100
"""Most characters of a file name that may come from settings: file systems allow 255, and a list of times is long."""


def settings_name(steps: int, eta: float | str) -> str:
    """The beginning of a cell's folder name and label: S0010-eta0.2, or S0010-sigma_hat."""
    return f"S{steps:04d}-{eta if eta == 'sigma_hat' else f'eta{eta:g}'}"


def name_of(parts: Iterable[Any]) -> str:
    """`parts` as part of a file name, or a hash of them if that would be too long."""
    text = "-".join(map(str, parts))
    if len(text) > LONGEST_NAME:
        return identity({"parts": text})
    return "".join(character if character.isalnum() or character in "=.-_" else "_" for character in text)
