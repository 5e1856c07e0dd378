"""Which extractor a config means. Imports no torch: the driver asks before there is any device."""

import difflib
import hashlib
import math
from pathlib import Path

from taugrid.eval.features.weight_files import find_weights, given_weights, require_published, shipped_weights
from taugrid.hashing import file_sha256
from taugrid.registry.datasets import DATASETS
from taugrid.registry.extractors import EXTRACTORS, INCEPTION, ExtractorSpec, KnownExtractor, ShippedWeights
from taugrid.workers.custom.describe import ask


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
    known = _known(chosen)
    side = known.image_side
    if side is not None and image_shape not in ((1, side, side), (3, side, side)):
        raise ValueError(f"{chosen} takes images of {side}x{side} pixels, grey or RGB, not (C, H, W) = {image_shape}")
    path = find_weights(known, weights)
    return ExtractorSpec(
        name=chosen,
        weights_path=None if path is None else str(path),
        weights_sha256=_weights_sha256(known, path),
        feature_layer=known.feature_layer,
        logits_layer=known.logits_layer,
        dimensions=math.prod(image_shape) if known.dimensions is None else known.dimensions,
        classes=known.classes,
    )


def _weights_sha256(extractor: KnownExtractor, path: Path | None) -> str:
    """Of the file; of nothing, if the extractor has no weights."""
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
    hint = f"did you mean {near[0]!r}?" if near else "there is none of that name"
    raise ValueError(f"unknown extractor {name!r} ({hint}; known: {', '.join(EXTRACTORS)}, and package.module:Class)")


def _custom(name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """Asks another process, because the class needs torch and running it is not for a command that only looks."""
    path = None if weights is None else str(given_weights(weights))
    arguments = {"name": name, "weights": path, "image_shape": image_shape}
    trial = "load and to give features of two images"
    return ExtractorSpec(**ask("taugrid.eval.features.custom:describe", arguments, f"the extractor {name}", trial))
