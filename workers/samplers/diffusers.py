"""diffusers' schedulers as samplers: `sample.sampler: diffusers:<SchedulerClass>`.

A scheduler gets its betas, T and prediction from `diffusion`, and all else from `sample.sampler_options` or its class's
defaults. It runs in diffusers' own loop, but its noise is taugrid's. What it does with S steps is read off its schedule
and, before any worker starts, off a trial on a Gaussian, for which the best prediction is known.

torch and diffusers are imported when a config names one of these samplers, not with this module.
"""

import copy
import inspect
import json
import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, create_model

from taugrid.config import Sample, Section, validate
from taugrid.errors import UserError, last_line
from taugrid.hashing import canonical_json
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import Point, PredictionType, Process, noise_key
from taugrid.workers.diffusion.processes import DiscreteVP
from taugrid.workers.samplers.sampler import Noise, Sampler, mostly_signal

if TYPE_CHECKING:
    from torch import Tensor

ADAPTED = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
)  # fmt: skip

NOT_OPTIONS = {
    "num_train_timesteps", "prediction_type", "beta_schedule", "beta_start", "beta_end", "trained_betas",
    "rescale_betas_zero_snr",  # `diffusion` has them
    "use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal",  # of another process
    "solver_p", "tau_func",  # Python objects, which no config can hold
}  # fmt: skip
"""Arguments of schedulers that are no `sample.sampler_options`."""

ANNOTATIONS = {"sigma_max": float | None}
"""Where diffusers' own are wrong: `bool | None` in UniPC."""

OFF_BY = 2.0
"""How far the noise level of x may be from that of the time at which the network is called for it. Rounded times are
off by up to 1.5; DDIMScheduler's `linspace`, whose steps do not lead to the next time, by 96."""

SOUND_STEPS, SOUND = 50, 2.0
"""With so many steps or more, the standard deviation of a trial's Gaussian must come out within the factor `SOUND`,
and its mean within one standard deviation: the default settings of all schedulers give 0.63 to 1.1 of the former, LCM,
which is for consistency models, the least."""


