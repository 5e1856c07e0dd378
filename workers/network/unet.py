"""The network: diffusers' UNet2DModel, built from the config, loaded as a function of (x, t), averaged, and saved."""

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from torch import Tensor

from taugrid import config
from taugrid.jobs import CustomNetwork, Network, SavedUnet
from taugrid.workers import schedules
from taugrid.workers.data import load as data
from taugrid.workers.diffusion import gaussian, oracle, schedule
from taugrid.workers.diffusion.process import Denoiser
from taugrid.workers.network import checkpoint as checkpoints
from taugrid.workers.network import custom as own_network
from taugrid.workers.network.checkpoint import MOST_NAMED, SCHEDULES, WrongWeights

BETA_SCHEDULES = {ours: theirs for theirs, ours in SCHEDULES.items() if theirs != "sigmoid"}
"""DDIMScheduler's names of our schedules; `sigmoid` is DDPMScheduler's alone."""


def build_unet(unet: config.Unet, image_shape: tuple[int, int, int]) -> diffusers.UNet2DModel:
    """A network with random weights, from torch's global generator, for images of (channels, height, width)."""
    channels, height, width = image_shape
    size = {"sample_size": (height, width), "in_channels": channels, "out_channels": channels}
    return diffusers.UNet2DModel(**size, **unet.model_dump())


Time = TypeVar("Time", int, Tensor)


def network_time(t: Time) -> Time:
    """The index 0..T-1 that networks are trained with, from the paper's time t in 1..T: the one place of this shift."""
    return t - 1


def load(network: Network, diffusion: config.Diffusion, device: str) -> Denoiser:
    """A network for inference on `device`, as a function of x, (B, C, H, W) float32, and the paper's t in 1..T.

    It returns what the network predicts (`diffusion.prediction`), in the shape of x.

    Raises:
        OSError: if a folder holds no such network. WrongWeights: if its weights are not its own.
        own_network.UnusableNetwork: if one's own is not what was planned; so does a call of it, see `checked` there.
    """
    if isinstance(network, SavedUnet):
        return _unet(network.folder, device)
    if isinstance(network, CustomNetwork):
        own = own_network.load(network, device)
        return lambda x, t: own(x, torch.full((len(x),), network_time(t), device=x.device))
    distribution = data.distribution(network.data)
    if isinstance(distribution, gaussian.Gaussian):
        return oracle.gaussian_eps(distribution, schedules.alpha_bar(diffusion), device)
    return oracle.two_points_eps(distribution, schedules.alpha_bar(diffusion), device)


def _unet(folder: str, device: str) -> Denoiser:
    """The UNet2DModel in `folder`: its config and its weights, of which nothing but tensors is unpickled."""
    unet = _from_folder(Path(folder))
    unet = unet.to(device=device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def network(x: Tensor, t: int) -> Tensor:
        # The times are made on the device: diffusers would copy a number to it each step.
        index = torch.full((len(x),), network_time(t), device=x.device)
        output: Tensor = unet(x.contiguous(memory_format=torch.channels_last), index, return_dict=False)[0]
        return output

    return network


def _from_folder(folder: Path) -> diffusers.UNet2DModel:
    file = checkpoints.weights_file(folder)
    is_pickled = file.name != checkpoints.WEIGHTS_FILE
    if is_pickled:
        _require_tensors(file)
    try:
        unet, found = diffusers.UNet2DModel.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            use_safetensors=not is_pickled,
            local_files_only=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # they are refused below, with the others
            output_loading_info=True,
        )
    except ValueError as error:
        raise WrongWeights(f"{folder}/config.json makes no UNet2DModel: {' '.join(str(error).split())}") from error
    shapes = [f"{name} {list(theirs)}, not {list(ours)}" for name, theirs, ours in found["mismatched_keys"]]
    wrong = {"lacks": found["missing_keys"], "has besides": found["unexpected_keys"], "has of another shape": shapes}
    told = [f"{verb} {_some(names)}" for verb, names in wrong.items() if names]
    if told:
        raise WrongWeights(f"{file} does not fit the config.json beside it: it {'; '.join(told)}")
    return unet


def _require_tensors(file: Path) -> None:
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise WrongWeights(
            f"{file} is damaged, or holds more than tensors, which would be run: it was not opened; get safetensors"
        ) from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(sorted(names)[:MOST_NAMED]) + more


def ema_start(unet: torch.nn.Module) -> dict[str, Tensor]:
    """The moving average of a network's parameters before the first step: a copy of them, by name."""
    return {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    """The decay at `step` = 0, 1, ...: `decay`, and with `warmup` at most (1 + step) / (10 + step)."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


@torch.no_grad()
def ema_update(ema: dict[str, Tensor], unet: torch.nn.Module, decay: float) -> None:
    """One step of the average, in place: decay times what it was, plus (1 - decay) times the parameters."""
    torch._foreach_lerp_(list(ema.values()), list(unet.parameters()), 1 - decay)


def scheduler_config(diffusion: config.Diffusion) -> dict[str, Any]:
    """Arguments of diffusers' DDIMScheduler for a resolved `diffusion` section and our sampler's settings.

    `trailing` is our linear tau where S divides T; without clipping. A schedule that diffusers has no name for is given
    by its betas.
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


def save_pipeline(
    folder: Path, unet: diffusers.UNet2DModel, ema: Mapping[str, Tensor], diffusion: config.Diffusion
) -> None:
    """Write what `diffusers.DDIMPipeline.from_pretrained(folder)` reads, in safetensors.

    unet/ holds the averaged weights. The raw ones lie beside it in unet_raw/, which is no component of the pipeline.
    """
    raw = copy.deepcopy(unet).to(device="cpu", memory_format=torch.contiguous_format)
    averaged = copy.deepcopy(raw)
    averaged.load_state_dict({name: tensor.to("cpu") for name, tensor in ema.items()})
    scheduler = diffusers.DDIMScheduler(**scheduler_config(diffusion))
    diffusers.DDIMPipeline(unet=averaged, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
    raw.save_pretrained(folder / "unet_raw", safe_serialization=True)
