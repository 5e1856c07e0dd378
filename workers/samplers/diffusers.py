"""diffusers' schedulers as samplers: `sample.sampler: diffusers:<SchedulerClass>`.

A scheduler gets its betas, T and prediction from `diffusion`, and all else from `sample.sampler_options` or its class's
defaults. It runs in diffusers' own loop, but its noise is taugrid's. What it does with S steps is read off its schedule
and, before any worker starts, off a trial on a Gaussian, for which the best prediction is known.

torch and diffusers are imported when a config names one of these samplers, not with this module.
"""

import copy
import difflib
import inspect
import json
import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, create_model

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

REFUSED = {
    "DPMSolverSDEScheduler": "its noise comes from one Brownian tree for a batch, so images would depend on the batch",
    "IPNDMScheduler": "its noise levels ignore the betas",
    "DDIMInverseScheduler": "it turns images into noise",
    "DPMSolverMultistepInverseScheduler": "it turns images into noise",
    "DDIMParallelScheduler": "its steps are those of diffusers:DDIMScheduler; use that",
    "DDPMParallelScheduler": "its steps are those of diffusers:DDPMScheduler; use that",
    "RePaintScheduler": "it needs an image and a mask to fill in",
    "CMStochasticIterativeScheduler": "its steps are those of the sampler consistency; use that",
    "EDMEulerScheduler": "its steps are those of the sampler euler with process: edm; use that",
    "EDMDPMSolverMultistepScheduler": "its steps are those of the sampler dpm++2m with process: edm; use that",
    "FlowMatchEulerDiscreteScheduler": "its steps are those of the sampler euler with process: flow; use that",
    "FlowMatchHeunDiscreteScheduler": "its steps are those of the sampler heun with process: flow; use that",
}
"""Why not. Every other scheduler of diffusers is for another process."""

FROM_DIFFUSION = {
    "num_train_timesteps": "timesteps",
    "prediction_type": "prediction",
    "beta_schedule": "schedule",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "trained_betas": "trained_betas",
    "rescale_betas_zero_snr": "rescale_betas_zero_snr",
}
"""Arguments of schedulers that restate a key of `diffusion`."""

OF_FLOWS = ("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal")
"""Arguments for flows, which are another process."""

NOT_DATA = ("solver_p", "tau_func")
"""Arguments that are Python objects, which no config can hold."""

ANNOTATIONS = {"sigma_max": float | None}
"""Where diffusers' own are wrong: `bool | None` in UniPC."""

OFF_BY = 2.0
"""How far the noise level of x may be from that of the time at which the network is called for it. Rounded times are
off by up to 1.5; DDIMScheduler's `linspace`, whose steps do not lead to the next time, by 96."""

MEAN, DEVIATION, SOUND_STEPS, SOUND = 0.1, 0.25, 50, 2.0
"""The Gaussian of trials. With `SOUND_STEPS` or more, its standard deviation must come out within the factor `SOUND`,
and its mean within one standard deviation: the default settings of all schedulers give 0.63 to 1.1 of the former, LCM,
which is for consistency models, the least."""

NEAR = 64
"""How far from S an S that works is looked for, before `SOUND_STEPS`."""


class Diffusers(Sampler):
    """A scheduler class of diffusers; `__getattr__` makes a subclass for each."""

    keys = frozenset()
    processes = frozenset({"ddpm"})
    libraries = ("diffusers",)
    scheduler: ClassVar[str]
    """The name of the class."""

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `ValueError` if they are not arguments of the class that `diffusion` leaves open, of their types."""
        for key, value in options.items():
            if key in FROM_DIFFUSION:
                theirs = f"diffusion.{FROM_DIFFUSION[key]}"
                raise ValueError(f"remove {key}: betas, T and prediction come from `diffusion`, here {theirs}")
            if key in OF_FLOWS:
                raise ValueError(f"remove {key}: it is for flows; set process: flow and sampler: euler")
            if key == "variance_type" and str(value).startswith("learned"):
                raise ValueError(f"variance_type: {value} needs a network that predicts variances too")
        try:
            validate(_options(self.scheduler), options, "options")
        except UserError as error:
            raise ValueError(str(error).removeprefix("options: ")) from None

    def times(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The network's times in the order of its calls.

        Raises:
            ValueError: if the scheduler can't take this number of steps, with one that works.
            UserError: if the options are the reason.
        """
        process, options, asked = _vp(process), canonical_json(settings.sampler_options), settings.steps
        T = process.timesteps
        if (why := _objection(self.scheduler, options, asked, process)) is None:
            return tuple(process.at(t + 1).time for t in self._ready(settings, process).timesteps.tolist())
        around = [steps for d in range(1, NEAR) for steps in (asked - d, asked + d) if 1 <= steps <= T]
        others = (steps for steps in [*around, SOUND_STEPS] if steps <= T)
        works = (steps for steps in others if _objection(self.scheduler, options, steps, process) is None)
        remedy = f"set steps to {near}, or other" if (near := next(works, None)) else "set other"
        raise ValueError(f"diffusers:{self.scheduler} with steps {asked} {why}; {remedy} sampler_options")

    def tau(self, settings: Sample, process: Process) -> tuple[float, ...]:
        """The times in 1..T at which the network is called, each once; raises the errors of `times`."""
        return tuple(sorted({t + 1 for t in self.times(settings, process)}))

    def last_sigma(self, settings: Sample, process: Process) -> float:
        """The noise level (sigma) of the image that it returns."""
        return _levels(self._ready(settings, process), _vp(process))[1][-1]

    def _ready(self, settings: Sample, process: Process) -> Any:
        """A scheduler of its own, after `set_timesteps`: another thread may sample with the shared one."""
        options, steps = canonical_json(settings.sampler_options), settings.steps
        scheduler = copy.deepcopy(_built(self.scheduler, options, _vp(process), process.prediction))
        scheduler.set_timesteps(steps)
        return scheduler

    def sample(self, x: "Tensor", path: Sequence[Point], denoise: Denoise, noise: Noise, settings: Sample) -> "Tensor":
        """x_0, (B, C, H, W), from x_T. `path` is not used: the scheduler has its own."""
        process, options = _vp(denoise.process), canonical_json(settings.sampler_options)
        scheduler = _instance(self.scheduler, options, settings.steps, process, process.prediction)
        return run(scheduler, settings.steps, x, lambda x, time: denoise.output(x, process.at(time + 1)), noise)


