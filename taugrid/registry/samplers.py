"""The samplers that a config can name: built-ins, diffusers' schedulers, the user's own, those of packages.

A new sampler is one file in workers/samplers/ with a line in `SAMPLERS`, or a package with an entry point.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from taugrid.words import did_you_mean

GROUP = "taugrid.samplers"
"""An entry's name is the value of `sample.sampler`; it is a subclass of `taugrid.workers.samplers.sampler.Sampler`, or
a function like its `sample`."""

SAMPLERS = {
    "ddim": "taugrid.workers.samplers.ddim:ddim",
    "dpm++2m": "taugrid.workers.samplers.solvers:dpmpp_2m",
    "dpm++3m": "taugrid.workers.samplers.solvers:dpmpp_3m",
    "euler": "taugrid.workers.samplers.solvers:euler",
    "heun": "taugrid.workers.samplers.solvers:heun",
    "edm-heun": "taugrid.workers.samplers.solvers:edm_heun",
    "unipc": "taugrid.workers.samplers.solvers:unipc",
    "consistency": "taugrid.workers.samplers.students:consistency",
    "lcm": "taugrid.workers.samplers.students:lcm",
    "flow-map": "taugrid.workers.samplers.students:flow_map",
}

DIFFUSERS = "diffusers:"  # what names of diffusers' schedulers begin with

DEFAULT = "ddim"
CONSISTENCY = "consistency"
LCM = "lcm"
ONLY = {"consistency": CONSISTENCY, "average_velocity": "flow-map"}  # the one sampler of networks that predict this


def names() -> list[str]:
    """All samplers that can be used here."""
    return [*SAMPLERS, *sorted({point.name for point in entry_points(group=GROUP)} - SAMPLERS.keys())]


_unchecked = ContextVar("unchecked", default=False)


@contextmanager
def unchecked(is_so: bool = True) -> Iterator[None]:
    """Within the block, if `is_so`, configs may name samplers that are not installed: a recorded plan needs none."""
    token = _unchecked.set(is_so)
    try:
        yield
    finally:
        _unchecked.reset(token)


def checked(name: str) -> str:
    """`name`; `ValueError` if there is no sampler of that name. A module of the user's is not looked for."""
    if not _unchecked.get():
        entry(name)
    return name


def is_custom(name: str) -> bool:
    """Whether its code is not taugrid's: a `module:function`, or a name that an installed package brings."""
    return name not in SAMPLERS and not name.startswith(DIFFUSERS)


@cache  # a search through all packages takes milliseconds, and a grid has thousands of points
def entry(name: str) -> EntryPoint:
    """The entry point of a sampler's class or function; a `module:function` is its own. ValueError if there is none."""
    if name.startswith(DIFFUSERS):  # whether there is one is found out when it is loaded
        if not (scheduler := name.removeprefix(DIFFUSERS)).isidentifier():
            raise ValueError(f"must name a scheduler, as in {DIFFUSERS}DPMSolverMultistepScheduler")
        return EntryPoint(name, f"taugrid.workers.samplers.diffusers:{scheduler}", GROUP)
    if ":" in name:
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (attribute, *module.split("."))):
            raise ValueError("must be module:function, as in my_sampler:sample")
        return EntryPoint(name, name, GROUP)
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
    hint = did_you_mean(name, names())
    raise ValueError(
        f"must be one of {', '.join(names())}{hint and f' ({hint})'}, {DIFFUSERS}SchedulerClass, module:function of "
        f"your own, or one of a package (entry-point group {GROUP}) that every node has"
    )
