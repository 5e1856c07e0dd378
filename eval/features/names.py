"""Which feature extractors there are, and where their weights lie. Imports no torch: asked before any device is."""

import difflib
import hashlib
import http.client
import math
import os
import re
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from taugrid.hashing import file_sha256
from taugrid.registry.datasets import DATASETS
from taugrid.storage import replacing
from taugrid.workers.custom.describe import ask

DIGITS_CONVNET = "digits-convnet"
FASHION_CONVNET = "fashion-convnet"
INCEPTION = "inception-v3-compat"
CLIP = "clip-vit-b-32"
DINOV2 = "dinov2-vit-b-14"
PIXELS = "pixels"
"""The image itself as features, for data whose distances in pixels mean something: no weights, no classes."""

DINOV2_HUB_REPOSITORY = "facebookresearch/dinov2"

DOWNLOAD_TIMEOUT_SECONDS = 10.0
"""For a connection, and for a silence in the middle of a download: without a network one should hear of it soon."""


class Known(NamedTuple):
    """An extractor as its library describes it; `url` and `cached_as` are None where the weights ship with taugrid."""

    feature_layer: str
    logits_layer: str | None
    dimensions: int
    classes: int | None
    """Width of the logits; None where there are none."""
    url: str | None
    cached_as: str | None
    """The name torch-fidelity gives the file in torch's hub folder: with the start of its SHA-256, except DINOv2's."""
    image_side: int | None = None
    """Height and width of the only images it takes; None: it resizes."""


