"""Reads and writes diffusers' scheduler configs, with the settings of diffusion and sampling. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taugrid.config import SIGMA_KEYS, Diffusion, Sample, validate
from taugrid.errors import UserError
from taugrid.workers.diffusion import schedule
from taugrid.workers.samplers.students import lcm

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
"""diffusers' `beta_schedule` -> taugrid's name."""

CLIPS = {"clip_sample": True}
BETAS_OF_STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": CLIPS,
    "DDPMParallelScheduler": CLIPS,
    "RePaintScheduler": CLIPS,
    "DDIMScheduler": CLIPS,
    "DDIMParallelScheduler": CLIPS,
    "DDIMInverseScheduler": CLIPS,
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
    "LMSDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": BETAS_OF_STABLE_DIFFUSION,
    "DPMSolverSDEScheduler": BETAS_OF_STABLE_DIFFUSION,
    "KDPM2DiscreteScheduler": BETAS_OF_STABLE_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": BETAS_OF_STABLE_DIFFUSION,
    "LCMScheduler": BETAS_OF_STABLE_DIFFUSION | {"beta_schedule": "scaled_linear"},
}
"""diffusers' schedulers with DDPM's forward process, and their defaults that differ from `SCHEDULER_DEFAULTS`."""

SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": None,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "steps_offset": 0,
}
"""The values of absent keys, as in configs that were written before diffusers had them."""


class ContinuousScheduler(NamedTuple):
    """Schedulers of another process: its keys, and how their configs say them."""

    fixed: Mapping[str, Any]  # keys of `diffusion` that the class alone decides
    keys: Mapping[str, str]  # further ones, with the scheduler's names of them
    defaults: Mapping[str, Any]  # diffusers', of the keys that a config may leave out
    only: Mapping[str, Any]  # keys with the one value that taugrid honours


_SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
_EDM = ContinuousScheduler(
    {"process": "edm"},
    dict(zip(SIGMA_KEYS, SIGMA_KEYS, strict=True)) | {"prediction": "prediction_type"},
    {**_SIGMAS, "prediction_type": "epsilon"},
    {"sigma_schedule": "karras", "final_sigmas_type": "zero", "thresholding": False},
)
_FLOW = ContinuousScheduler(
    {"process": "flow", "prediction": "velocity"},
    {"timesteps": "num_train_timesteps"},
    {"num_train_timesteps": 1000, "shift": 1.0},
    {
        "use_dynamic_shifting": False, "shift_terminal": None, "invert_sigmas": False, "stochastic_sampling": False,
        "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    },
)  # fmt: skip
CONTINUOUS = {
    "CMStochasticIterativeScheduler": ContinuousScheduler(
        {"process": "edm", "prediction": "consistency"},
        dict(zip(SIGMA_KEYS, SIGMA_KEYS, strict=True)) | {"timesteps": "num_train_timesteps"},
        {**_SIGMAS, "num_train_timesteps": 40, "clip_denoised": True},
        {"s_noise": 1.0},
    ),
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
}
"""diffusers' schedulers of EDM's process and of flow matching."""

EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "v_prediction"}
"""What diffusers calls the output F of EDM's networks, and -F -> taugrid's names."""

BETA_SCHEDULES = {ours: theirs for theirs, ours in SCHEDULES.items() if theirs != "sigmoid"}
"""taugrid's schedules -> DDIMScheduler's names; only DDPMScheduler has `sigmoid`."""


def read_scheduler(values: dict[str, Any], path: Path) -> tuple[Diffusion, dict[str, Any]]:
    """The keys of `diffusion` and of `sample` that the config in `path` gives, with its class's defaults. `UserError`
    if its process is not known, or it asks for something that taugrid can't honour."""
    name = str(values.get("_class_name", "DDPMScheduler"))
    if name in CONTINUOUS:
        return _continuous(CONTINUOUS[name], values, path)
    if name not in SCHEDULERS:
        raise UserError(
            f"model.checkpoint: {path} is for {name}, whose forward process is not known; taugrid takes "
            f"DDPMScheduler, DDIMScheduler, schedulers that share their process, and {', '.join(CONTINUOUS)}"
        )
    unsupported = {
        "thresholding": bool(values.get("thresholding")),
        "variance_type": str(values.get("variance_type")).startswith("learned"),
        "use_flow_sigmas": bool(values.get("use_flow_sigmas")),
        "timestep_type": values.get("timestep_type") == "continuous",  # the network takes log sigma
        "predict_epsilon": values.get("predict_epsilon") is False and "prediction_type" not in values,
        "beta_schedule": values.get("trained_betas") is None
        and str(values.get("beta_schedule", "linear")) not in SCHEDULES,
    }
    refused = [f"{key}: {values[key]}" for key, refuse in unsupported.items() if refuse]
    if refused:
        raise UserError(f"model.checkpoint: taugrid can't honour {', '.join(refused)} in {path}")
    settings = SCHEDULER_DEFAULTS | SCHEDULERS[name] | values
    return _diffusion(settings, path), _sample(settings, path)


