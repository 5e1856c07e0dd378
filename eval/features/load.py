"""Loads feature extractors, which turn images into features and logits: torch-fidelity's, taugrid's and custom ones."""

import math
import pkgutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from taugrid.eval.features.custom import class_source, find_class, layers_read
from taugrid.eval.features.resolve import require_published, shipped_weights
from taugrid.registry.extractors import EXTRACTORS, ExtractorSpec, HubWeights, KnownExtractor, PublishedWeights
from taugrid.workers.accelerator.transfer import Transfer, to_device, to_host
from taugrid.workers.content import require_same, unchanged, verified_copy
from taugrid.workers.custom.source import tensors_sha256


@dataclass
class Extraction(Transfer):
    """An extractor's output for a batch, in host memory."""

    features: Tensor
    """(B, d) float32."""
    logits: Tensor | None
    """(B, k) float32; None if the extractor is not a classifier."""


def load(spec: ExtractorSpec, device: str) -> Callable[[Tensor], Extraction]:
    """The extractor of `spec` on `device`: a function from uint8 images (B, C, H, W) to their `Extraction`.

    It waits for no GPU, so the transfer that it returns may not be done. On a CPU it is.

    Raises:
        OtherContent: if this node has another file of weights than the resolved one, or none; or if a custom class
            has other source code or loads other weights.
        ValueError: if the file of weights could run code or doesn't fit the extractor.
    """
    layers = layers_read(spec.feature_layer, spec.logits_layer)
    known = None if spec.source_sha256 else EXTRACTORS[spec.name]
    module = _custom(spec, layers) if known is None else _known(known, spec, layers)
    module.requires_grad_(False).eval()
    if known is not None and known.on_host:
        device = "cpu"
    module.to(device)
    kind = torch.device(device).type
    at_once = known.at_once_on_cpu if known is not None and kind == "cpu" else None
    takes_grey = known is not None and known.takes_grey

    @torch.inference_mode()
    def extract(images: Tensor) -> Extraction:
        batch = as_input(images, device, takes_grey)
        chunks = [batch] if at_once is None else batch.tensor_split(math.ceil(len(batch) / at_once))
        with torch.autocast(kind, torch.bfloat16, enabled=spec.precision == "bf16"):
            outputs = zip(*(module(chunk) for chunk in chunks), strict=True)
        found, copied = to_host([torch.cat(parts).float() for parts in outputs])
        by_layer = dict(zip(layers, found, strict=True))
        logits = by_layer[spec.logits_layer] if spec.logits_layer else None
        return Extraction(by_layer[spec.feature_layer], logits, copied=copied)

    return extract


def as_input(images: Tensor, device: str, takes_grey: bool) -> Tensor:
    """`images` (B, C, H, W) on `device`; grey ones with three equal channels unless the extractor `takes_grey`.

    Channels are repeated there: a view with repeated channels can't be pinned.
    """
    images = to_device(images, device)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 and not takes_grey else images


def _custom(spec: ExtractorSpec, layers: list[str]) -> Any:
    extractor_class = find_class(spec.name)
    class_source(extractor_class).require(str(spec.source_sha256), spec.files, spec.name)
    path = spec.weights_path
    with nullcontext() if path is None else unchanged(Path(path), spec.weights_sha256):  # the class opens it itself
        module = extractor_class(spec.name, layers, feature_extractor_weights_path=path, verbose=False)
    if spec.tensors_sha256 is not None:
        require_same(f"{spec.name}, by its weights,", tensors_sha256(module.state_dict()), spec.tensors_sha256)
    return module


def _known(known: KnownExtractor, spec: ExtractorSpec, layers: list[str]) -> Any:
    extractor_class: Any = pkgutil.resolve_name(known.extractor_class)
    if known.weights is None:
        return extractor_class(spec.name, layers)
    path = shipped_weights(spec.name) if spec.weights_path is None else Path(spec.weights_path)
    require_published(known, path, spec.weights_sha256)
    try:
        if isinstance(known.weights, HubWeights):  # torch-fidelity itself finds weights that come through torch's hub
            with unchanged(path, spec.weights_sha256):
                return extractor_class(spec.name, layers, verbose=False)
        with verified_copy(path, spec.weights_sha256) as copy:
            if isinstance(known.weights, PublishedWeights) and known.weights.is_pickle:
                _require_plain_tensors(spec.name, path, copy)
            return extractor_class(spec.name, layers, feature_extractor_weights_path=str(copy), verbose=False)
    except (RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold weights of {spec.name}: {reason}") from error


def _require_plain_tensors(name: str, path: Path, copy: Path) -> None:
    """ValueError if opening `copy`, a copy of `path`, could run code."""
    try:
        torch.load(copy, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything for another kind of file: IndexError, KeyError, ...
        raise ValueError(f"{name}: {path} must be a file of plain tensors, because others could run code") from error
