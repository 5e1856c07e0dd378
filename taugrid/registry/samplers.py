"""The samplers that a config can name: built-ins, and those of installed packages (the entry-point group `GROUP`).

A new sampler is one file in workers/samplers/ with a line in `SAMPLERS`, or a package with an entry point.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "taugrid.samplers"
"""An entry's name is the value of `sample.sampler`; it is a subclass of `taugrid.workers.samplers.sampler.Sampler`."""

SAMPLERS = {
    "ddim": "taugrid.workers.samplers.ddim:DDIM",
    "dpm++2m": "taugrid.workers.samplers.dpmpp2m:DPMpp2M",
    "dpm++3m": "taugrid.workers.samplers.dpmpp3m:DPMpp3M",
    "heun": "taugrid.workers.samplers.heun:Heun",
    "unipc": "taugrid.workers.samplers.unipc:UniPC",
}

DEFAULT = "ddim"


def names() -> list[str]:
    """All samplers that can be used here."""
    return [*SAMPLERS, *sorted({point.name for point in entry_points(group=GROUP)} - SAMPLERS.keys())]


_unchecked = ContextVar("unchecked", default=False)


@contextmanager
def unchecked() -> Iterator[None]:
    """Within the block, configs may name samplers that are not installed: a recorded plan needs none."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def check(name: str) -> None:
    """Raise `ValueError` if there is no sampler of that name."""
    if not _unchecked.get():
        entry(name)


@cache  # a search through all packages takes milliseconds, and a grid has thousands of points
def entry(name: str) -> EntryPoint:
    """The entry point of a sampler's class.

    Raises:
        ValueError: if there is none of that name.
    """
    installed = list[EntryPoint](entry_points(group=GROUP, name=name))
    if name in SAMPLERS and installed:
        raise ValueError(
            f"an installed package gives {installed[0].value} the name {name}, which is one of taugrid's own samplers "
            f"(entry-point group {GROUP}); give it another name"
        )
    if name in SAMPLERS:
        return EntryPoint(name, SAMPLERS[name], GROUP)
    if installed:
        return installed[0]
    raise ValueError(
        f"must be one of {', '.join(names())}, or one of a package (entry-point group {GROUP}) that every node has"
    )
