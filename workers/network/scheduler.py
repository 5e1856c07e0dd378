"""Reads and writes diffusers' scheduler configs, with the settings of diffusion and sampling. Imports no torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from taugrid.config import SIGMA_KEYS, Diffusion, Sample, validate
from taugrid.errors import UserError
from taugrid.workers.diffusion import schedule

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

CONSISTENCY = "CMStochasticIterativeScheduler"
"""diffusers' scheduler of consistency models, and its defaults."""
CONSISTENCY_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 40,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "s_noise": 1.0,
    "rho": 7.0,
    "clip_denoised": True,
}

BETA_SCHEDULES = {ours: theirs for theirs, ours in SCHEDULES.items() if theirs != "sigmoid"}
"""taugrid's schedules -> DDIMScheduler's names; only DDPMScheduler has `sigmoid`."""


def read_scheduler(values: dict[str, Any], path: Path) -> tuple[Diffusion, dict[str, Any]]:
    """The keys of `diffusion` and of `sample` that the config in `path` gives, with its class's defaults.

    Raises:
        UserError: if its process is not DDPM's, or it asks for something that taugrid can't honour.
    """
    for key in ("_class_name", "beta_schedule"):
        if not isinstance(values.get(key), str | None):
            raise UserError(f"model.checkpoint: {path}: {key} must be a name, not {json.dumps(values[key])}")
    name = values.get("_class_name", "DDPMScheduler")
    if name == CONSISTENCY:
        return _consistency(CONSISTENCY_DEFAULTS | values, path)
    if name not in SCHEDULERS:
        raise UserError(
            f"model.checkpoint: {path} is for {name}, whose forward process is not known to be DDPM's; taugrid takes "
            f"DDPMScheduler, DDIMScheduler, schedulers that share their process, and {CONSISTENCY}"
        )
    unsupported = {
        "thresholding": bool(values.get("thresholding")),
        "variance_type": str(values.get("variance_type")).startswith("learned"),
        "use_flow_sigmas": bool(values.get("use_flow_sigmas")),
        "timestep_type": values.get("timestep_type") == "continuous",  # the network takes log sigma
        "predict_epsilon": values.get("predict_epsilon") is False and "prediction_type" not in values,
        "beta_schedule": values.get("trained_betas") is None and values.get("beta_schedule", "linear") not in SCHEDULES,
    }
    refused = [f"{key}: {values[key]}" for key, refuse in unsupported.items() if refuse]
    if refused:
        raise UserError(f"model.checkpoint: taugrid can't honour {', '.join(refused)} in {path}")
    settings = SCHEDULER_DEFAULTS | SCHEDULERS[name] | values
    return _diffusion(settings, path), _sample(settings, path)


def _consistency(scheduler: dict[str, Any], path: Path) -> tuple[Diffusion, dict[str, Any]]:
    """`read_scheduler` for the scheduler of a consistency model."""
    where = f"model.checkpoint: {path}"
    if scheduler["s_noise"] != 1:
        raise UserError(f"{where}: taugrid can't honour s_noise: {scheduler['s_noise']}; set it to 1")
    values = {key: scheduler[key] for key in SIGMA_KEYS} | {
        "process": "edm", "prediction": "consistency", "timesteps": scheduler["num_train_timesteps"],
    }  # fmt: skip
    return validate(Diffusion, values, where), {"clip": "x0" if scheduler["clip_denoised"] else "none"}


def _diffusion(scheduler: dict[str, Any], path: Path) -> Diffusion:
    where, betas = f"model.checkpoint: {path}", scheduler["trained_betas"]
    values = {
        "timesteps": scheduler["num_train_timesteps"],
        "prediction": scheduler["prediction_type"],
        "rescale_betas_zero_snr": scheduler["rescale_betas_zero_snr"],
        "set_alpha_to_one": scheduler["set_alpha_to_one"],
    }
    by_name = {
        "schedule": SCHEDULES.get(scheduler["beta_schedule"], "linear"),
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
    if (named := _named_schedule(betas, beside)) is None:
        return resolved
    by_name = beside.model_dump(include=set(by_name)) | {"schedule": named}
    return resolved.model_copy(update=by_name | {"trained_betas": None})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _named_schedule(betas: list[float], beside: Diffusion) -> str | None:
    """A schedule with these betas, if any: `scheduler_config` lists betas that diffusers has no name for."""
    if beside.beta_start is None or beside.beta_end is None:
        return None
    for name in schedule.SCHEDULES:
        named = schedule.betas(name, len(betas), beside.beta_start, beside.beta_end)
        if np.array_equal(named, betas):
            return name
    return None


def _sample(scheduler: dict[str, Any], path: Path) -> dict[str, Any]:
    values = {
        "clip": "x0" if scheduler["clip_sample"] else "none",
        "clip_range": scheduler["clip_sample_range"],
        "steps_offset": scheduler["steps_offset"],
    }
    given = _given(values)
    return validate(Sample, given, f"model.checkpoint: {path}").model_dump(include=set(given))


def scheduler_config(diffusion: Diffusion) -> dict[str, Any]:
    """Arguments of diffusers' DDIMScheduler for a resolved `diffusion` section and the settings of taugrid's DDIM.

    Nothing is clipped. `trailing` is taugrid's linear tau if S divides T. A schedule that diffusers has no name for is
    given by its betas.
    """
    assert diffusion.timesteps is not None
    betas: dict[str, Any] = {"beta_start": diffusion.beta_start, "beta_end": diffusion.beta_end}
    if diffusion.trained_betas is not None:
        betas = {"trained_betas": list(diffusion.trained_betas)}
    elif diffusion.schedule in BETA_SCHEDULES:
        betas["beta_schedule"] = BETA_SCHEDULES[diffusion.schedule]
    else:
        assert diffusion.schedule is not None
        betas["trained_betas"] = schedule.betas(diffusion.schedule, diffusion.timesteps, **betas).tolist()
    return {
        "num_train_timesteps": diffusion.timesteps,
        **betas,
        "prediction_type": diffusion.prediction,
        "rescale_betas_zero_snr": diffusion.rescale_betas_zero_snr,
        "set_alpha_to_one": diffusion.set_alpha_to_one,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