def _continuous(kind: ContinuousScheduler, values: dict[str, Any], path: Path) -> tuple[Diffusion, dict[str, Any]]:
    """`read_scheduler` for the schedulers of the other processes."""
    where, settings = f"model.checkpoint: {path}", {**kind.defaults, **_given(values)}
    for key, honoured in kind.only.items():
        if settings.get(key, honoured) != honoured:
            raise UserError(
                f"{where}: taugrid can't honour {key}: {json.dumps(settings[key])}; set it to {json.dumps(honoured)}"
            )
    given = {ours: settings[theirs] for ours, theirs in kind.keys.items()}
    if "prediction" in given:
        if given["prediction"] not in EDM_PREDICTIONS:
            raise UserError(
                f"{where}: prediction_type must be {' or '.join(EDM_PREDICTIONS)}, not "
                f"{json.dumps(given['prediction'])}"
            )
        given["prediction"] = EDM_PREDICTIONS[given["prediction"]]
    sample: dict[str, Any] = {"clip": "x0" if settings.get("clip_denoised") else "none"}
    if "shift" in settings:
        sample["shift"] = validate(Sample, {"shift": settings["shift"]}, where).shift
    return validate(Diffusion, {**kind.fixed, **given}, where), sample


def _diffusion(scheduler: dict[str, Any], path: Path) -> Diffusion:
    where, betas = f"model.checkpoint: {path}", scheduler["trained_betas"]
    values = {
        "timesteps": scheduler["num_train_timesteps"],
        "prediction": scheduler["prediction_type"],
        "rescale_betas_zero_snr": scheduler["rescale_betas_zero_snr"],
        "set_alpha_to_one": scheduler["set_alpha_to_one"],
    }
    by_name = {
        "schedule": SCHEDULES.get(str(scheduler["beta_schedule"]), "linear"),
        "beta_start": scheduler["beta_start"],
        "beta_end": scheduler["beta_end"],
    }
    if betas is None:
        return validate(Diffusion, {"timesteps": 1000} | _given(values | by_name), where)
    listed = validate(Diffusion, _given(values) | {"trained_betas": betas}, where)
    resolved = listed.model_copy(update={"timesteps": listed.timesteps or len(betas)})
    if resolved.timesteps != len(betas):
        raise UserError(
            f"{where}: num_train_timesteps is {resolved.timesteps}, but there are {len(betas)} trained_betas"
        )
    beside = validate(Diffusion, _given(by_name), where)
    if beside.beta_start is not None and beside.beta_end is not None:
        for name in schedule.SCHEDULES:  # `written` lists betas that diffusers has no name for
            if np.array_equal(schedule.betas(name, len(betas), beside.beta_start, beside.beta_end), betas):
                named = beside.model_dump(include=set(by_name)) | {"schedule": name, "trained_betas": None}
                return resolved.model_copy(update=named)
    return resolved


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _sample(scheduler: dict[str, Any], path: Path) -> dict[str, Any]:
    values = {
        "clip": "x0" if scheduler["clip_sample"] else "none",
        "clip_range": scheduler["clip_sample_range"],
        "steps_offset": scheduler["steps_offset"],
    }
    learned = {key: scheduler[key] for key, usual in lcm.options.items() if scheduler.get(key, usual) != usual}
    if learned and scheduler.get("_class_name") == "LCMScheduler":
        values["sampler_options"] = learned
    given = _given(values)
    return validate(Sample, given, f"model.checkpoint: {path}").model_dump(include=set(given))


def written(diffusion: Diffusion) -> tuple[str, dict[str, Any]]:
    """The class of diffusers' scheduler, and its arguments, for a resolved `diffusion` section. Of DDPM's process, they
    are those of taugrid's DDIM: nothing is clipped, and `trailing` is its linear tau if S divides T. A schedule that
    diffusers has no name for is given by its betas."""
    if diffusion.process == "flow":
        return "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": diffusion.timesteps}
    if diffusion.process == "edm":
        theirs = {ours: name for name, ours in EDM_PREDICTIONS.items()}[diffusion.predicts]
        return "EDMEulerScheduler", {key: getattr(diffusion, key) for key in SIGMA_KEYS} | {"prediction_type": theirs}
    assert diffusion.timesteps is not None
    betas: dict[str, Any] = {"beta_start": diffusion.beta_start, "beta_end": diffusion.beta_end}
    if diffusion.trained_betas is not None:
        betas = {"trained_betas": list(diffusion.trained_betas)}
    elif diffusion.schedule in BETA_SCHEDULES:
        betas["beta_schedule"] = BETA_SCHEDULES[diffusion.schedule]
    else:
        assert diffusion.schedule is not None
        betas["trained_betas"] = schedule.betas(diffusion.schedule, diffusion.timesteps, **betas).tolist()
    return "DDIMScheduler", {
        "num_train_timesteps": diffusion.timesteps,
        **betas,
        "prediction_type": diffusion.prediction,
        "rescale_betas_zero_snr": diffusion.rescale_betas_zero_snr,
        "set_alpha_to_one": diffusion.set_alpha_to_one,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
