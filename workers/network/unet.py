"""diffusers' networks: UNet2DModel built, averaged over training, saved as a pipeline; all that a folder holds loaded,
VAEs included, which decode.

UNet2DModel is imported in half the time, because each worker imports it before its first image: diffusers imports parts
of SciPy for the noise levels of schedulers that never run here, and makes enough objects for Python's garbage collector
to take a third of the time. docs/decisions.md, "What a worker imports", has the figures.
"""

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from taugrid.config import Diffusion, Unet
from taugrid.errors import WorkerRefusal, joined_lines
from taugrid.jobs import SavedNetwork
from taugrid.words import listed
from taugrid.workers.accelerator.arithmetic import cast_weights, without_tf32
from taugrid.workers.accelerator.policy import Policy
from taugrid.workers.content import require_same, verified_copy
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.diffusion.denoiser import Denoiser, FromTimes
from taugrid.workers.importing import imported_on_use, uncollected
from taugrid.workers.network.checkpoint import CONFIG_FILE, MAX_NAMED, WEIGHTS_FILE, config_sha256, weights_file
from taugrid.workers.network.scheduler import written

if TYPE_CHECKING:
    from taugrid.workers.diffusion.decoder import Decode

with uncollected(), imported_on_use("scipy.integrate", "scipy.stats"):
    from diffusers import UNet2DModel as UNet2DModel


def build_unet(unet: Unet, image_shape: tuple[int, int, int], has_null_label: bool = False) -> UNet2DModel:
    """A network for images of (channels, height, width), with random weights from torch's global generator. With
    `has_null_label`, label K of its K `num_classes` is the null class, which its saved config says."""
    channels, height, width = image_shape
    size = {"sample_size": (height, width), "in_channels": channels, "out_channels": channels}
    classes = unet.num_classes
    rows = None if classes is None else classes + has_null_label
    built = UNet2DModel(**size, **unet.model_dump(exclude={"num_classes"}), num_class_embeds=rows)
    if has_null_label:
        built.register_to_config(null_label=classes)  # diffusers ignores the key
    return built


def ema_start(unet: nn.Module) -> dict[str, Tensor]:
    """The average before the first step: a copy of the network's parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    """The decay at `step` = 0, 1, ...: `decay`, but with `warmup` at most (1 + step) / (10 + step)."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


@torch.no_grad()
def ema_update(ema: dict[str, Tensor], unet: nn.Module, decay: float) -> None:
    """Update the average in place: decay times the old value, plus (1 - decay) times the parameters."""
    torch._foreach_lerp_(list(ema.values()), list(unet.parameters()), 1 - decay)


PIPELINES = {None: "DDIMPipeline", "flow": "DDPMPipeline", "edm": "ConsistencyModelPipeline"}
"""Process -> diffusers' pipeline that samples a UNet2DModel of it. DDIMPipeline would replace another scheduler by its
own, and DDPMPipeline scales neither x_T nor what the network is given, as EDM needs."""


def save_pipeline(folder: Path, unet: UNet2DModel, ema: Mapping[str, Tensor], diffusion: Diffusion) -> None:
    """Write what `diffusers.DiffusionPipeline.from_pretrained(folder)` reads, in safetensors. unet/ holds the averaged
    weights. The raw ones are in unet_raw/, which is not a component of the pipeline."""
    import diffusers

    raw = copy.deepcopy(unet).to(device="cpu", memory_format=torch.contiguous_format)
    averaged = copy.deepcopy(raw)
    averaged.load_state_dict({name: tensor.to("cpu") for name, tensor in ema.items()})
    height, width = averaged.config.sample_size
    if diffusion.process == "edm" and height == width:
        averaged.register_to_config(sample_size=height)  # a ConsistencyModelPipeline takes no pair
    name, arguments = written(diffusion)
    scheduler = getattr(diffusers, name)(**arguments)
    pipeline = getattr(diffusers, PIPELINES[diffusion.process])(unet=averaged, scheduler=scheduler)
    pipeline.save_pretrained(folder, safe_serialization=True)
    raw.save_pretrained(folder / "unet_raw", safe_serialization=True)