def __getattr__(name: str) -> type[Diffusers]:
    """The sampler of a scheduler class, as the registry asks for it."""
    if name.startswith("_"):
        raise AttributeError(name)
    from diffusers import schedulers

    if name in ADAPTED:
        logging.getLogger("diffusers.schedulers").setLevel(logging.ERROR)  # one warns in every `set_timesteps`
        defaults = {key: field.get_default() for key, field in _options(name).model_fields.items()}
        return type(name, (Diffusers,), {"scheduler": name, "options": defaults})
    if name in REFUSED:
        raise UserError(f"sample.sampler: diffusers:{name} can't be used: {REFUSED[name]}")
    if name in dir(schedulers):
        raise UserError(f"sample.sampler: diffusers:{name} can't be used: it is not for DDPM's process")
    near = difflib.get_close_matches(name, ADAPTED, n=1, cutoff=0.5)
    hint = f"did you mean diffusers:{near[0]}?" if near else f"there are {', '.join(ADAPTED)}"
    raise UserError(f"sample.sampler: diffusers has no scheduler {name} ({hint})")


def run(
    scheduler: Any, steps: int, x: "Tensor", output: Callable[["Tensor", float], "Tensor"], noise: Noise
) -> "Tensor":
    """x_0 from x_T, (B, C, H, W), by the loop of diffusers' pipelines.

    Args:
        scheduler: an instance of one of `ADAPTED`.
        steps: S.
        x: x_T, standard normal.
        output: called with x and the network's time, returns what the network predicts, in the scheduler's terms.
        noise: at each key, the first draw of the scheduler is draw 0, the next one draw 1.
    """
    draws: Counter[int] = Counter()
    with _ONE_AT_A_TIME:
        scheduler.set_timesteps(steps)
        x = x * float(scheduler.init_noise_sigma)
        for t in scheduler.timesteps:
            time: float = t.item()

            def draw(shape: Sequence[int], key: int = noise_key(time), **like: Any) -> "Tensor":
                draws[key] += 1
                return noise(key, draws[key] - 1).to(like["dtype"])

            predicted = output(scheduler.scale_model_input(x, t), time)
            with _noise_of(scheduler, draw):
                x = scheduler.step(predicted, t, x, return_dict=False)[0]
    return x


_ONE_AT_A_TIME = threading.Lock()
"""Held while a batch is sampled: a scheduler has a state, and `_noise_of` changes its module for all threads."""


@contextmanager
def _noise_of(scheduler: Any, draw: Callable[..., "Tensor"]) -> Iterator[None]:
    """Within the block, the scheduler draws from `draw`: all draw by the function `randn_tensor` of their module."""
    module = vars(sys.modules[type(scheduler).__module__])
    if (before := module.get("randn_tensor")) is not None:
        module["randn_tensor"] = draw
    try:
        yield
    finally:
        if before is not None:
            module["randn_tensor"] = before


