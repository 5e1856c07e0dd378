"""Reads the model in a diffusers folder: shapes, scheduler, SHA-256 of the weights. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from taugrid.config import Diffusion
from taugrid.config.model import is_hub_id
from taugrid.errors import MissingInput, UserError
from taugrid.hashing import file_sha256, json_sha256
from taugrid.jobs import Conditions, SavedUnet
from taugrid.storage import LOCAL, Storage
from taugrid.words import listed
from taugrid.workers import hub
from taugrid.workers.network.scheduler import read_scheduler

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS_FILE = "diffusion_pytorch_model.bin"
"""Read only if there are no safetensors. Nothing but tensors is unpickled (`weights_only`)."""

FOLDERS = ("", "unet/", "unet_raw/", "scheduler/")
"""Where a repository may hold the files of a network or a pipeline."""

MAX_NAMED = 3


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: where its network is, and the settings in its files."""

    path: str
    """The value in the config: a folder or an id on the hub."""
    unet_folder: str
    unet_config: dict[str, Any]
    weights_sha256: str
    diffusion: Diffusion
    """Keys that the scheduler's config gives; the others are null."""
    sample: dict[str, Any]
    """Keys of `sample` that the scheduler's config gives; none without a scheduler."""
    raw_folder: str | None = None
    """The folder of the network before averaging, in pipelines that taugrid trained."""
    commit: str | None = None

    @property
    def conditions(self) -> Conditions | None:
        """The labels that its network takes."""
        return conditions_of(self.unet_config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        size = self.unet_config["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return (self.unet_config["in_channels"], height, width)


def read_checkpoint(path: str, commit: str | None = None, download: bool = True) -> Checkpoint:
    """The model in a pipeline folder (`unet/`, `scheduler/`), in a bare `UNet2DModel` folder, or on the hub.

    `commit` selects one on the hub in place of the newest or the revision in `path`. Without `download`, a model on the
    hub is used only if it was downloaded before.

    Raises:
        MissingInput: if there is no such folder, it is empty, or it lacks the weights or holds only a part of them.
        UserError: if it is not a `UNet2DModel`, or it has a setting that taugrid can't honour.
    """
    if Path(path).is_dir():
        return _read(path, Path(path), None)
    folder = _downloaded(path, commit, download)
    return _read(path, folder, folder.name)


def _downloaded(path: str, commit: str | None, download: bool) -> Path:
    """The folder with the files of a model on the hub. Pickled weights are fetched only if there are no others."""
    if not is_hub_id(path):
        raise MissingInput(
            f"model.checkpoint: no folder {path!r}; give a diffusers folder, or an id on the hub: org/name"
        )
    names = ["config.json", "scheduler_config.json", "model_index.json", WEIGHTS_FILE, "*.index.json"]
    files = [place + name for place in FOLDERS for name in names]
    folder = hub.snapshot(path, files, "model.checkpoint", commit, download=download)
    if any((folder / place / WEIGHTS_FILE).exists() for place in FOLDERS):
        return folder
    files += [place + PICKLED_WEIGHTS_FILE for place in FOLDERS]
    return hub.snapshot(path, files, "model.checkpoint", commit, download=download)


def _read(path: str, folder: Path, commit: str | None) -> Checkpoint:
    in_pipeline = (folder / "unet").is_dir()
    unet = folder / "unet" if in_pipeline else folder
    if not (unet / "config.json").is_file():
        is_coming = commit is not None or not any(folder.iterdir())  # a download cut short, or not begun
        raise (MissingInput if is_coming else UserError)(
            f"model.checkpoint: {path} is not a diffusers model: it has neither {folder / 'unet' / 'config.json'} "
            f"nor {folder / 'config.json'}"
        )
    config = _json(unet / "config.json")
    index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    _check_components(path, index)
    _check_network(path, unet, config)
    weights = weights_file(unet)
    digest = weights_sha256(weights)
    _check_whole(weights, config)
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    if index.get("scheduler") and not any(place.is_file() for place in places):
        raise UserError(
            f"model.checkpoint: {path} names a scheduler in model_index.json, but there is no {places[0]}, so its "
            "noise schedule is unknown; put it there, or give only the unet folder and set diffusion"
        )
    diffusion, sample = next(
        (read_scheduler(_json(place), place) for place in places if place.is_file()), (Diffusion(), {})
    )
    raw = folder / "unet_raw"
    return Checkpoint(
        path=path,
        unet_folder=str(unet.resolve()),
        unet_config=_settings(config),
        weights_sha256=digest,
        diffusion=diffusion,
        sample=sample,
        raw_folder=str(raw.resolve()) if in_pipeline and raw.is_dir() else None,
        commit=commit,
    )


def saved_unet(folder: Path, storage: Storage = LOCAL) -> SavedUnet:
    """The network in a folder as a job names it, by what its files hold now; UserError if one is missing."""
    digest = weights_sha256(weights_file(folder, storage), storage)
    config = _json(folder / CONFIG_FILE, storage)
    return SavedUnet(str(folder), digest, config_sha256(config), storage, conditions_of(config))


def conditions_of(config: Mapping[str, Any]) -> Conditions | None:
    """The labels that a `UNet2DModel` with this config takes.

    `null_label`, which taugrid writes, is the last row of the table of classes; diffusers has no such key.
    """
    rows, null_label = config.get("num_class_embeds"), config.get("null_label")
    return None if rows is None else Conditions(rows if null_label is None else null_label, null_label)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256 of the settings in a network's config.json, without `_diffusers_version` and `_class_name`."""
    return json_sha256(_settings(config))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _check_components(path: str, components: dict[str, Any]) -> None:
    """Refuse a pipeline with more than a network and a scheduler: a network for latents makes no images."""
    others = [
        name
        for name, library in components.items()
        if not name.startswith("_") and name not in ("unet", "scheduler") and isinstance(library, list) and any(library)
    ]
    if others:
        raise UserError(
            f"model.checkpoint: {path} has {' and '.join(others)} besides its unet, but taugrid only samples networks "
            "whose output is the image itself"
        )


def _check_network(path: str, unet: Path, config: dict[str, Any]) -> None:
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"model.checkpoint: {unet} holds a {config.get('_class_name')}, but taugrid loads UNet2DModel")
    for key in ("sample_size", "in_channels", "out_channels"):
        if config.get(key) is None:
            raise UserError(f"model.checkpoint: {unet / 'config.json'} has no {key!r}, so the images' shape is unknown")
        _check_counts(unet / "config.json", key, config[key])
    channels = (config["in_channels"], config["out_channels"])
    if channels[0] != channels[1]:
        reason = "learned variance" if channels[1] == 2 * channels[0] else "a condition, or another output"
        raise UserError(
            f"model.checkpoint: {path} has {channels[0]} channels in and {channels[1]} out ({reason}?), but taugrid "
            "only samples networks that predict noise alone"
        )
    if (embedded := config.get("class_embed_type")) is not None:
        raise UserError(
            f"model.checkpoint: {path} takes its condition as {embedded} (class_embed_type), but taugrid passes class "
            "labels to networks with num_class_embeds alone"
        )
    if config.get("num_class_embeds") is not None:
        _check_counts(unet / "config.json", "num_class_embeds", config["num_class_embeds"])
        if config.get("null_label") not in (None, config["num_class_embeds"] - 1):
            raise UserError(
                f"model.checkpoint: {unet / 'config.json'}: null_label must be num_class_embeds - 1 = "
                f"{config['num_class_embeds'] - 1}, not {json.dumps(config['null_label'])}"
            )
    if config.get("time_embedding_type") == "fourier":
        raise UserError(
            f"model.checkpoint: {path} needs noise levels (time_embedding_type: fourier), but taugrid passes time steps"
        )


def _check_counts(path: Path, key: str, value: Any) -> None:
    """Refuse a value that is not a number of pixels, channels or classes; `sample_size` may be [height, width]."""
    counts = value if key == "sample_size" and isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(count) is int and count > 0 for count in counts):
        wanted = "a whole number, or [height, width]" if key == "sample_size" else "a whole number"
        raise UserError(f"model.checkpoint: {path}: {key} must be {wanted}, not {json.dumps(value)}")


