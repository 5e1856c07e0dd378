"""The config that `taugrid init` writes: what fits a checkpoint and images, with a comment on each key."""

import re
from collections.abc import Mapping
from itertools import islice
from math import prod
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

from taugrid.config import Config, Data, Diffusion, ModelSection, validate
from taugrid.config.model import is_hub_id
from taugrid.errors import MissingInput, UserError
from taugrid.orchestrator.plan.sections import diffusion_section
from taugrid.registry.datasets import DATASETS, Shape
from taugrid.registry.extractors import EXTRACTORS, INCEPTION
from taugrid.registry.metrics import METRICS
from taugrid.registry.samplers import CONSISTENCY, LCM
from taugrid.workers import schedules
from taugrid.workers.network.checkpoint import Checkpoint, is_lcm, read_checkpoint
from taugrid.yaml_text import from_yaml, to_yaml

ORACLES = get_args(get_args(ModelSection.model_fields["oracle"].annotation)[0])
"""Data sets whose best network is known in closed form."""

LOOKED_AT = 16
"""Images of a folder whose sizes say what shape to take."""

WHOLE, PART = 256, 64
"""Images of one size are taken as they are up to `WHOLE` pixels a side, others are cut to squares of at most `PART`."""

TEXT = """\
# Written by `taugrid init`. Next: `taugrid plan FILE` says what it costs, and `taugrid run FILE` runs it.
# For an editor that knows all keys: `taugrid config schema > schema.json` here, and this as the first line:
# `# yaml-language-server: $schema=schema.json`
name: {name}  # without --out, a run is in runs/{folder}

# What a network learns, and what samples are compared with.{about_data}
data: {data}

{model}

sample:
  num_samples: {num_samples}  # N, images of each cell; papers take 50000, and it may grow later
  batch_size: {batch_size}  # images at once
  {labels}labels: balanced  # as many images of each class; or random, a class, a list
  {clip}  # limits predictions to [-1, 1]; a latent has no such limit
  # precision: bf16  # faster on a GPU; the default is float32
  # seed: 0  # of the noise, which all cells share

# The process is {process}.
# A cell for each combination of a line's values: keys of sample, and others such as diffusion.schedule.
grid:
{grid}

evaluate:
  {extractor}  # whose features are compared
  metrics: {metrics}  # some of {all_metrics}
  # reference: FOLDER  # other images to compare with, or an .npz; by default data

# cluster: {{workers: 4}}  # upper limit; default: as many as fit
"""

UNET = """\
# A network to train. One that there is: model: {{checkpoint: FOLDER}}, or {{callable: module:function}}.
model:
  unet:
    block_out_channels: {widths}
    layers_per_block: {layers}
    down_block_types: {down}
    up_block_types: {up}
    norm_num_groups: {groups}

train:
  steps: {steps}  # of the optimiser; raise it later, and training goes on
  batch_size: {batch}  # images of one step, over all workers
  learning_rate: {rate}  # at the end of the warm-up
  warmup_steps: {warmup}  # over which it rises
  ema_decay: {ema}  # of the averaged weights, which are sampled
  # flip: true  # mirrors half of the images: not where left and right differ
  checkpoint_every: {every}  # steps; a killed training goes on from the last checkpoint
  workers: {workers}  # training processes; on GPUs one each"""

NOT_HERE = "not here yet: `taugrid init` again once it is, and its shape, classes and process are known"


