"""Finds the extractor that a config means. Imports no torch, because the driver calls it before there is a device."""

import difflib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taugrid.eval.features.weight_files import find_weights, given_weights, require_published, shipped_weights
from taugrid.hashing import SourceFile, file_sha256
from taugrid.registry.datasets import DATASETS
from taugrid.registry.extractors import (
    EXTRACTORS,
    INCEPTION,
    ExtractorSpec,
    FeaturePrecision,
    KnownExtractor,
    ShippedWeights,
)
from taugrid.workers.custom.describe import ask


def chosen(name: str | None, data_name: str) -> str:
    """The name of the extractor that `evaluate.extractor` means for the data set `data_name`.

    `name` None chooses the data set's default (registry/datasets.py), or torch-fidelity's Inception if it has none.
    """
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

    `package.module:Class` is a custom `torch_fidelity.FeatureExtractorBase`, importable from the current folder or
    from Python's path; another process finds out its layers. `weights` None means the file that ships with taugrid, or
    torch-fidelity's file in torch's hub folder, with `download` fetched if it is missing; a custom class must find its
    weights itself. `image_shape` is (channels, height, width).

    Raises:
        MissingWeights: if a file of weights is missing or can't be downloaded.
        ValueError: for an unknown name, images of a size that the extractor does not take, a precision of an extractor
            that has no network, a file of weights that is not the published one, or a class that can't be used.
    """
    extractor = chosen(name, data_name)
    if ":" in extractor:
        return replace(_custom(extractor, weights, image_shape), precision=precision)
    known = _known(extractor)
    if known.weights is None and precision != "float32":
        raise ValueError(f"evaluate.precision is {precision}, but {extractor} has no network; remove the key")
    side = known.image_side
    if side is not None and image_shape not in ((1, side, side), (3, side, side)):
        raise ValueError(
            f"{extractor} takes images of {side}x{side} pixels, grey or RGB, not (C, H, W) = {image_shape}"
        )
    path = find_weights(known, weights, download)
    return ExtractorSpec(
        name=extractor,
        weights_path=None if path is None else str(path),
        weights_sha256=_weights_sha256(known, path),
        feature_layer=known.feature_layer,
        logits_layer=known.logits_layer,
        dimensions=math.prod(image_shape) if known.dimensions is None else known.dimensions,
        classes=known.classes,
        precision=precision,
    )


def _weights_sha256(extractor: KnownExtractor, path: Path | None) -> str:
    """SHA-256 of the file, or of nothing if the extractor has no weights."""
    if path is not None:
        digest = file_sha256(path)
        require_published(extractor, path, digest)
        return digest
    if isinstance(extractor.weights, ShippedWeights):
        return file_sha256(shipped_weights(extractor.name))
    return hashlib.sha256(b"").hexdigest()


def _known(name: str) -> KnownExtractor:
    if name in EXTRACTORS:
        return EXTRACTORS[name]
    near = difflib.get_close_matches(name, EXTRACTORS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there is none by that name"
    raise ValueError(f"unknown extractor {name!r} ({hint}; known: {', '.join(EXTRACTORS)}, and package.module:Class)")


def _custom(name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """Describe a custom extractor in another process, because the class needs torch."""
    path = None if weights is None else str(given_weights(weights))
    arguments = {"name": name, "weights": path, "image_shape": image_shape}
    trial = "load and to give features of two images"
    return restored(ask("taugrid.eval.features.custom:describe", arguments, f"the extractor {name}", trial))


def restored(fields: Mapping[str, Any]) -> ExtractorSpec:
    """The description of a custom extractor from JSON, where tuples are lists."""
    files = tuple(SourceFile(*file) for file in fields["files"])
    return ExtractorSpec(**{**fields, "files": files, "by_bytes": tuple(fields["by_bytes"])})
