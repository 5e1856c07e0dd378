"""Feature extractors: images in, features and logits out. torch-fidelity's, taugrid's small ones, and custom ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from taugrid.eval.features.convnets import CONVNETS
from taugrid.eval.features.custom import find_class, layers_read, source_sha256
from taugrid.eval.features.names import (
    DINOV2,
    INCEPTION,
    PIXELS,
    ExtractorSpec,
    require_published,
    shipped_weights,
)
from taugrid.hashing import file_sha256

UNPICKLED_BY_TORCH_FIDELITY = (INCEPTION, "vgg16")
"""Extractors whose files torch-fidelity opens with `weights_only=False`, which runs whatever code a file holds."""

INCEPTION_AT_ONCE = 8
"""Images that Inception gets at once on a CPU, whose caches larger batches overflow: 8 take 129 ms each where 64 take
145 (one core, channels last), and 250 would take 1.4 GB for one layer."""


class Extraction(NamedTuple):
    """What an extractor says of a batch, in host memory."""

    features: Tensor
    """(B, d) float32."""
    logits: Tensor | None
    """(B, k) float32; None where the extractor is no classifier."""


def load(spec: ExtractorSpec, device: str) -> Callable[[Tensor], Extraction]:
    """The extractor of `spec` on `device`: a function from uint8 images (B, C, H, W) to their `Extraction`.

    `pixels` gives the grey levels as x / 127.5 - 1, flattened in C order. For all but taugrid's own convnets one grey
    channel is repeated to three, as reading a grey PNG as RGB does. torch-fidelity's Inception is `prepared`.

    Raises:
        ValueError: one line, where the file of weights is missing here, is another than the one that was resolved,
            would run code, or doesn't fit the extractor; or where a custom class is not the one that was resolved.
    """
    if spec.name == PIXELS:
        return lambda images: Extraction(images.flatten(1).float() / 127.5 - 1, None)
    layers = layers_read(spec.feature_layer, spec.logits_layer)
    module = (_custom if spec.source_sha256 else _known)(spec, layers).requires_grad_(False).eval()
    if spec.name == INCEPTION:
        prepare(module)
    module.to(device)
    on_gpu = torch.device(device).type == "cuda"
    at_once = INCEPTION_AT_ONCE if spec.name == INCEPTION and not on_gpu else None

    @torch.inference_mode()
    def extract(images: Tensor) -> Extraction:
        if images.shape[1] == 1 and spec.name not in CONVNETS:
            images = images.expand(-1, 3, -1, -1)
        if on_gpu:
            images = images.pin_memory()
        chunks = torch.split(images.to(device, non_blocking=True), at_once or len(images))
        outputs = zip(*(module(chunk) for chunk in chunks), strict=True)
        by_layer = {layer: torch.cat(parts).float().cpu() for layer, parts in zip(layers, outputs, strict=True)}
        return Extraction(by_layer[spec.feature_layer], by_layer[spec.logits_layer] if spec.logits_layer else None)

    return extract


def prepare(inception: nn.Module) -> None:
    """Makes torch-fidelity's Inception faster in place: batch norms go into the convolutions before them, and memory is
    laid out with channels last. Features move by rounding alone."""
    for block in inception.modules():
        if isinstance(block, BasicConv2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    inception.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as documented; torch's types lag


def _custom(spec: ExtractorSpec, layers: list[str]) -> Any:
    extractor_class = find_class(spec.name)
    if source_sha256(extractor_class) != spec.source_sha256:
        raise ValueError(f"{spec.name} has other source code on this machine than where the run was started")
    if spec.weights_path is not None:
        _check_weights(spec, Path(spec.weights_path))
    return extractor_class(spec.name, layers, feature_extractor_weights_path=spec.weights_path, verbose=False)


def _known(spec: ExtractorSpec, layers: list[str]) -> Any:
    path = shipped_weights(spec.name) if spec.weights_path is None else Path(spec.weights_path)
    _check_weights(spec, path)
    extractor_class = CONVNETS.get(spec.name) or FEATURE_EXTRACTORS_REGISTRY[spec.name]
    path_taken = None if spec.name == DINOV2 else str(path)  # torch-fidelity finds DINOv2's in torch's hub folder
    try:
        return extractor_class(spec.name, layers, feature_extractor_weights_path=path_taken, verbose=False)
    except (RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds no weights of {spec.name}: {reason}") from error


def _check_weights(spec: ExtractorSpec, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{spec.name}: there is no file {path} on this machine; put it where every worker sees it")
    found = file_sha256(path)
    if found != spec.weights_sha256:
        raise ValueError(
            f"{spec.name}: {path} has SHA-256 {found[:12]}... here, where {spec.weights_sha256[:12]}... was resolved"
        )
    require_published(spec.name, path, found)
    if spec.name in UNPICKLED_BY_TORCH_FIDELITY:
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what is no such file fails in any way: IndexError, KeyError, ...
            raise ValueError(
                f"{spec.name}: {path} is no file of plain tensors, and opening any other could run code"
            ) from error
