"""The kinds of work, by file: what is missing on disk, how a worker makes it, and what it leads to."""

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taugrid.orchestrator.work.kind import WorkKind


def work_kinds() -> tuple[type["WorkKind"], ...]:
    """Every kind of work, in the order of priority: the subclasses of `WorkKind` in the modules of this folder."""
    from taugrid.orchestrator.work.kind import WorkKind

    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    kinds = (kind for kind in found if issubclass(kind, WorkKind) and not isabstract(kind))
    return tuple(sorted(kinds, key=lambda kind: (kind.priority, kind.name)))


def kinds_by_name() -> dict[str, type["WorkKind"]]:
    """Every kind of work by its name, in the order of priority."""
    return {kind.name: kind for kind in work_kinds()}