# The layers are torch-fidelity's defaults. Its default `isc` layer of vgg16, CLIP and DINOv2 holds features, no
# classifier's logits, and an Inception Score of those means nothing: they get no logits layer.
KNOWN = {
    DIGITS_CONVNET: Known("64", "logits", 64, 10, None, None, image_side=8),
    FASHION_CONVNET: Known("64", "logits", 64, 10, None, None, image_side=28),
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
    CLIP: Known(
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
    """None: the weights that ship with taugrid, wherever it is installed, or none at all."""
    weights_sha256: str
    """Of the file of weights. Without one: of everything that a custom class loaded, including weights that it found by
    itself (`workers.custom.source.content_sha256`), or of nothing (pixels)."""
    feature_layer: str
    logits_layer: str | None
    """None: no logits, so no Inception Score."""
    dimensions: int
    """Width of the features."""
    classes: int | None
    """Width of the logits; None where there are none."""
    source_sha256: str | None = None
    """Of the source files of a custom class, its bases and what they import, see `eval.features.custom`; None for
    all others."""

    def describe(self) -> dict[str, str | None]:
        """What protocols and provenance say of it."""
        fields = {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "feature_layer": self.feature_layer,
            "logits_layer": self.logits_layer,
        }
        return fields if self.source_sha256 is None else {**fields, "source_sha256": self.source_sha256}


def resolve(name: str | None, data_name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """The extractor that `evaluate.extractor` and `evaluate.weights` mean for the data set `data_name`.

    `name` None chooses the data set's default (registry/datasets.py), or torch-fidelity's Inception if it has none.
    `package.module:Class` is a custom `torch_fidelity.FeatureExtractorBase`, importable from the current folder or
    from Python's path; another process asks it for its layers. `weights` None is the file that ships with taugrid, or
    the one that torch-fidelity has in torch's hub folder, downloaded where it is missing; a custom class is left to
    find its own. `image_shape` is (channels, height, width).

    Raises:
        ValueError: one line, for an unknown name, images of another size than the extractor takes, a file of weights
            that is not there, can't be downloaded or is not the published one, or a class that can't be used.
    """
    dataset = DATASETS.get(data_name)
    chosen = name or (dataset and dataset.extractor) or INCEPTION
    if ":" in chosen:
        return _custom(chosen, weights, image_shape)
    if chosen == PIXELS:
        if weights is not None:
            raise ValueError(f"evaluate.weights: {PIXELS} has no weights; leave them out")
        no_weights = hashlib.sha256(b"").hexdigest()
        return ExtractorSpec(PIXELS, None, no_weights, PIXELS, None, math.prod(image_shape), None)
    known = _known(chosen)
    side = known.image_side
    if side is not None and image_shape not in ((1, side, side), (3, side, side)):
        raise ValueError(f"{chosen} takes images of {side}x{side} pixels, grey or RGB, not (C, H, W) = {image_shape}")
    path = _weights_path(chosen, known, weights)
    digest = file_sha256(shipped_weights(chosen) if path is None else path)
    if path is not None:
        require_published(chosen, path, digest)
    return ExtractorSpec(
        name=chosen,
        weights_path=None if path is None else str(path),
        weights_sha256=digest,
        feature_layer=known.feature_layer,
        logits_layer=known.logits_layer,
        dimensions=known.dimensions,
        classes=known.classes,
    )


def _known(name: str) -> Known:
    if name in KNOWN:
        return KNOWN[name]
    names = (*KNOWN, PIXELS)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there is none of that name"
    raise ValueError(f"unknown extractor {name!r} ({hint}; known: {', '.join(names)}, and package.module:Class)")


def _custom(name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """Asks another process, because the class needs torch and running it is not for a command that only looks."""
    path = None if weights is None else str(_given(weights))
    arguments = {"name": name, "weights": path, "image_shape": image_shape}
    trial = "load and to give features of two images"
    return ExtractorSpec(**ask("taugrid.eval.features.custom:describe", arguments, f"the extractor {name}", trial))


def _given(weights: str) -> Path:
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"evaluate.weights: there is no file {path}")
    return path


def _weights_path(name: str, known: Known, weights: str | None) -> Path | None:
    if weights is not None:
        if name == DINOV2:
            raise ValueError(f"{name} takes no weights path in torch-fidelity: leave evaluate.weights out")
        return _given(weights)
    if known.cached_as is None:
        return None
    assert known.url is not None
    path = torch_hub_folder() / "checkpoints" / known.cached_as
    if name == DINOV2:
        _require_dinov2(path, known)
        return path
    if not path.is_file():
        _download(name, known.url, path)
    digest = file_sha256(path)
    if not digest.startswith(_announced(path.name)):
        raise ValueError(f"{path} has SHA-256 {digest[:12]}..., other than its name says: it is damaged, delete it")
    return path


def _download(name: str, url: str, path: Path) -> None:
    """`url` at `path`, whole and with the SHA-256 that the file's name announces, or not at all."""
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file, urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
                shutil.copyfileobj(answer, file)
            digest = file_sha256(temporary)
            if not digest.startswith(_announced(path.name)):
                raise OSError(f"what came has SHA-256 {digest[:12]}...")
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the weights of {name} are not here and can't be downloaded ({reason}): "
            f"get {url} elsewhere and put it at {path}, or give a file with evaluate.weights: PATH"
        ) from None


def _announced(file_name: str) -> str:
    """The start of the SHA-256 in a file's name, as in torch's hub: weights-6726825d.pth."""
    found = re.search(r"-([0-9a-f]{8,64})\.", file_name)
    assert found is not None, file_name
    return found[1]


def require_published(name: str, path: Path, digest: str) -> None:
    """ValueError if `path`, of SHA-256 `digest`, is a program (CLIP's TorchScript) other than the one published."""
    if name != CLIP:
        return
    published = _announced(str(KNOWN[CLIP].cached_as))
    if digest != published:
        raise ValueError(
            f"{name}: {path} has SHA-256 {digest[:12]}..., not {published[:12]}... as published; it would be run as a "
            f"program, so no other is opened: get {KNOWN[CLIP].url}"
        )


def _require_dinov2(path: Path, known: Known) -> None:
    """torch-fidelity runs DINOv2's code from torch's hub folder, so both the code and the weights must be there."""
    folder = DINOV2_HUB_REPOSITORY.replace("/", "_")
    code = [torch_hub_folder() / f"{folder}_{branch}" for branch in ("main", "master")]
    if not path.is_file() or not any(c.is_dir() for c in code):
        raise ValueError(
            f"{DINOV2} comes through torch's hub alone, for torch-fidelity takes no path for it: it needs its code in "
            f"{code[0]} and its weights in {path} (from {known.url}); run "
            f"torch.hub.load({DINOV2_HUB_REPOSITORY!r}, 'dinov2_vitb14') once where there is a network"
        )


def torch_hub_folder() -> Path:
    """The folder in which torch.hub keeps what it downloads, without importing torch to ask."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache, "torch")))
    return Path(home, "hub").expanduser()


def shipped_weights(name: str) -> Path:
    """The weights of digits-convnet or fashion-convnet of this installation."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"