def new_config(checkpoint: str | None, data: str | None, trains: bool, name: str | None) -> str:
    """A config for a checkpoint, or for images that a network is trained on; by default the demo's.

    `checkpoint` is a diffusers folder or an id on the hub; what is not here yet leaves questions open. `data` is NAME,
    NAME/CATEGORY or NAME:ROOT of a data set; None: one of the checkpoint's shape, or digits. `trains` trains a U-Net on
    a data set whose oracle would be taken. `UserError` if there is no such checkpoint or data set, or they don't fit.
    """
    loaded = None
    if checkpoint is not None:
        try:
            loaded = read_checkpoint(checkpoint, download=False)
        except MissingInput:
            if Path(checkpoint).exists() or not is_hub_id(checkpoint):
                raise
    section, about = _data(data, loaded, checkpoint)
    images = validate(Data, section, "--data")
    oracle = images.name if checkpoint is None and images.name in ORACLES and not trains else None
    extractor = EXTRACTORS[images.dataset.extractor or INCEPTION]
    source = Path(checkpoint or images.full_name.replace("/", "-")).name
    folder = name or re.sub(r"[^\w.-]+", "-", source).strip("-._") or "mine"
    validate(Config, {"name": folder}, "init")  # a comment has it too, which another name could end
    pixels = prod(images.image_shape if loaded is None else loaded.network_shape)
    process = diffusion_section(Diffusion(), Diffusion() if loaded is None else loaded.diffusion)
    is_assumed = loaded is not None and loaded.diffusion == Diffusion()
    shift = None if loaded is None else loaded.sample.get("shift")
    doubt = "; the checkpoint does not say it: set diffusion if it is another" if is_assumed else ""
    about_process = process.in_words + (f", shift {shift:g}" if shift else "") + doubt
    has_classes = oracle == "classes" or (loaded is not None and loaded.conditions is not None)
    text = TEXT.format(
        name=_yaml(folder),
        folder=folder,
        about_data=about and f"\n# {about}",
        data=_yaml(section),
        model=_unet(images.image_shape)
        if checkpoint is None and oracle is None
        else _model(checkpoint, loaded, oracle),
        num_samples=10_000 if extractor.name == INCEPTION else 1000,
        batch_size=250 if pixels <= 3 * 32**2 else 64 if pixels <= 3 * 64**2 else 16,
        labels="" if has_classes else "# ",
        clip="clip: none" if loaded is not None and loaded.vae is not None else "# clip: x0",
        process="the checkpoint's" if checkpoint is not None and loaded is None else about_process,
        grid="\n".join(f"  - {_yaml(row)}" for row in _grid(process, checkpoint, loaded, oracle)),
        extractor=f"{'' if images.dataset.extractor is None else '# '}extractor: {extractor.name}",
        metrics=_yaml(["fid", "isc", "kid"] if extractor.logits_layer else ["fid", "kid"]),
        all_metrics=", ".join(METRICS),
    )
    validate(Config, from_yaml(text), "init")
    return text


def _size(shape: Shape | None) -> str:
    return "x".join(map(str, shape or ()))


def _yaml(value: Any) -> str:
    """A value on one line."""
    return to_yaml([value], default_flow_style=True, width=10**6).strip()[1:-1]


def _data(given: str | None, loaded: Checkpoint | None, checkpoint: str | None) -> tuple[dict[str, Any], str]:
    """The section `data`, and a comment on it."""
    shape = None if loaded is None else loaded.decoder.picture_shape
    if given is None:
        if checkpoint is None:
            return {"name": "digits", "split": "train"}, ""
        for name, dataset in DATASETS.items():
            if shape == dataset.shape and name not in ORACLES and not dataset.required:
                known = "Chosen by their shape: set what the checkpoint was trained on."
                return {"name": name, "split": "train"}, known
        folder = {"name": "folder", "root": "path/to/images", "shape": list(shape or (3, WHOLE, WHOLE))}
        also = "" if shape else " and shape"
        return folder, f"Set root{also} to those of the images that the checkpoint was trained on."
    name, _, root = given.partition(":")
    name, _, category = name.partition("/")
    if name not in DATASETS and Path(given).is_dir():
        name, category, root = "folder", "", given
    if name not in DATASETS:
        validate(Data, {"name": name}, "--data")
    dataset = DATASETS[name]
    for key, value in (("root", root), ("category", category)):
        if key in dataset.required and not value:
            raise UserError(f"--data {given}: {key} is missing, as in {name}{':DIR' if key == 'root' else '/bedroom'}")
    place = root if "://" in root else str(Path(root).expanduser().absolute())
    section = {"name": name} | ({"category": category} if category else {}) | ({"root": place} if root else {})
    if dataset.shape is None:
        seen, more, about = _look(section)
        return section | {"shape": list(shape or seen)} | more, about
    if shape in (None, dataset.shape):
        about = "download: true downloads them." if "download" in dataset.keys else ""
        return section | {"split": "train"}, about
    if "shape" not in dataset.keys:
        raise UserError(
            f"--data {name}: its images are {_size(dataset.shape)}, but {checkpoint} makes {_size(shape)}; give "
            "--data folder:DIR or parquet:DIR, which are resized, or leave it out"
        )
    return section | {"shape": list(shape or ()), "split": "train"}, ""


