"""Loads feature extractors, which turn images into features and logits: torch-fidelity's, taugrid's and custom ones.

A custom one (`evaluate.extractor: package.module:Class`) is described by a trial run, which happens in another process
because the driver must not import torch (`eval.features.resolve`).
"""

import math
import pkgutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_fidelity
from safetensors import SafetensorError
from torch import Tensor

from taugrid.errors import CustomCodeError, WorkerRefusal, joined_lines
from taugrid.eval.features.resolve import MissingWeights, require_published, shipped_weights
from taugrid.registry.extractors import EXTRACTORS, ExtractorSpec, HubWeights, KnownExtractor
from taugrid.words import this_node
from taugrid.workers.accelerator.arithmetic import require
from taugrid.workers.accelerator.transfer import Transfer, to_device, to_host
from taugrid.workers.content import require_same, unchanged, verified_copy
from taugrid.workers.custom.describe import find
from taugrid.workers.custom.source import NOT_USER_PACKAGES, SourceCode, identity_of_code, source_of, tensors_sha256

TRIED_IMAGES = 2  # how many images a custom extractor is tried on

LOGITS = "logits"
"""A custom `isc` layer counts as logits if its name contains this. torch-fidelity requires an `isc` layer of every
extractor, so having one proves nothing, and an Inception Score of plain features is meaningless."""


@dataclass
class Extraction(Transfer):
    """An extractor's output for a batch, in host memory."""

    features: Tensor  # (B, d) float32
    logits: Tensor | None  # (B, k) float32; None if the extractor is not a classifier


def load(spec: ExtractorSpec, device: str) -> Callable[[Tensor], Extraction]:
    """The extractor of `spec` on `device`: a function from uint8 images (B, C, H, W) to their `Extraction`.

    It waits for no GPU, so the transfer that it returns may not be done. On a CPU it is.

    Raises `WorkerRefusal` if this node has another file of weights than the resolved one, or none, or if a custom
    class has other source code or loads other weights; `WorkerRefusal` if the device lacks the extractor's precision;
    ValueError if the file of weights could run code or doesn't fit the extractor."""
    layers = _layers(spec.feature_layer, spec.logits_layer)
    known = None if spec.source_sha256 else EXTRACTORS[spec.name]
    module = _custom(spec, layers) if known is None else _known(known, spec, layers)
    module.requires_grad_(False).eval()
    if known is not None and known.on_host:
        device = "cpu"
    module.to(device)
    require(spec.precision, device, device, section="evaluate")
    kind = torch.device(device).type
    at_once = known.at_once_on_cpu if known is not None and kind == "cpu" else None
    takes_grey = known is not None and known.takes_grey

    @torch.inference_mode()
    def extract(images: Tensor) -> Extraction:
        batch = as_input(images, device, takes_grey)
        chunks = [batch] if at_once is None else batch.tensor_split(math.ceil(len(batch) / at_once))
        with torch.autocast(kind, torch.bfloat16, enabled=spec.precision == "bf16"):
            outputs = zip(*(module(chunk) for chunk in chunks), strict=True)
        arrays, copied = to_host([torch.cat(parts).float() for parts in outputs])
        by_layer = dict(zip(layers, arrays, strict=True))
        logits = by_layer[spec.logits_layer] if spec.logits_layer else None
        return Extraction(by_layer[spec.feature_layer], logits, copied=copied)

    return extract