class Diffusers(Sampler):
    """A scheduler class of diffusers; `__getattr__` makes a subclass for each."""

    keys = frozenset()
    processes = frozenset({"ddpm"})
    libraries = ("diffusers",)
    scheduler: ClassVar[str]  # the name of the class

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` if they are not arguments of the class that `diffusion` leaves open, of their types."""
        try:
            validate(_options(self.scheduler), options, "options")
        except UserError as error:
            raise ValueError(str(error).removeprefix("options: ")) from None

    def times(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The network's times in the order of its calls; `ValueError` if the scheduler can't take these settings."""
        process, options, steps = _vp(process), canonical_json(settings.sampler_options), settings.steps
        if (why := _objection(self.scheduler, options, steps, process)) is not None:
            raise ValueError(f"diffusers:{self.scheduler} with steps {steps} {why}; set other steps or sampler_options")
        timesteps = _ready(self.scheduler, options, steps, process).timesteps
        return tuple(process.at(t + 1).time for t in timesteps.tolist())

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The times in 1..T at which the network is called, each once; raises the errors of `times`."""
        return tuple(sorted({t + 1 for t in self.times(settings, process)}))

    def last_sigma(self, settings: Sample, process: Process) -> float:
        """The noise level (sigma) of the image that it returns."""
        process, options = _vp(process), canonical_json(settings.sampler_options)
        return _levels(_ready(self.scheduler, options, settings.steps, process), process)[1][-1]

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T. `path` is not used: the scheduler has its own."""
        process, options = _vp(denoise.process), canonical_json(settings.sampler_options)
        scheduler = _instance(self.scheduler, options, settings.steps, process, process.prediction)
        return run(scheduler, settings.steps, x, lambda x, time: denoise.output(x, process.at(time + 1)), noise)


def __getattr__(name: str) -> type[Diffusers]:
    """The sampler of a scheduler class, as the registry asks for it."""
    if name.startswith("_"):
        raise AttributeError(name)
    if name in ADAPTED:
        logging.getLogger("diffusers.schedulers").setLevel(logging.ERROR)  # one warns in every `set_timesteps`
        defaults = {key: field.get_default() for key, field in _options(name).model_fields.items()}
        return type(name, (Diffusers,), {"scheduler": name, "options": defaults})
    raise UserError(f"sample.sampler: diffusers:{name} is not adapted; known: {', '.join(ADAPTED)}")


def run(
    scheduler: Any, steps: int, x: "Tensor", output: Callable[["Tensor", float], "Tensor"], noise: Noise
) -> "Tensor":
    """x_0 from x_T, `x`, (B, C, H, W) standard normal, by the loop of diffusers' pipelines, in S = `steps`. `scheduler`
    is an instance of one of `ADAPTED`. `output`, called with x and the network's time, returns what the network
    predicts, in the scheduler's terms. At each key, the scheduler's first draw of `noise` is draw 0."""
    draws: Counter[int] = Counter()
    with _ONE_AT_A_TIME:
        module = vars(sys.modules[type(scheduler).__module__])
        before = module.get("randn_tensor")
        scheduler.set_timesteps(steps)
        x = x * float(scheduler.init_noise_sigma)
        try:
            for t in scheduler.timesteps:
                time: float = t.item()

                def draw(shape: Sequence[int], key: int = noise_key(time), **like: Any) -> "Tensor":
                    draws[key] += 1
                    return noise(key, draws[key] - 1).to(like["dtype"])

                predicted = output(scheduler.scale_model_input(x, t), time)
                if before is not None:  # schedulers that draw do it by this function of their module
                    module["randn_tensor"] = draw
                x = scheduler.step(predicted, t, x, return_dict=False)[0]
        finally:
            if before is not None:
                module["randn_tensor"] = before
    return x


_ONE_AT_A_TIME = threading.Lock()
"""Held while a batch is sampled: a scheduler has a state, and its module is changed for all threads."""


@cache
def _options(name: str) -> type[Section]:
    """The arguments of a scheduler class that a config can set, with their types and defaults."""
    from diffusers import schedulers

    scheduler_class, fields = getattr(schedulers, name), dict[str, Any]()
    for key, parameter in inspect.signature(scheduler_class).parameters.items():
        default = parameter.default
        if key not in NOT_OPTIONS and default is not parameter.empty:
            is_json = not isinstance(default, float) or math.isfinite(default)
            fields[key] = (ANNOTATIONS.get(key, parameter.annotation), default if is_json else str(default))
    return create_model("Options", __base__=_Strict, **fields)


class _Strict(Section):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _vp(process: Process) -> DiscreteVP:
    """The only process that `Diffusers.processes` lets through."""
    assert isinstance(process, DiscreteVP)
    return process


@lru_cache(maxsize=64)
def _built(name: str, options: str, process: DiscreteVP, prediction: PredictionType) -> Any:
    """A scheduler for a process; `ValueError` if it replaces an option by another."""
    from diffusers import schedulers

    scheduler_class = getattr(schedulers, name)
    levels, defaults = np.array([1, *process.alpha_bar[1:]]), _options(name).model_fields
    given = {
        **{key: value for key, value in json.loads(options).items() if value != defaults[key].default},
        "num_train_timesteps": process.timesteps,
        "trained_betas": (1 - levels[1:] / levels[:-1]).tolist(),
        "prediction_type": prediction,
    }
    if levels[-1] == 0 and "rescale_betas_zero_snr" in inspect.signature(scheduler_class).parameters:
        given["rescale_betas_zero_snr"] = True  # changes no beta then, and makes the last sigma finite
    scheduler = scheduler_class(**given)
    for key, value in given.items():
        if (taken := scheduler.config[key]) != value:
            raise ValueError(f"it takes {taken!r} in place of {value!r} as {key}")
    return scheduler


@lru_cache(maxsize=64)
def _instance(name: str, options: str, steps: int, process: DiscreteVP, prediction: PredictionType) -> Any:
    """A scheduler for S steps: some keep in `set_timesteps` what only another S needs."""
    return copy.deepcopy(_built(name, options, process, prediction))


def _ready(name: str, options: str, steps: int, process: DiscreteVP) -> Any:
    """A scheduler after `set_timesteps`, of its own: another thread may sample with the shared one."""
    scheduler = copy.deepcopy(_built(name, options, process, process.prediction))
    scheduler.set_timesteps(steps)
    return scheduler


def _levels(scheduler: Any, process: DiscreteVP) -> tuple[list[float], list[float]]:
    """The network's time in the first call of each step, and the sigma of x there and, last, of the result."""
    name, times = type(scheduler).__name__, scheduler.timesteps.tolist()
    if hasattr(scheduler, "sigmas"):
        two_calls = scheduler.order == 2
        ratios = scheduler.sigmas.tolist()  # of sigma to alpha
        starts = times[::2] if two_calls else times
        visited = ([ratios[0], *ratios[1::2]] if two_calls else ratios)[: len(starts) + 1]
        return starts, [ratio / math.hypot(1, ratio) for ratio in visited]
    if name in ("DDIMScheduler", "PNDMScheduler"):
        if name == "PNDMScheduler":
            skips = scheduler.config.skip_prk_steps
            times = [times[0], *times[2:]] if skips else [*times[:12:4], *times[12:]]
        stride = process.timesteps // scheduler.num_inference_steps
        end = math.sqrt(1 - float(scheduler.final_alpha_cumprod))
        reached = [process.at(t - stride + 1).sigma if t >= stride else end for t in times]
        return times, [process.at(times[0] + 1).sigma, *reached]
    end = process.at(1).sigma if name == "TCDScheduler" else 0.0
    return times, [*(process.at(t + 1).sigma for t in times), end]


@lru_cache(maxsize=1024)
def _objection(name: str, options: str, steps: int, process: DiscreteVP) -> str | None:
    """Why a scheduler can't take S = `steps`, as a phrase that follows its name; None if it can. With few steps, a
    sound one may be far off the Gaussian, so that it is judged with `SOUND_STEPS`, if it takes these."""
    why = _wrong_schedule(name, options, steps, process) or _trial(name, options, steps, process)
    if why is None and steps < SOUND_STEPS and _wrong_schedule(name, options, SOUND_STEPS, process) is None:
        return _trial(name, options, SOUND_STEPS, process)
    return why


def _wrong_schedule(name: str, options: str, steps: int, process: DiscreteVP) -> str | None:
    """What is wrong with the schedule of S = `steps`, as `_objection` says it."""
    try:
        scheduler = _ready(name, options, steps, process)
    except Exception as error:
        return f"fails ({last_line(error)})"
    times, last, no_signal = scheduler.timesteps.tolist(), process.timesteps - 1, process.alpha_bar[-1] == 0
    # Without signal at T, log alpha is not linear up to there.
    if outside := [t for t in times if not 0 <= t <= last or (no_signal and last - 1 < t < last)]:
        return f"calls the network at time {outside[0]:g}, which the process does not have (0..{last})"
    if (why := mostly_signal(process, times[0] + 1)) is not None:
        return why
    starts, levels = _levels(scheduler, process)
    for step, t in enumerate(starts):
        moves = levels[step + 1] < levels[step] or step == len(starts) - 1  # some end at the noise of their last call
        if not moves or [t] == starts[step - 1 : step]:
            return f"has a step of length 0 at time {t:g}"
        off = levels[step] / process.at(t + 1).sigma if step else 1.0
        if not 1 / OFF_BY <= off <= OFF_BY:
            return f"calls the network at time {t:g} for an x with {off:.2g} times the noise of that time"
    return None


@lru_cache(maxsize=1024)
def _trial(name: str, options: str, steps: int, process: DiscreteVP) -> str | None:
    """What is wrong with 512 pixels that a scheduler samples with the best prediction, as `_objection` says it."""
    import torch

    from taugrid.workers.samplers.trial import MEAN, VARIANCE, exact

    scheduler, before = _instance(name, options, steps, process, process.prediction), torch.get_rng_state()
    generator, shape = torch.Generator().manual_seed(0), (128, 4, 1, 1)
    scale = scheduler.config.get("clip_sample_range") or 1.0  # clipping should cut off little

    def noise(key: int, draw: int = 0) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    try:
        x0 = run(scheduler, steps, noise(0), lambda x, t: exact(x, process.at(t + 1), process, scale), noise) / scale
    except Exception as error:
        return f"fails in a trial with {steps} steps ({last_line(error)})"
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        return "draws noise from torch's global generator"
    if not x0.isfinite().all():
        return "returns nan or infinity for a Gaussian"
    mean, deviation, expected = float(x0.mean()), float(x0.std()), VARIANCE**0.5
    if steps < SOUND_STEPS or (abs(mean - MEAN) < expected and 1 / SOUND < deviation / expected < SOUND):
        return None
    return (
        f"does not sample: in a trial with {steps} steps, a Gaussian with mean {MEAN} and standard deviation "
        f"{expected} came out with {mean:.3g} and {deviation:.3g}"
    )
