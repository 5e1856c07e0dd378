"""File names made from settings."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from taugrid.hashing import identity
from taugrid.registry.samplers import DEFAULT
from taugrid.workers.samplers.sampler import find

LONGEST_NAME = 100
"""Most characters of a file name that may come from settings: file systems allow 255, and a list of times is long."""


def settings_name(settings: Mapping[str, Any]) -> str:
    """The beginning of a cell's folder name and label: S0010-eta0.2, S0010-sigma_hat, or S0010-<another sampler>."""
    label = find(settings.get("sampler", DEFAULT)).label(settings)
    return f"S{settings['steps']:04d}-{re.sub(r'[^A-Za-z0-9.+_-]', '_', label)}"


def name_of(parts: Iterable[Any]) -> str:
    """`parts` as part of a file name, or a hash of them if that would be too long."""
    text = "-".join(map(str, parts))
    if len(text) > LONGEST_NAME:
        return identity({"parts": text})
    return "".join(character if character.isalnum() or character in "=.-_" else "_" for character in text)