def weights_file(folder: Path, storage: Storage = LOCAL) -> Path:
    """The file of weights in a network's folder: safetensors, or a pickle if there is nothing else."""
    safe, pickled = folder / WEIGHTS_FILE, folder / PICKLED_WEIGHTS_FILE
    # An object store has only networks that taugrid trained, without pickles.
    return pickled if storage.on_disk and pickled.is_file() and not safe.is_file() else safe


def weights_sha256(path: Path, storage: Storage = LOCAL) -> str:
    """SHA-256 of a file of weights, in hex; MissingInput if there is none. An unchanged file is read only once."""
    try:
        version = storage.stat(path).version
    except (FileNotFoundError, NotADirectoryError):
        suffixes = {".safetensors", ".bin", ".ckpt", ".pt", ".pth"}
        others = [other.name for other in storage.list(path.parent, "*") if other.suffix in suffixes]
        hint = f", only {listed(others, MAX_NAMED)}" if others else ""
        raise MissingInput(
            f"there is no {path}{hint}; a model's weights must be in this one file, as diffusers' save_pretrained "
            "writes it without a variant"
        ) from None
    return _sha256(path, storage, version)


@cache  # of any number of models: a plan's cells may come back to each of them in turn
def _sha256(path: Path, storage: Storage, version: str) -> str:
    with storage.local_path(path) as local:
        return file_sha256(local)


def _check_whole(path: Path, config: dict[str, Any]) -> None:
    """Check what can be checked without torch: the first and last layers. Loading the network checks the rest."""
    from safetensors import SafetensorError, safe_open

    index = path.with_name(f"{path.name}.index.json")
    if index.is_file():  # diffusers would prefer what it lists
        raise UserError(f"model.checkpoint: {index} says that the weights are in several files; save them in one")
    if path.name == PICKLED_WEIGHTS_FILE:
        return
    try:
        with safe_open(path, framework="numpy") as file:
            ends = {"conv_in.weight", "conv_out.weight"} & set(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in ends}
    except SafetensorError as error:
        raise MissingInput(
            f"model.checkpoint: {path} is not a complete safetensors file ({error}); get it again (with git lfs "
            "pull, if it is a Git LFS pointer)"
        ) from None
    for name, axis, key in (("conv_in.weight", 1, "in_channels"), ("conv_out.weight", 0, "out_channels")):
        channels = shapes[name][axis] if name in shapes else None
        if channels != config[key]:
            shown = f"none ({name} is missing)" if channels is None else channels
            raise UserError(f"model.checkpoint: {path} has {key} {shown}, but config.json has {config[key]}")


def _json(path: Path, storage: Storage = LOCAL) -> dict[str, Any]:
    try:
        values = json.loads(storage.read(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"model.checkpoint: there is no {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"model.checkpoint: {path} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"model.checkpoint: {path} does not hold a JSON object")
    return values