@cache
def _options(name: str) -> type[Section]:
    """The arguments of a scheduler class that a config can set, with their types and defaults."""
    from diffusers import schedulers

    scheduler_class, fields = getattr(schedulers, name), dict[str, Any]()
    for key, parameter in inspect.signature(scheduler_class).parameters.items():
        default = parameter.default
        if key not in {*FROM_DIFFUSION, *OF_FLOWS, *NOT_DATA} and default is not parameter.empty:
            is_json = not isinstance(default, float) or math.isfinite(default)
            annotation = ANNOTATIONS.get(key) or _annotation(parameter, scheduler_class.__module__)
            fields[key] = (annotation, default if is_json else str(default))
    return create_model("Options", __base__=_Strict, **fields)


def _annotation(parameter: inspect.Parameter, module: str) -> Any:
    """The type of an argument for pydantic; Any where none is given, or one that pydantic or Python does not know."""
    annotated = type("Annotated", (), {"__annotations__": {"it": parameter.annotation}, "__module__": module})
    try:
        found = get_type_hints(annotated)["it"]
        TypeAdapter(found)
    except Exception:
        return Any
    return Any if found is parameter.empty else found


class _Strict(Section):
    model_config = ConfigDict(strict=True)


def _vp(process: Process) -> DiscreteVP:
    """The only process that `Diffusers.processes` lets through."""
    assert isinstance(process, DiscreteVP)
    return process


@lru_cache(maxsize=64)
def _built(name: str, options: str, process: DiscreteVP, prediction: PredictionType) -> Any:
    """A scheduler for a process; `UserError` with what its constructor raises."""
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
    try:
        return scheduler_class(**given)
    except Exception as error:
        raise UserError(f"sample.sampler_options of diffusers:{name}: {last_line(error)}") from error


@lru_cache(maxsize=64)
def _instance(name: str, options: str, steps: int, process: DiscreteVP, prediction: PredictionType) -> Any:
    """A scheduler for S steps: some keep in `set_timesteps` what only another S needs."""
    return copy.deepcopy(_built(name, options, process, prediction))


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
    """Why a scheduler can't take S = `steps`, as a phrase that follows its name; None if it can.

    Raises:
        UserError: if the options are the reason.
    """
    if (why := _wrong_schedule(name, options, steps, process)) is not None:
        return why
    many = max(steps, SOUND_STEPS)
    if _wrong_schedule(name, options, many, process) is None:
        mean, deviation = _trial(name, options, many, process)
        is_sound = abs(mean - MEAN) < DEVIATION and 1 / SOUND < deviation / DEVIATION < SOUND
        if not is_sound:
            raise UserError(
                f"sample.sampler: diffusers:{name} with these sampler_options and this `diffusion` does not sample: "
                f"in a trial with {many} steps, a Gaussian with mean {MEAN} and standard deviation {DEVIATION} came "
                f"out with {mean:.3g} and {deviation:.3g}; set other sampler_options"
            )
    if not all(map(math.isfinite, _trial(name, options, steps, process))):
        return "returns nan or infinity for a Gaussian"
    return None


def _wrong_schedule(name: str, options: str, steps: int, process: DiscreteVP) -> str | None:
    """What is wrong with the schedule of S = `steps`, as `_objection` says it."""
    scheduler, last = copy.deepcopy(_built(name, options, process, process.prediction)), process.timesteps - 1
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:
        return f"fails ({last_line(error)})"
    times, no_signal = scheduler.timesteps.tolist(), process.alpha_bar[-1] == 0  # then log alpha is not linear up to T
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
def _trial(name: str, options: str, steps: int, process: DiscreteVP) -> tuple[float, float]:
    """Mean and standard deviation of 512 pixels of images that a scheduler samples with the best prediction.

    Raises:
        UserError: if it fails, or draws noise from torch's global generator.
    """
    import torch

    scheduler, before = _instance(name, options, steps, process, process.prediction), torch.get_rng_state()
    generator, shape = torch.Generator().manual_seed(0), (128, 4, 1, 1)
    scale = scheduler.config.get("clip_sample_range") or 1.0  # clipping should cut off little
    mean, deviation = scale * MEAN, scale * DEVIATION

    def noise(key: int, draw: int = 0) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def output(x: torch.Tensor, time: float) -> torch.Tensor:
        at = process.at(time + 1)
        apart = (x - at.alpha * mean) / ((at.alpha * deviation) ** 2 + at.sigma**2)
        x0, eps = mean + at.alpha * deviation**2 * apart, at.sigma * apart
        best: dict[str, torch.Tensor] = {"sample": x0, "epsilon": eps, "v_prediction": at.alpha * eps - at.sigma * x0}
        return best[process.prediction]

    try:
        x0 = run(scheduler, steps, noise(0), output, noise)
    except Exception as error:
        raise UserError(
            f"sample.sampler: diffusers:{name} with these sampler_options and this `diffusion` fails in a trial with "
            f"{steps} steps: {last_line(error)}"
        ) from error
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise UserError(f"sample.sampler: diffusers:{name} draws noise from torch's global generator; use another")
    return float(x0.mean()) / scale, float(x0.std()) / scale
