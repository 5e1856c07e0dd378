"""Feature extractors: images in, features and logits out. torch-fidelity's own, and a small one for 8x8 digits."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_fidelity
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from eval.extractor_names import DIGITS_CONVNET, DINOV2, INCEPTION, PIXELS, ExtractorSpec, sha256, shipped_weights

UNPICKLED_BY_TORCH_FIDELITY = (INCEPTION, "vgg16")
"""Extractors whose files torch-fidelity opens with `weights_only=False`, which runs whatever code a file holds."""


class Extraction(NamedTuple):
    """What an extractor says of a batch, in host memory."""

    features: Tensor
    """(B, d) float32."""
    logits: Tensor | None
    """(B, k) float32; None where the extractor is no classifier."""


class DigitsConvnet(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """A classifier of grey 8x8 digits, as a torch-fidelity extractor: layers `64` (B, 64) and `logits` (B, 10).

    Takes uint8 images (B, 1, 8, 8), or (B, 3, 8, 8), of which it sees the channels' mean rounded to a whole grey level:
    a grey picture that was saved as RGB gives exactly the features of the grey one. `64` is the last layer before the
    classifier, after SiLU, which unlike ReLU leaves no feature constant.

    Raises:
        ValueError: for images of another shape or dtype, for an unknown layer, or weights that don't fit.
    """

    def __init__(
        self,
        name: str = DIGITS_CONVNET,
        features_list: Sequence[str] = ("64", "logits"),
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name, list(features_list))
        if feature_extractor_internal_dtype not in (None, "float32"):
            raise ValueError(f"{name} computes in float32, not {feature_extractor_internal_dtype}")
        self.network = DigitsNetwork()
        self.network.load_state_dict(load_file(feature_extractor_weights_path or shipped_weights()))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested layers of (B, 1 or 3, 8, 8) uint8 `images`, in the order of the request."""
        if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) not in ((1, 8, 8), (3, 8, 8)):
            raise ValueError(
                f"{self.name} takes uint8 images of shape (B, 1, 8, 8) or (B, 3, 8, 8), "
                f"not {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
            )
        features = self.network.features(network_input(images))
        layers = {"64": features, "logits": self.network.classifier(features)}
        return tuple(layers[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The names of the layers."""
        return "64", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer that torch-fidelity reads for `isc`, `fid`, `kid` or `prc`."""
        return {"isc": "logits", "fid": "64", "kid": "64", "prc": "64"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """False: a network this small gains nothing from torch.compile."""
        return False


def network_input(images: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, 8, 8) as the network takes them: (B, 1, 8, 8) float32 in [-1, 1]."""
    # Whole levels by integer division: a mean of floats is exact on some devices only.
    if images.shape[1] == 3:
        images = (images.sum(1, keepdim=True, dtype=torch.int32) + 1).div(3, rounding_mode="floor")
    return images.float() / 127.5 - 1


class DigitsNetwork(nn.Module):
    """The network of digits-convnet: three convolutions and two linear layers, on what `network_input` gives."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(256, 64),
            nn.SiLU(),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def load(spec: ExtractorSpec, device: str) -> Callable[[Tensor], Extraction]:
    """The extractor of `spec` on `device`: a function from uint8 images (B, C, H, W) to their `Extraction`.

    `pixels` gives the grey levels as x / 127.5 - 1, flattened in C order. For torch-fidelity's extractors one grey
    channel is repeated to three, as reading a grey PNG as RGB does.

    Raises:
        ValueError: one line, where the file of weights is missing here, is another than the one that was resolved,
            would run code, or doesn't fit the extractor.
    """
    if spec.name == PIXELS:
        return lambda images: Extraction(images.flatten(1).float() / 127.5 - 1, None)
    layers = [spec.feature_layer] + ([spec.logits_layer] if spec.logits_layer else [])
    path = shipped_weights() if spec.weights_path is None else Path(spec.weights_path)
    _check_weights(spec, path)
    extractor_class = DigitsConvnet if spec.name == DIGITS_CONVNET else FEATURE_EXTRACTORS_REGISTRY[spec.name]
    path_taken = None if spec.name == DINOV2 else str(path)  # torch-fidelity finds DINOv2's in torch's hub folder
    try:
        module = extractor_class(spec.name, layers, feature_extractor_weights_path=path_taken, verbose=False)
    except (RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds no weights of {spec.name}: {reason}") from error
    module.requires_grad_(False).eval().to(device)

    def extract(images: Tensor) -> Extraction:
        if images.shape[1] == 1 and spec.name != DIGITS_CONVNET:
            images = images.expand(-1, 3, -1, -1)
        with torch.no_grad():
            outputs = [layer.cpu() for layer in module(images.to(device))]
        return Extraction(outputs[0], outputs[1] if spec.logits_layer else None)

    return extract


def _check_weights(spec: ExtractorSpec, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{spec.name}: there is no file {path} on this machine; put it where every worker sees it")
    found = sha256(path)
    if found != spec.weights_sha256:
        raise ValueError(
            f"{spec.name}: {path} has SHA-256 {found[:12]}... here, where {spec.weights_sha256[:12]}... was resolved"
        )
    if spec.name in UNPICKLED_BY_TORCH_FIDELITY:
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{spec.name}: {path} is no file of plain tensors, and opening any other could run code"
            ) from error
