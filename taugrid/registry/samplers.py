"""The samplers that a config can name: ours, and those of installed packages (the entry-point group `GROUP`).

A new sampler is one file, in workers/samplers/ or in another package, and its registration here or there.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "taugrid.samplers"
"""Its entries are named as in `sample.sampler`; each is a subclass of `taugrid.workers.samplers.sampler.Sampler`."""

SAMPLERS = {"ddim": "taugrid.workers.samplers.ddim:DDIM"}

DEFAULT = "ddim"


def names() -> list[str]:
    """All samplers that can be used here."""
    return [*SAMPLERS, *sorted({found.name for found in entry_points(group=GROUP)} - SAMPLERS.keys())]


@cache  # looking through all packages takes milliseconds, and a grid has thousands of points
def entry(name: str) -> EntryPoint:
    """Where a sampler's class is.

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
    for found in installed:
        return found
    raise ValueError(
        f"must be one of {', '.join(names())}, or a sampler of an installed package (entry-point group {GROUP})"
    )
