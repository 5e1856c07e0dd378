"""Finds what a user names by an import string."""

import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from taugrid.errors import CustomCodeError


def find_module(name: str) -> ModuleType:
    """The module of that name, imported. Errors that the module itself raises pass through.

    Raises:
        CustomCodeError: if there is no such module.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports is missing
        raise CustomCodeError(
            f"there is no module {error.name!r}, neither in the current folder {Path.cwd()} nor on Python's path"
        ) from None


def find(name: str) -> Any:
    """What `package.module:attribute` names.

    Raises:
        CustomCodeError: if there is no such module or attribute.
    """
    module_name, _, attribute = name.partition(":")
    module = find_module(module_name)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise CustomCodeError(f"the module {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)
