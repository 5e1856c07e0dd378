"""What samplers say of cells. The driver asks taugrid's own; custom ones answer in another process, which tries them.

Imports no torch, and no code of the user's.
"""

import json
import math
import reprlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taugrid.config import DIFFUSION_DEFAULTS, Diffusion, Sample, Section
from taugrid.config.sample import GUIDANCE_KEYS, SAMPLER_KEYS
from taugrid.errors import CustomCodeError, UserError
from taugrid.hashing import SourceFile, canonical_json
from taugrid.registry.samplers import CONSISTENCY, LCM, SAMPLERS, is_custom
from taugrid.versions import versions
from taugrid.workers import schedules
from taugrid.workers.custom.describe import ask
from taugrid.workers.diffusion.process import Process
from taugrid.workers.samplers.sampler import Sampler, code_hash, find, with_defaults

SAMPLE_DEFAULTS = Sample(clip="none", clip_range=1.0, steps_offset=0, seed=0)
"""`sample` as it is resolved if a config sets nothing."""


class SamplerDescription(NamedTuple):
    """What a cell's sampler says of it."""

    label: str
    keys: tuple[str, ...]  # those of `SAMPLER_KEYS` that it honours
    tau: tuple[float, ...]
    times: tuple[float, ...]  # the network's times in the order of the calls
    evaluations: int  # network evaluations per image
    last_sigma: float  # the noise level (sigma) of the image that it returns
    arguments: Mapping[str, Any]  # all its options with their values
    versions: Mapping[str, str]  # of the packages whose code computes its steps
    code: str | None  # identifies the code of a custom sampler; None for built-ins

    @property
    def ignored_keys(self) -> frozenset[str]:
        """Those that it ignores."""
        return frozenset(SAMPLER_KEYS) - set(self.keys)

    @classmethod
    def restored(cls, fields: Mapping[str, Any]) -> "SamplerDescription":
        """From JSON, where tuples are lists. Raises `KeyError`, `TypeError` if fields are missing or unknown."""
        return cls(**{**fields, **{name: tuple(fields[name]) for name in ("keys", "tau", "times")}})


Case = tuple[Sample, Diffusion]  # what a sampler is asked about: the sections as resolved


@dataclass(frozen=True)
class Tried:
    """What a custom sampler says of some cases, each of which it was tried with."""

    descriptions: Sequence[Mapping[str, Any]]  # for each case the fields of a `SamplerDescription`; none with a refusal
    files: Sequence[SourceFile] = ()  # the source files of its module and of what this imports
    refusal: str | None = None  # why it can't be used


TrySampler = Callable[[str, Sequence[Case]], Tried]  # like `try_sampler`


def try_sampler(name: str, cases: Sequence[Case]) -> Tried:
    """What the custom sampler `name` says of `cases`, after another process has tried it with each on two tiny images.
    A `module:function` is looked up in the current folder and on Python's path. `UserError` if it can't be used, or not
    with these settings."""
    points = [canonical_json({"sample": _given(sample), "diffusion": _given(diffusion)}) for sample, diffusion in cases]
    distinct = dict.fromkeys(points)
    arguments = {"name": name, "points": list(map(json.loads, distinct))}
    trial = "sample two images of 8 x 8 pixels on a CPU"
    try:
        limit = 60.0 * (1 + len(distinct))
        fields = ask("taugrid.workers.samplers.trial:describe", arguments, f"sample.sampler: {name}", trial, limit)
    except CustomCodeError as error:
        raise UserError(str(error)) from None
    if fields["refusal"] is not None:
        raise UserError(fields["refusal"])
    described = dict(zip(distinct, fields["descriptions"], strict=True))
    return Tried([described[point] for point in points], [SourceFile(*file) for file in fields["files"]])


def describe_samplers(
    cases: Sequence[Case], trial: TrySampler = try_sampler
) -> tuple[list[SamplerDescription], frozenset[SourceFile]]:
    """What the sampler of each case says of it, and the user's source files that workers import. `trial` asks custom
    ones. `UserError` if a sampler can't be used, or not with these settings."""
    custom: dict[str, list[Case]] = defaultdict(list)
    for settings, diffusion in cases:
        if is_custom(settings.sampler):
            custom[settings.sampler].append((settings, diffusion))
    tried = {name: trial(name, its) for name, its in custom.items()}
    answers = {name: map(SamplerDescription.restored, each.descriptions) for name, each in tried.items()}
    descriptions = [
        next(answers[settings.sampler]) if settings.sampler in answers else describe_sampler(settings, diffusion)
        for settings, diffusion in cases
    ]
    return descriptions, frozenset(file for name, each in tried.items() if ":" in name for file in each.files)