def load_unet(saved: SavedNetwork, device: str, how: Policy) -> Denoiser:
    """The saved network, for inference on `device` as `how` says. Only tensors are unpickled. Raises `WorkerRefusal` if
    this node has other files in the folder than the driver, or none; or if the weights do not fit the config.json next
    to them, or hold more than tensors; `OSError` if they can't be read."""
    unet = read_saved(saved)
    if how.weights is not None:
        cast_weights(unet, how.weights, but=("time_proj",))
    layout = getattr(torch, how.layout)
    unet = unet.to(device=device, memory_format=layout).eval()
    module: Callable[..., Any] = unet
    if how.compile != "none":
        from taugrid.workers.accelerator.compiled import by_torch  # torch's compiler takes a second to import

        module = by_torch(unet, how.layout)

    @torch.inference_mode()
    def network(x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        output: Tensor = module(x.contiguous(memory_format=layout), t, *labels, return_dict=False)[0]
        return output if output.shape == x.shape else output[:, : x.shape[1]]  # without DiT's learned sigma

    return FromTimes(network)


def read_saved(saved: SavedNetwork) -> Any:
    """The module of diffusers in a folder, in float32 on the CPU; raises the errors of `load_unet`."""
    folder, settings = Path(saved.folder), dict[str, Any]()
    file = folder / CONFIG_FILE
    with verified_copy(weights_file(folder, saved.storage), saved.weights_sha256, saved.storage) as weights:
        try:
            settings = json.loads(saved.storage.read(file))
            actual = config_sha256(settings)
        except (FileNotFoundError, ValueError, AttributeError):  # missing, no JSON, or no object
            actual = "no config"
        require_same(file, actual, saved.config_sha256)
        settings.pop("null_label", None)  # diffusers would warn of a key that it does not know
        weights.with_name(CONFIG_FILE).write_text(json.dumps(settings))
        return _from_folder(weights.parent, folder, saved.kind)


def _from_folder(private: Path, folder: Path, kind: str) -> Any:
    """The network of class `kind` in `private`, a copy of `folder`; messages name `folder`."""
    import diffusers

    file = folder / weights_file(private).name
    is_pickled = file.name != WEIGHTS_FILE
    if is_pickled:
        try:
            torch.load(private / file.name, map_location="meta", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise WorkerRefusal(
                f"{file} is damaged or holds more than tensors, which could run code, so it was not opened; use "
                "safetensors"
            ) from error
    try:
        network, info = getattr(diffusers, kind).from_pretrained(
            private,
            torch_dtype=torch.float32,
            use_safetensors=not is_pickled,
            local_files_only=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # refused below, with the other mistakes
            output_loading_info=True,
        )
    except ValueError as error:
        raise WorkerRefusal(f"{folder}/config.json is not a {kind}'s: {joined_lines(error)}") from error
    shapes = [f"{name} {list(theirs)}, not {list(ours)}" for name, theirs, ours in info["mismatched_keys"]]
    wrong = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"], "of another shape": shapes}
    faults = [f"{fault}: {listed(sorted(names), MAX_NAMED)}" for fault, names in wrong.items() if names]
    if faults:
        raise WorkerRefusal(f"{file} does not fit the config.json next to it ({'; '.join(faults)})")
    return network


def load_vae(saved: SavedNetwork, device: str, how: Policy) -> nn.Module:
    """The half of a saved VAE that decodes, on `device`; raises the errors of `load_unet`."""
    vae = read_saved(saved)
    for name in ("encoder", "quant_conv"):
        setattr(vae, name, None)
    module: nn.Module = vae.to(device=device, memory_format=getattr(torch, how.layout)).eval()
    return module


def decoding(module: nn.Module, vae: Vae, how: Policy, size: int) -> "Decode":
    """A function that decodes at most `size` latents, (B, C, H, W) float32, computing as `how` says. Where `how.pads`,
    zeros fill up fewer, so that libraries choose the same kernels for them."""

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        z = latents / vae.scaling_factor + vae.shift_factor
        if how.pads and len(z) < size:
            z = torch.cat([z, z.new_zeros(size - len(z), *z.shape[1:])])
        half = nullcontext() if how.autocast is None else torch.autocast(z.device.type, getattr(torch, how.autocast))
        with without_tf32(), half:
            pictures: Tensor = module.decode(z, return_dict=False)[0]  # type: ignore[operator]
        return pictures[: len(latents)].float()

    return decode
