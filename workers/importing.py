"""Imports of large packages in less time (docs/decisions.md, "What a worker imports")."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """A module that loads the real one when it is first asked for anything."""

    __file__ = None  # `inspect.getmodule`, which torch calls as it is imported, asks every module for its file

    def __getattr__(self, attribute: str) -> Any:
        _step_aside(self)
        return getattr(importlib.import_module(self.__name__), attribute)


@contextmanager
def imported_on_use(*names: str) -> Iterator[None]:
    """Within the block, `import` of these modules loads nothing: code gets the real module when it uses an attribute.
    Modules of `importlib.util.LazyLoader` load with any attribute, also `__file__` and `__spec__`, which Python
    reads."""
    stand_ins = [_StandIn(name) for name in names if name not in sys.modules]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in stand_ins})
    try:
        yield
    finally:
        for stand_in in stand_ins:
            _step_aside(stand_in)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block no garbage is collected; later collections skip what exists at its end (`gc.freeze`)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _step_aside(stand_in: _StandIn) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]
