"""Which feature extractors there are, and where their weights lie. Imports no torch: asked before any device is."""

import difflib
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

DIGITS_CONVNET = "digits-convnet"
INCEPTION = "inception-v3-compat"
DINOV2 = "dinov2-vit-b-14"
PIXELS = "pixels"
"""The image itself as features, for data whose distances in pixels mean something: no weights, no classes."""

DEFAULTS = {"digits": DIGITS_CONVNET, "gaussian": PIXELS, "two-points": PIXELS}
"""Data set -> its extractor; Inception for any other."""

DINOV2_HUB_REPOSITORY = "facebookresearch/dinov2"


class Known(NamedTuple):
    """An extractor as its library describes it; `url` and `cached_as` are None where the weights ship with taugrid."""

    feature_layer: str
    logits_layer: str | None
    dimensions: int
    classes: int | None
    """Width of the logits; None where there are none."""
    url: str | None
    cached_as: str | None
    """The name torch-fidelity gives the file in torch's hub folder."""


# The layers are torch-fidelity's defaults. Its default `isc` layer of vgg16, CLIP and DINOv2 holds features, no
# classifier's logits, and an Inception Score of those means nothing: they get no logits layer.
KNOWN = {
    DIGITS_CONVNET: Known("64", "logits", 64, 10, None, None),
    INCEPTION: Known(
        "2048",
        "logits_unbiased",
        2048,
        1008,
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "vgg16": Known(
        "fc2_relu",
        None,
        4096,
        None,
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "vgg16-397923af.pth",
    ),
    "clip-vit-b-32": Known(
        "clip",
        None,
        512,
        None,
        "https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "clip-vit-b-32-40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af.pt",
    ),
    DINOV2: Known(
        "dinov2",
        None,
        768,
        None,
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "dinov2_vitb14_pretrain.pth",
    ),
}


@dataclass(frozen=True)
class ExtractorSpec:
    """What determines a feature: the extractor, the content of its weights, and the layers that are read."""

    name: str
    weights_path: str | None
    """None: the weights that ship with taugrid, wherever it is installed, or none at all (pixels)."""
    weights_sha256: str
    feature_layer: str
    logits_layer: str | None
    """None: no logits, so no Inception Score."""
    dimensions: int
    """Width of the features."""
    classes: int | None
    """Width of the logits; None where there are none."""


def resolve(name: str | None, data_name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """The extractor that `evaluate.extractor` and `evaluate.weights` mean for the data set `data_name`.

    `name` None chooses by data: digits-convnet for `digits`, pixels for distributions, else torch-fidelity's Inception.
    `weights` None is the file that ships with taugrid, or the one that torch-fidelity has in torch's hub folder;
    nothing is downloaded. `image_shape` is (channels, height, width).

    Raises:
        ValueError: one line, for an unknown name, a file of weights that is not there, or an extractor that takes none.
    """
    chosen = name or DEFAULTS.get(data_name, INCEPTION)
    if chosen == PIXELS:
        if weights is not None:
            raise ValueError(f"evaluate.weights: {PIXELS} has no weights; leave them out")
        no_weights = hashlib.sha256(b"").hexdigest()
        return ExtractorSpec(PIXELS, None, no_weights, PIXELS, None, math.prod(image_shape), None)
    if chosen not in KNOWN:
        names = (*KNOWN, PIXELS)
        near = difflib.get_close_matches(chosen, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "there is none of that name"
        raise ValueError(f"unknown extractor {chosen!r} ({hint}; known: {', '.join(names)})")
    known = KNOWN[chosen]
    path = _weights_path(chosen, known, weights)
    return ExtractorSpec(
        name=chosen,
        weights_path=None if path is None else str(path),
        weights_sha256=sha256(shipped_weights() if path is None else path),
        feature_layer=known.feature_layer,
        logits_layer=known.logits_layer,
        dimensions=known.dimensions,
        classes=known.classes,
    )


def _weights_path(name: str, known: Known, weights: str | None) -> Path | None:
    if weights is not None:
        if name == DINOV2:
            raise ValueError(f"{name} takes no weights path in torch-fidelity: leave evaluate.weights out")
        path = Path(weights).expanduser().absolute()
        if not path.is_file():
            raise ValueError(f"evaluate.weights: there is no file {path}")
        return path
    if known.cached_as is None:
        return None
    path = torch_hub_folder() / "checkpoints" / known.cached_as
    if name == DINOV2:
        _require_dinov2(path, known)
    elif not path.is_file():
        raise ValueError(
            f"the weights of {name} are not here: download {known.url} to {path}, "
            "or give a file with evaluate.weights: PATH (taugrid downloads nothing itself)"
        )
    return path


def _require_dinov2(path: Path, known: Known) -> None:
    """torch-fidelity runs DINOv2's code from torch's hub folder, so both the code and the weights must be there."""
    folder = DINOV2_HUB_REPOSITORY.replace("/", "_")
    code = [torch_hub_folder() / f"{folder}_{branch}" for branch in ("main", "master")]
    if not path.is_file() or not any(c.is_dir() for c in code):
        raise ValueError(
            f"{DINOV2} needs its code in {code[0]} and its weights in {path} (from {known.url}): "
            f"run torch.hub.load({DINOV2_HUB_REPOSITORY!r}, 'dinov2_vitb14') once where there is a network"
        )


def torch_hub_folder() -> Path:
    """The folder in which torch.hub keeps what it downloads, without importing torch to ask."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache, "torch")))
    return Path(home, "hub").expanduser()


def shipped_weights() -> Path:
    """The digits-convnet weights of this installation."""
    return Path(__file__).parent / "weights" / f"{DIGITS_CONVNET}.safetensors"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
