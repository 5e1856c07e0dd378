"""Reads the model in a diffusers folder: shapes, scheduler, VAE, SHA-256 of the weights. Imports no torch."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from taugrid.config import Diffusion
from taugrid.config.model import is_hub_id
from taugrid.errors import MissingInput, UserError
from taugrid.hashing import file_sha256, file_start, json_sha256
from taugrid.jobs import Conditions, SavedNetwork
from taugrid.storage import LOCAL, Storage
from taugrid.words import listed
from taugrid.workers import hub
from taugrid.workers.diffusion.decoder import Decoder, Identity, Vae
from taugrid.workers.network.scheduler import read_scheduler

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS_FILE = "diffusion_pytorch_model.bin"
"""Read only if there are no safetensors. Nothing but tensors is unpickled (`weights_only`)."""

NETWORK_FOLDERS = ("unet", "transformer")
VAE_FOLDERS = ("vae", "vqvae")  # where a pipeline holds its network and its VAE

FOLDERS = ("", *(f"{name}/" for name in (*NETWORK_FOLDERS, "unet_raw", "scheduler", *VAE_FOLDERS)))
"""Where a repository may hold the files of a network or a pipeline."""

UNET, DIT = "UNet2DModel", "DiTTransformer2DModel"

NETWORKS = {UNET: UNET, DIT: DIT, "Transformer2DModel": DIT}
"""The class in a network's config.json -> the class that loads it. DiT's first configs name an older class."""

SCALING_FACTORS = {"AutoencoderKL": 0.18215, "VQModel": 1.0}
"""Classes of VAEs -> the factor of configs that were written before diffusers had the key. Latents of a VQModel were
not scaled then; diffusers 0.42 takes 0.18215 for them too (huggingface/diffusers#6725)."""

VAE_DEFAULTS: dict[str, dict[str, Any]] = {
    kind: {"out_channels": 3, "latent_channels": latent_channels, "block_out_channels": [64]}
    for kind, latent_channels in (("AutoencoderKL", 4), ("VQModel", 3))
}
"""Classes of VAEs -> diffusers' defaults of keys that a config may leave out."""

MAX_NAMED = 3

SCHEDULER = "scheduler/scheduler_config.json"

NAMED_BY_NVLABS = re.compile(r"(network-snapshot-|edm2?-).*\.pkl")
"""The names of their files. The function of `model.weights` may open other pickles: those are its user's own."""

OF_NVLABS, NVLABS_BYTES = b"_reconstruct_persistent_obj", 1 << 20
"""How NVlabs' pickles rebuild a network, and the bytes at their start among which it is."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: where its network is, and the settings in its files."""

    path: str  # the value in the config: a folder or an id on the hub
    unet_folder: str
    unet_config: dict[str, Any]
    weights_sha256: str
    diffusion: Diffusion  # keys that the scheduler's config gives; the others are null
    sample: dict[str, Any]  # keys of `sample` that the scheduler's config gives; none without a scheduler
    raw_folder: str | None = None  # the folder of the network before averaging, in pipelines that taugrid trained
    commit: str | None = None
    network: str = UNET  # diffusers' name of the network's class
    vae: Vae | None = None  # what makes pictures of what the network samples; None: those are pictures

    @property
    def conditions(self) -> Conditions | None:
        """The labels that its network takes."""
        return conditions_of(self.unet_config)

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees."""
        return _shape(self.unet_config)

    @property
    def decoder(self) -> Decoder:
        return self.vae or Identity(self.network_shape)

    @property
    def drops_sigma(self) -> bool:
        """Whether the network also predicts a variance (Nichol & Dhariwal 2021), which is not used."""
        return bool(self.unet_config["out_channels"] == 2 * self.unet_config["in_channels"])

    @property
    def recorded(self) -> dict[str, Any]:
        """As JSON, see `restored`."""
        return asdict(self) | {"diffusion": self.diffusion.recorded, "vae": self.vae and self.vae.recorded}

    @classmethod
    def restored(cls, recorded: Mapping[str, Any]) -> "Checkpoint":
        """From what `recorded` returned."""
        vae, diffusion = recorded["vae"], Diffusion.model_validate(recorded["diffusion"])
        return cls(**{**recorded, "diffusion": diffusion, "vae": vae and Vae.restored(vae)})


def _shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return (config["in_channels"], height, width)


def read_checkpoint(path: str, commit: str | None = None, download: bool = True) -> Checkpoint:
    """The model in a folder of a pipeline (network, `scheduler/`, perhaps `vae/`) or of a network alone, or on the hub.

    `commit` selects one on the hub in place of the newest or the revision in `path`. Without `download`, a model on the
    hub is used only if it was downloaded before.

    Raises `MissingInput` if there is no such folder, it is empty, or it lacks the weights or holds only a part of them;
    `UserError` if it is not a network of a class that taugrid loads, or it has a setting that taugrid can't honour."""
    if Path(path).is_dir():
        return _read(path, Path(path), None)
    refuse_pickle("model.checkpoint", path)
    folder = _downloaded(path, "model.checkpoint", commit, download)
    return _read(path, folder, folder.name)


def refuse_pickle(key: str, path: str) -> None:
    """Raise `UserError` if `path` is a pickle of NVlabs' code (edm, edm2), by its name or what it holds. Opening it
    would run the source code in it, so only its bytes are searched."""
    named = path.endswith(".pkl") if key == "model.checkpoint" else NAMED_BY_NVLABS.fullmatch(Path(path).name)
    if not named and not (Path(path).is_file() and OF_NVLABS in file_start(Path(path), NVLABS_BYTES)):
        return
    raise UserError(
        f"{key}: {path} is a pickle as NVlabs' edm writes them, and opening it would run the code in it; in an "
        "environment with their repository, load it once and torch.save its ['ema'].state_dict(); then give a function "
        "that builds the network and loads this file as model.callable, the file as model.weights, and diffusion: "
        "{process: edm, prediction: sample} (docs/custom-network.md)"
    )


def _downloaded(path: str, key: str, commit: str | None, download: bool) -> Path:
    """The folder with the files of a model on the hub. Pickled weights are fetched only where there are no others. A
    pipeline that taugrid can't sample is refused before its weights are fetched."""
    if not is_hub_id(path):
        raise MissingInput(f"{key}: no folder {path!r}; give a diffusers folder, or an id on the hub: org/name")
    names = ["config.json", "scheduler_config.json", "model_index.json", "*.index.json"]
    places = FOLDERS if key == "model.checkpoint" else ("", *(f"{name}/" for name in VAE_FOLDERS))
    files = [place + name for place in places for name in names]
    folder = hub.snapshot(path, files, key, commit, download=download)
    if key == "model.checkpoint":
        _check_components(path, _index(folder))
    files += [place + WEIGHTS_FILE for place in places]
    folder = hub.snapshot(path, files, key, commit, download=download)
    lacking = [place for place in places if not (folder / place / WEIGHTS_FILE).exists()]
    if not any((folder / place / CONFIG_FILE).exists() for place in lacking):
        return folder
    files += [place + PICKLED_WEIGHTS_FILE for place in lacking]
    return hub.snapshot(path, files, key, commit, download=download)


def _index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    return _json(file) if file.is_file() else {}


def _read(path: str, folder: Path, commit: str | None) -> Checkpoint:
    found = [folder / name for name in NETWORK_FOLDERS if (folder / name).is_dir()]
    unet = found[0] if found else folder
    if not (unet / "config.json").is_file():
        is_coming = commit is not None or not any(folder.iterdir())  # a download cut short, or not begun
        raise (MissingInput if is_coming else UserError)(
            f"model.checkpoint: {path} is not a diffusers model: it has neither {folder / 'unet' / 'config.json'} "
            f"nor {folder / 'config.json'}"
        )
    config, index = _json(unet / "config.json"), _index(folder)
    _check_components(path, index)
    kind = _check_network(unet, config)
    weights = weights_file(unet)
    digest = weights_sha256(weights)
    _check_whole("model.checkpoint", weights)
    if (place := _scheduler(folder)) is None and index.get("scheduler"):
        raise UserError(
            f"model.checkpoint: {path} names a scheduler in model_index.json, but there is no {folder / SCHEDULER}, so "
            "its noise schedule is unknown; put it there, or give only the unet folder and set diffusion"
        )
    diffusion, sample = (Diffusion(), {}) if place is None else read_scheduler(_json(place), place)
    raw = folder / "unet_raw"
    named = [name for name in VAE_FOLDERS if index.get(name) or (folder / name).is_dir()]
    return Checkpoint(
        path=path,
        unet_folder=str(unet.resolve()),
        unet_config=_settings(config),
        weights_sha256=digest,
        diffusion=diffusion,
        sample=sample,
        raw_folder=str(raw.resolve()) if found and raw.is_dir() else None,
        commit=commit,
        network=kind,
        vae=_vae("model.checkpoint", path, folder / named[0], _shape(config)) if found and named else None,
    )


def _scheduler(folder: Path) -> Path | None:
    places = folder / SCHEDULER, folder / Path(SCHEDULER).name
    return next((place for place in places if place.is_file()), None)


def is_lcm(checkpoint: Checkpoint) -> bool:
    """Whether it is a latent consistency model, by its scheduler."""
    folder = Path(checkpoint.unet_folder)
    place = _scheduler(folder) or _scheduler(folder.parent)
    return place is not None and _json(place).get("_class_name") == "LCMScheduler"


def read_vae(path: str, of: Vae, commit: str | None = None, download: bool = True) -> Vae:
    """The VAE in a folder of its own or of a pipeline, or on the hub, which replaces a pipeline's: `of`.

    `commit` and `download` are as of `read_checkpoint`.

    Raises `MissingInput` if there is no such folder, or it lacks the weights or holds only a part of them; `UserError`
    if it is not a VAE that taugrid loads, or takes other latents or makes other pictures than `of`."""
    is_folder = Path(path).is_dir()
    folder = Path(path) if is_folder else _downloaded(path, "model.vae", commit, download)
    own = next((folder / name for name in VAE_FOLDERS if (folder / name).is_dir()), folder)
    vae = replace(_vae("model.vae", path, own, of.network_shape), commit=None if is_folder else folder.name)
    if vae.picture_shape != of.picture_shape:
        raise UserError(
            f"model.vae: {path} makes pictures of {vae.picture_shape} (channels, height, width) of this network's "
            f"latents, but its own VAE ({of.path}) makes {of.picture_shape}; give one with the same factor of reduction"
        )
    return vae


def _vae(key: str, path: str, folder: Path, latent_shape: tuple[int, int, int]) -> Vae:
    """The VAE in a folder, for latents of (channels, height, width); `key` is the config's that names `path`."""
    if not (folder / CONFIG_FILE).is_file():
        raise MissingInput(f"{key}: {path} lacks its VAE: there is no {folder / CONFIG_FILE}")
    config = _json(folder / CONFIG_FILE)
    kind = config.get("_class_name")
    if kind not in SCALING_FACTORS:
        raise UserError(f"{key}: {folder} holds a {kind}, but taugrid loads VAEs of {' and '.join(SCALING_FACTORS)}")
    if refused := [name for name in ("latents_mean", "latents_std") if config.get(name) is not None]:
        raise UserError(f"{key}: taugrid can't honour {refused[0]} in {folder / CONFIG_FILE}")
    config = VAE_DEFAULTS[kind] | config
    channels, blocks = config["latent_channels"], len(config["block_out_channels"])
    if channels != latent_shape[0]:
        raise UserError(
            f"{key}: the VAE of {path} takes latents of {channels} channels, but the network makes {latent_shape[0]}; "
            "give the VAE that the network was trained with"
        )
    saved = saved_network(folder.resolve())
    _check_whole(key, weights_file(folder))
    times = 2 ** (blocks - 1)
    given = {name: config.get(name) for name in ("scaling_factor", "shift_factor")}
    return Vae(
        path=path,
        saved=saved,
        scaling_factor=SCALING_FACTORS[kind] if given["scaling_factor"] is None else float(given["scaling_factor"]),
        shift_factor=float(given["shift_factor"] or 0.0),
        network_shape=latent_shape,
        picture_shape=(config["out_channels"], latent_shape[1] * times, latent_shape[2] * times),
    )


def saved_network(folder: Path, storage: Storage = LOCAL) -> SavedNetwork:
    """The network in a folder as a job names it, by what its files hold now; UserError if one is missing."""
    digest, config = weights_sha256(weights_file(folder, storage), storage), _json(folder / CONFIG_FILE, storage)
    kind = str(config.get("_class_name", UNET))
    known = conditions_of(config)
    return SavedNetwork(str(folder), digest, config_sha256(config), storage, known, NETWORKS.get(kind, kind))


def conditions_of(config: Mapping[str, Any]) -> Conditions | None:
    """The labels that a network with this config takes. `null_label`, which taugrid writes, is the last row of the
    table of classes; diffusers has no such key. DiT's table has a row more than classes, for none: its training dropped
    labels."""
    if (classes := config.get("num_embeds_ada_norm")) is not None:
        return Conditions(classes, classes)
    rows, null_label = config.get("num_class_embeds"), config.get("null_label")
    return None if rows is None else Conditions(rows if null_label is None else null_label, null_label)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256 of the settings in a network's config.json, without `_diffusers_version` and `_class_name`."""
    return json_sha256(_settings(config))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _check_components(path: str, components: dict[str, Any]) -> None:
    """Refuse a pipeline with more than a network, a scheduler and a VAE."""
    known = (*NETWORK_FOLDERS, "scheduler", *VAE_FOLDERS)
    others = [
        name
        for name, library in components.items()
        if not name.startswith("_") and name not in known and isinstance(library, list) and any(library)
    ]
    if others:
        raise UserError(
            f"model.checkpoint: {path} has {listed(others, MAX_NAMED)}, but taugrid only samples pipelines of a "
            "network, a scheduler and, for latents, a VAE (none of prompts)"
        )


def _check_network(folder: Path, config: dict[str, Any]) -> str:
    """Diffusers' name of the class of the network in a folder; `UserError` if taugrid can't sample it."""
    kind = NETWORKS.get(str(config.get("_class_name")))
    if kind is None:
        raise UserError(
            f"model.checkpoint: {folder} holds a {config.get('_class_name')}, but taugrid loads {UNET} and {DIT}"
        )
    required = {"sample_size", "in_channels", "out_channels", *(("num_embeds_ada_norm",) if kind == DIT else ())}
    for key in (*sorted(required), "num_class_embeds"):
        value = config.get(key)
        counts = value if key == "sample_size" and isinstance(value, list) and len(value) == 2 else [value]
        if (value is not None or key in required) and not all(type(each) is int and each > 0 for each in counts):
            wanted = "a whole number, or [height, width]" if key == "sample_size" else "a whole number"
            raise UserError(
                f"model.checkpoint: {folder / CONFIG_FILE}: {key} must be {wanted}, not {json.dumps(value)}"
            )
    inputs, outputs, rows = config["in_channels"], config["out_channels"], config.get("num_class_embeds")
    embedded, null_label = config.get("class_embed_type"), config.get("null_label")
    unsupported = {
        f"out_channels: {outputs} with in_channels: {inputs}": outputs != inputs
        and (kind, outputs) != (DIT, 2 * inputs),
        f"class_embed_type: {embedded}": embedded is not None,  # labels are passed to num_class_embeds alone
        f"null_label: {null_label} with num_class_embeds: {rows}": rows is not None
        and null_label not in (None, rows - 1),
        "time_embedding_type: fourier": config.get("time_embedding_type") == "fourier",  # of noise levels
    }
    if refused := [setting for setting, refuse in unsupported.items() if refuse]:
        raise UserError(f"model.checkpoint: taugrid can't honour {', '.join(refused)} in {folder / CONFIG_FILE}")
    return kind


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


def parameters(path: Path, storage: Storage = LOCAL) -> int | None:
    """The number of parameters in a file of weights on this machine; None: it is not here, or not whole. It is read off
    the header of safetensors. A pickle is taken to be in float32."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix != ".safetensors":
            return storage.stat(path).size // 4
        with safe_open(path, framework="numpy") as file:
            shapes: list[list[int]] = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 no dict
            return sum(map(math.prod, shapes))
    except (OSError, SafetensorError):
        return None


@cache  # of any number of models: a plan's cells may come back to each of them in turn
def _sha256(path: Path, storage: Storage, version: str) -> str:
    with storage.local_path(path) as local:
        return file_sha256(local)


def _check_whole(key: str, path: Path) -> None:
    """Refuse weights in several files, or not all of them. Loading the network checks the rest."""
    from safetensors import SafetensorError, safe_open

    index = path.with_name(f"{path.name}.index.json")
    if index.is_file():  # diffusers would prefer what it lists
        raise UserError(f"{key}: {index} says that the weights are in several files; save them in one")
    if path.name == PICKLED_WEIGHTS_FILE:
        return
    try:
        with safe_open(path, framework="numpy"):
            return
    except SafetensorError as error:
        raise MissingInput(
            f"{key}: {path} is not a complete safetensors file ({error}); get it again (with git lfs "
            "pull, if it is a Git LFS pointer)"
        ) from None


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