def as_input(images: Tensor, device: str, takes_grey: bool) -> Tensor:
    """`images` (B, C, H, W) on `device`; grey ones with three equal channels unless the extractor `takes_grey`."""
    images = to_device(images, device)  # first: a view with repeated channels can't be pinned
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
    try:
        path = shipped_weights(spec.name) if spec.weights_path is None else Path(spec.weights_path)
    except MissingWeights as error:
        raise WorkerRefusal(f"node {this_node()}: {error}") from None
    require_published(known, path, spec.weights_sha256)
    try:
        if isinstance(known.weights, HubWeights):  # torch-fidelity itself finds weights that come through torch's hub
            with unchanged(path, spec.weights_sha256):
                return extractor_class(spec.name, layers, verbose=False)
        with verified_copy(path, spec.weights_sha256) as copy:
            if known.weights.is_pickle:
                try:
                    torch.load(copy, map_location="cpu", weights_only=True)
                except Exception as error:  # torch raises anything for another kind of file: IndexError, KeyError, ...
                    others = "must be a file of plain tensors, because others could run code"
                    raise ValueError(f"{spec.name}: {path} {others}") from error
            return extractor_class(spec.name, layers, feature_extractor_weights_path=str(copy), verbose=False)
    except (RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = joined_lines(error)[:200]
        raise ValueError(f"{path} does not hold weights of {spec.name}: {reason}") from error


def describe(name: str, weights: str | None, image_shape: tuple[int, int, int]) -> ExtractorSpec:
    """The extractor `name` (`package.module:Class`), tried on noise of `image_shape` (C, H, W).

    FID, KID and precision/recall are computed from one layer, the class's default for `fid`. Grey images are passed as
    RGB, as in torch-fidelity. Without `weights`, `weights_sha256` covers everything that was loaded for a forward pass.
    A worker has other files loaded, so it checks the `class_source` and the tensors of the new instance.

    Raises `CustomCodeError` if it is not a `FeatureExtractorBase`, returns anything but a float (B, d) for each layer,
    or its default layers for `fid`, `kid` and `prc` differ."""
    extractor_class = find_class(name)
    defaults: dict[str, str | None] = dict.fromkeys(("fid", "kid", "prc", "isc"))
    for metric in defaults:
        with suppress(KeyError):  # the class has none
            defaults[metric] = extractor_class.get_default_feature_layer_for_metric(metric)
    feature_layer, logits_layer = defaults["fid"], defaults["isc"]
    if feature_layer is None or {defaults["kid"], defaults["prc"]} - {feature_layer, None}:
        raise CustomCodeError(f"the default layers of fid, kid and prc must be the same, not {defaults}")
    if logits_layer is not None and LOGITS not in logits_layer:
        logits_layer = None
    layers = _layers(feature_layer, logits_layer)
    module = extractor_class(name, layers, feature_extractor_weights_path=weights, verbose=False)
    tensors = tensors_sha256(module.state_dict())
    seeded = torch.Generator().manual_seed(0)  # a module may keep its input, which should not change its identity
    noise = torch.randint(256, (TRIED_IMAGES, 3, *image_shape[1:]), dtype=torch.uint8, generator=seeded)
    with torch.inference_mode():
        outputs = module.eval()(noise)
    if not isinstance(outputs, tuple) or len(outputs) != len(layers) or not all(map(_is_batch, outputs)):
        shapes = [getattr(output, "shape", type(output).__name__) for output in outputs]
        raise CustomCodeError(f"forward must return a tuple of one float (B, d) for each of {layers}, not {shapes}")
    widths = {layer: output.shape[1] for layer, output in zip(layers, outputs, strict=True)}
    return ExtractorSpec(
        name=name,
        weights_path=weights,
        feature_layer=feature_layer,
        logits_layer=logits_layer,
        dimensions=widths[feature_layer],
        classes=widths[logits_layer] if logits_layer else None,
        **identity_of_code(class_source(extractor_class), tensors, weights),
    )


def _layers(feature_layer: str, logits_layer: str | None) -> list[str]:
    """The layers to request from an extractor: features and, if any, logits. One layer may be both."""
    return [feature_layer] if logits_layer in (None, feature_layer) else [feature_layer, str(logits_layer)]


def find_class(name: str) -> Any:
    """The class that `package.module:Class` names; CustomCodeError if it is not a `FeatureExtractorBase`."""
    extractor = find(name)
    if not (isinstance(extractor, type) and issubclass(extractor, torch_fidelity.FeatureExtractorBase)):
        raise CustomCodeError(f"{name} must be a subclass of torch_fidelity.FeatureExtractorBase")
    return extractor


def class_source(extractor_class: type) -> SourceCode:
    """The source of the class's module, those of its bases, and all that these import."""
    modules = {base.__module__ for base in extractor_class.__mro__}
    return source_of({m for m in modules if m.partition(".")[0] not in NOT_USER_PACKAGES})


def code_sha256(spec: ExtractorSpec) -> str:
    """SHA-256 of the code that makes features of images: the extractor's, shipped or custom, and this module's."""
    extractor = spec.name if spec.source_sha256 else EXTRACTORS[spec.name].extractor_class
    modules = {__name__, *(base.__module__ for base in pkgutil.resolve_name(extractor).__mro__)}
    return source_of({m for m in modules if m.partition(".")[0] not in {*sys.stdlib_module_names, "torch"}}).sha256


def _is_batch(output: object) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and output.is_floating_point()
        and output.dim() == 2
        and len(output) == TRIED_IMAGES
        and output.shape[1] > 0
    )