def describe_sampler(settings: Sample, diffusion: Diffusion) -> SamplerDescription:
    """What the sampler of `settings`, which this process imports, says of a case. `UserError` if it can't be used with
    these settings."""
    name, process = settings.sampler, schedules.process(diffusion)
    sampler = find(name)
    _require_network(name, sampler, process)
    if settings.shift is not None and process.name != "flow":
        raise UserError(f"sample.shift: {settings.shift:g} is for flows, but the process is {process.name}; remove it")
    try:
        sampler.check_options(settings.sampler_options)
    except ValueError as error:
        raise UserError(f"sample.sampler_options of {name}: {error}") from None
    settings = with_defaults(honoured(settings, sampler.keys), sampler)
    try:
        tau = tuple(sampler.tau(settings, process))
        first, last = (1 if process.timesteps else math.ulp(0)), process.last  # times may repeat
        numbers = set(map(type, tau)) <= {int, float} and all(map(math.isfinite, tau))
        if not tau or not numbers or list(tau) != sorted(tau) or not first <= tau[0] <= tau[-1] <= last:
            wanted = f"in 1..{last}" if process.timesteps else f"above 0 and up to {last:g}"
            message = f"`tau` of {name} must return increasing numbers {wanted}, not {reprlib.repr(tau)}"
            raise UserError(f"sample.sampler: {message}")
        evaluations = sampler.evaluations(settings, process)
        times = tuple(sampler.times(settings, process))
    except ValueError as error:
        keys = [f"sample.{key}" for key in ("steps", "spacing") if key == "steps" or key in sampler.keys]
        raise UserError(f"{', '.join(keys)}: {error}") from None
    if type(evaluations) is not int or evaluations < 1:
        raise UserError(f"sample.sampler: `evaluations` of {name} must return a positive integer, not {evaluations!r}")
    return SamplerDescription(
        label=sampler.label(vars(settings)),
        keys=tuple(sorted(sampler.keys)),
        tau=tau,
        times=times,
        evaluations=evaluations,
        last_sigma=sampler.last_sigma(settings, process),
        arguments=sampler.arguments(settings),
        versions=versions(sampler.libraries),
        code=code_hash(name),
    )


def _require_network(name: str, sampler: Sampler, process: Process) -> None:
    """Raise `UserError` unless a sampler takes the networks of a process."""
    if _takes(sampler, process):
        return
    key, its, known = "process", str(process.name), set[str](sampler.processes)
    if process.name in sampler.processes:
        key, its, known = "prediction", process.prediction, set[str](sampler.predictions)
    others = " or ".join(each for each in SAMPLERS if each != LCM and _takes(find(each), process))
    if process.prediction == "edm":
        others += f" ({CONSISTENCY} for a consistency model)"
    raise UserError(
        f"sample.sampler: {name} is for {key}: {' or '.join(sorted(known))}, but this network's is {its}; set sampler: "
        f"{others}, or diffusion.{key} to what the network was trained with"
    )


def _takes(sampler: Sampler, process: Process) -> bool:
    return process.prediction in sampler.predictions and process.name in sampler.processes


def honoured(settings: Sample, keys: Collection[str]) -> Sample:
    """`settings` with the default in each key without effect, so that it can't make another cell. `keys` are those of
    `SAMPLER_KEYS` that the sampler honours."""
    found = settings.model_copy(update={key: getattr(SAMPLE_DEFAULTS, key) for key in SAMPLER_KEYS if key not in keys})
    idle: dict[str, Any] = {"clip_range": 1.0} if found.clip == "none" else {}
    idle |= {} if found.spacing == "leading" else {"steps_offset": 0}
    idle |= {} if found.is_guided else dict.fromkeys(GUIDANCE_KEYS)
    return found.model_copy(update=idle)


def _given(section: Section) -> dict[str, Any]:
    """The keys of a section that differ from the defaults and that a sampler may depend on."""
    defaults = SAMPLE_DEFAULTS if isinstance(section, Sample) else DIFFUSION_DEFAULTS
    unasked = ("sampler", "seed", "num_samples", "shard_evaluations", "labels", "guidance", *GUIDANCE_KEYS)
    values, base = section.model_dump(mode="json"), defaults.model_dump(mode="json")
    return {key: value for key, value in values.items() if value != base[key] and key not in unasked}
