"""diffusers' UNet2DModel: built from the config, and loaded from a folder."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taugrid.config import Unet
from taugrid.errors import WrongWeights
from taugrid.jobs import SavedUnet
from taugrid.storage import Storage
from taugrid.words import listed
from taugrid.workers.content import require_same, verified_copy
from taugrid.workers.diffusion.denoiser import Denoiser, from_times
from taugrid.workers.network.checkpoint import (
    CONFIG_FILE,
    MOST_NAMED,
    WEIGHTS_FILE,
    config_sha256,
    weights_file,
)
from taugrid.workers.network.diffusers_unet import UNet2DModel


def build_unet(unet: Unet, image_shape: tuple[int, int, int]) -> UNet2DModel:
    """A network for images of (channels, height, width), with random weights from torch's global generator."""
    channels, height, width = image_shape
    size = {"sample_size": (height, width), "in_channels": channels, "out_channels": channels}
    return UNet2DModel(**size, **unet.model_dump())


def load_unet(saved: SavedUnet, device: str, compiled: bool = False) -> Denoiser:
    """The saved UNet2DModel, for inference on `device`. Only tensors are unpickled.

    Raises:
        OtherContent: if this node has other files in the folder than the driver, or none.
        OSError: if they can't be read.
        WrongWeights: if the weights do not fit the config.json next to them, or hold more than tensors.
    """
    folder = Path(saved.folder)
    with verified_copy(weights_file(folder, saved.storage), saved.weights_sha256, saved.storage) as weights:
        weights.with_name(CONFIG_FILE).write_bytes(_config(folder / CONFIG_FILE, saved.config_sha256, saved.storage))
        unet = _from_folder(weights.parent, folder)
    unet = unet.to(device=device, memory_format=torch.channels_last).eval()
    module: Callable[..., Any] = unet
    if compiled:
        from taugrid.workers.accelerator.compiled import by_torch  # torch's compiler takes a second to import

        module = by_torch(unet)

    @torch.inference_mode()
    def network(x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = module(x.contiguous(memory_format=torch.channels_last), t, return_dict=False)[0]
        return output

    return from_times(network)


def _config(file: Path, sha256: str, storage: Storage) -> bytes:
    """The bytes of a config.json that says what the driver read; OtherContent if it does not."""
    try:
        data = storage.read(file)
        found = config_sha256(json.loads(data))
    except (FileNotFoundError, ValueError, AttributeError):  # missing, no JSON, or no object
        found = "no config"
    require_same(file, found, sha256)
    return data


def _from_folder(copy: Path, folder: Path) -> UNet2DModel:
    """The network in `copy`, a private copy of `folder`; messages name `folder`."""
    file = folder / weights_file(copy).name
    is_pickled = file.name != WEIGHTS_FILE
    if is_pickled:
        _require_tensors(copy / file.name, file)
    try:
        unet, found = UNet2DModel.from_pretrained(
            copy,
            torch_dtype=torch.float32,
            use_safetensors=not is_pickled,
            local_files_only=True,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True,  # refused below, with the other mistakes
            output_loading_info=True,
        )
    except ValueError as error:
        raise WrongWeights(f"{folder}/config.json is not a UNet2DModel's: {' '.join(str(error).split())}") from error
    shapes = [f"{name} {list(theirs)}, not {list(ours)}" for name, theirs, ours in found["mismatched_keys"]]
    wrong = {"missing": found["missing_keys"], "unexpected": found["unexpected_keys"], "of another shape": shapes}
    faults = [f"{fault}: {listed(sorted(names), MOST_NAMED)}" for fault, names in wrong.items() if names]
    if faults:
        raise WrongWeights(f"{file} does not fit the config.json next to it ({'; '.join(faults)})")
    return unet


def _require_tensors(copy: Path, file: Path) -> None:
    try:
        torch.load(copy, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise WrongWeights(
            f"{file} is damaged or holds more than tensors, which could run code, so it was not opened; use safetensors"
        ) from error