def _look(section: Mapping[str, Any]) -> tuple[Shape, dict[str, Any], str]:
    """The shape for the first images of a folder or of Parquet files, their split, and a comment."""
    read = resolve_name(DATASETS[section["name"]].reader)
    more: dict[str, Any] = {"split": "train"}
    try:
        encoded = read(Data(**section, **more, shape=(3, 1, 1)))
    except UserError:
        encoded, more = read(Data(**section, shape=(3, 1, 1))), {}
    shapes = {image.pixels.shape for image in islice(encoded.reader.images(), LOOKED_AT)}
    channels, sizes = max(shape[0] for shape in shapes), {shape[1:] for shape in shapes}
    if len(sizes) == 1 and max(max(sizes)) <= WHOLE:
        return (channels, *sizes.pop()), more, ""
    side = min(2 ** (min(map(min, sizes)).bit_length() - 1), PART)
    return (channels, side, side), more, "They are resized and cropped to this shape."


def _model(checkpoint: str | None, loaded: Checkpoint | None, oracle: str | None) -> str:
    if checkpoint is None:
        return f"model:\n  oracle: {oracle}  # the best prediction there is, in closed form"
    words = NOT_HERE if loaded is None else f"{loaded.network} of {_size(loaded.network_shape)}"
    words += f" with {loaded.conditions.in_words}" if loaded is not None and loaded.conditions is not None else ""
    path = str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint
    text = f"model:\n  checkpoint: {_yaml(path)}  # {words}"
    if loaded is not None and loaded.vae is not None:
        text += f"\n  # vae: FOLDER  # in place of its own, whose pictures are {_size(loaded.vae.picture_shape)}"
    return text


def _unet(shape: Shape) -> str:
    """The sections `model` and `train` of a network like those of Ho et al. 2020, in proportion to the images."""
    side, scales = min(shape[1:]), [1]
    while all(length % (2 * scales[-1]) == 0 for length in shape[1:]) and side // scales[-1] >= 8 and len(scales) < 6:
        scales.append(2 * scales[-1])
    levels, is_small = len(scales), side <= 28
    kinds = ["DownBlock2D"] * levels
    attends = next((level for level, scale in enumerate(scales) if level and side // scale <= 16), levels - 1)
    kinds[attends] = "AttnDownBlock2D"
    width = 32 if is_small else 64 if side <= PART else 128
    small = (2000, 128, 0.002, 100, 0.995, 400) if side <= 8 else (5000, 64, 0.001, 200, 0.999, 500)
    train = small if is_small else (100_000, 128, 0.0002, 5000, 0.9999, 5000)
    return UNET.format(
        widths=[width, *[width * (1 if levels < 3 else 2)] * (levels - 1)],
        layers=1 if is_small else 2,
        down=_yaml(kinds),
        up=_yaml([kind.replace("Down", "Up") for kind in reversed(kinds)]),
        groups=8 if is_small else 32,
        workers=2 if is_small else 1,
        **dict(zip(("steps", "batch", "rate", "warmup", "ema", "every"), train, strict=True)),
    )


def _grid(
    process: Diffusion, checkpoint: str | None, loaded: Checkpoint | None, oracle: str | None
) -> list[dict[str, Any]]:
    """The lines of the grid: guidance where there are classes, samplers of a checkpoint, else rows of table 1."""
    timesteps = schedules.process(process).timesteps
    steps = [number for number in (10, 20, 50) if number <= (timesteps or number)] or [1]
    conditions = None if loaded is None else loaded.conditions
    if process.predicts == "consistency":
        return [{"sampler": [CONSISTENCY], "steps": [1, 2, 4]}]
    if loaded is not None and is_lcm(loaded):
        return [{"sampler": [LCM], "steps": [1, 2, 4, 8]}]
    if oracle == "classes" or (conditions is not None and conditions.null_label is not None):
        return [{"guidance": [1.0, 2.0, 4.0], "steps": steps}]
    if oracle is not None:
        return [{"steps": steps, "eta": [0.0, 0.5, 1.0, "sigma_hat"]}]
    if checkpoint is not None:
        ddim = {"sampler": ["ddim"], "steps": steps, "eta": [0.0, 1.0]}
        return [ddim, {"sampler": ["dpm++2m", "heun" if timesteps is None else "unipc"], "steps": steps}]
    return [{"steps": steps, "eta": [0.0, 0.5, 1.0]}, {"steps": steps, "eta": ["sigma_hat"], "clip": ["x0_and_eps"]}]
