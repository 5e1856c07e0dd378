"""What a diffusers folder says about the model in it, read without torch: shapes, schedule, clipping, weights' hash."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eval.extractor_names import sha256
from orchestrator.config import Diffusion, validate
from orchestrator.errors import UserError
from workers.diffusion import schedule

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
"""diffusers' `beta_schedule` -> ours."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: where its network lies, and what its own files say."""

    path: str
    unet_folder: str
    unet_config: dict[str, Any]
    weights_sha256: str
    diffusion: Diffusion
    """Keys that the scheduler's config gives; the others are null."""
    sample: dict[str, Any]
    """Keys of `sample` that the scheduler's config gives; none without a scheduler."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        size = self.unet_config["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return (self.unet_config["in_channels"], height, width)


def read(path: str) -> Checkpoint:
    """The model in a pipeline folder (`unet/`, `scheduler/`) or in a bare `UNet2DModel` folder.

    Raises:
        UserError: no such folder or file, no `UNet2DModel`, or a setting that taugrid can't honour, by name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"model.checkpoint: no folder {path!r}; give a diffusers folder (nothing is downloaded)")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _json(unet / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"model.checkpoint: {unet} holds a {config.get('_class_name')}, but taugrid loads UNet2DModel")
    for key in ("sample_size", "in_channels", "out_channels"):
        if config.get(key) is None:
            raise UserError(f"model.checkpoint: {unet / 'config.json'} has no {key!r}, so the images' shape is unknown")
    if config["in_channels"] != config["out_channels"]:
        raise UserError(
            f"model.checkpoint: {path} has {config['in_channels']} channels in and {config['out_channels']} out "
            "(learned variance?), but taugrid samples networks that predict noise alone"
        )
    conditional = [key for key in ("num_class_embeds", "class_embed_type") if config.get(key) is not None]
    if conditional:
        raise UserError(f"model.checkpoint: {path} wants class labels ({conditional[0]}), which taugrid does not give")
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    scheduler = _json(scheduler_file) if scheduler_file.is_file() else None
    return Checkpoint(
        path=path,
        unet_folder=str(unet.resolve()),
        unet_config={key: value for key, value in config.items() if not key.startswith("_")},
        weights_sha256=weights_sha256(unet / WEIGHTS_FILE),
        diffusion=_diffusion(scheduler, scheduler_file) if scheduler else Diffusion(),
        sample={} if scheduler is None else {"clip": "x0" if scheduler.get("clip_sample", True) else "none"},
    )


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file of weights, in hex; a file that has not changed since is not read again.

    Raises:
        UserError: if there is no such file.
    """
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no {path}; a model's weights must lie there as safetensors") from None
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    return sha256(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"model.checkpoint: there is no {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"model.checkpoint: {path} is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"model.checkpoint: {path} holds no JSON object")
    return values


def _diffusion(scheduler: dict[str, Any], path: Path) -> Diffusion:
    unsupported = {
        "thresholding": bool(scheduler.get("thresholding")),
        "rescale_betas_zero_snr": bool(scheduler.get("rescale_betas_zero_snr")),
        "variance_type": str(scheduler.get("variance_type", "")).startswith("learned"),
        "set_alpha_to_one": scheduler.get("set_alpha_to_one", True) is not True,
        "steps_offset": scheduler.get("steps_offset", 0) != 0,
        "clip_sample_range": bool(scheduler.get("clip_sample", True))
        and scheduler.get("clip_sample_range", 1.0) != 1.0,
        "beta_schedule": scheduler.get("beta_schedule", "linear") not in SCHEDULES,
        "trained_betas": scheduler.get("trained_betas") is not None and _named_schedule(scheduler) is None,
    }
    refused = [f"{key}: {str(scheduler.get(key))[:40]}" for key, refuse in unsupported.items() if refuse]
    if refused:
        raise UserError(f"model.checkpoint: taugrid can't honour {', '.join(refused)} of {path}")
    named = _named_schedule(scheduler) if scheduler.get("trained_betas") is not None else None
    values = {
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "schedule": named or SCHEDULES[scheduler.get("beta_schedule", "linear")],
        "beta_start": scheduler.get("beta_start", 1e-4),
        "beta_end": scheduler.get("beta_end", 2e-2),
        "prediction": scheduler.get("prediction_type", "epsilon"),
    }
    return validate(Diffusion, values, f"model.checkpoint: {path}")


def _named_schedule(scheduler: dict[str, Any]) -> str | None:
    """The schedule of ours that a list of betas is, as `models.save_pipeline` writes those without a name there."""
    given = scheduler["trained_betas"]
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 2e-2)
    for name in schedule.SCHEDULES:
        if np.array_equal(schedule.betas(name, len(given), start, end), given):
            return name
    return None
