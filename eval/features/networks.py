"""torch-fidelity extractors of taugrid: small classifiers, EfficientNet-Lite0, a faster Inception, and the pixels."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch_fidelity
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from taugrid.eval.features.resolve import shipped_weights
from taugrid.registry.extractors import DIGITS_CONVNET, EXTRACTORS, FASHION_CONVNET, PIXELS

HALVED_AFTER = {DIGITS_CONVNET: (2, 3), FASHION_CONVNET: (1, 2)}
"""Which of a convnet's convolutions, counted from 1, are followed by an average over blocks of 2x2."""


class Convnet(nn.Module):
    """Three convolutions and two linear layers for the images of an extractor, given as `network_input`."""

    def __init__(self, extractor: str, dropout: float = 0.0) -> None:
        super().__init__()
        side = EXTRACTORS[extractor].image_side
        assert side is not None
        self.side = side
        layers: list[nn.Module] = []
        channels = 1
        for place, wider in enumerate((32, 64, 64), start=1):
            layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.SiLU()]
            if place in HALVED_AFTER[extractor]:
                layers.append(nn.AvgPool2d(2))
                side //= 2
            channels = wider
        layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * side**2, 64), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of (B, 1, side, side) float32 `images`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def network_input(images: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, H, W) as input of the networks: (B, 1, H, W) float32 in [-1, 1]."""
    # Whole levels by integer division: a mean of floats is exact only on some devices.
    if images.shape[1] == 3:
        images = (images.sum(1, keepdim=True, dtype=torch.int32) + 1).div(3, rounding_mode="floor")
    return images.float() / 127.5 - 1


class OfLayers(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """An extractor whose first layer is of features, and the last, if it has two, of logits."""

    LAYERS: ClassVar[tuple[str, ...]]

    def requested(self, *layers: Tensor) -> tuple[Tensor, ...]:
        """Of all `layers` those that were requested, in the order of the request."""
        return tuple(layers[self.LAYERS.index(layer)] for layer in self.features_list)

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        return cls.LAYERS

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """The layer that torch-fidelity reads for `isc`, `fid`, `kid` or `prc`."""
        return cls.LAYERS[-1 if metric == "isc" else 0]


class ConvnetExtractor(OfLayers):
    """A `Convnet` as a torch-fidelity extractor: layers `64` (B, 64) and `logits` (B, 10).

    Takes uint8 images (B, 1, side, side) or (B, 3, side, side), ValueError for others. It averages the channels of the
    latter and rounds to whole grey levels, so a grey picture saved as RGB has exactly the features of the grey one.
    `64` is the last layer before the classifier, after SiLU, which unlike ReLU leaves no feature constant."""

    LAYERS = ("64", "logits")
    shipped_as: ClassVar[str]  # the name under which its weights ship with taugrid

    def __init__(
        self,
        name: str | None = None,
        features_list: Sequence[str] = ("64", "logits"),
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__(name or self.shipped_as, list(features_list))
        if feature_extractor_internal_dtype not in (None, "float32"):
            raise ValueError(f"{self.name} computes in float32, not {feature_extractor_internal_dtype}")
        self.network = Convnet(self.shipped_as)
        self.side = self.network.side
        self.network.load_state_dict(load_file(feature_extractor_weights_path or shipped_weights(self.shipped_as)))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested layers of (B, 1 or 3, side, side) uint8 `images`, in the order of the request."""
        shapes = [(channels, self.side, self.side) for channels in (1, 3)]
        if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) not in shapes:
            found = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
            one, three = (f"(B, {channels}, {self.side}, {self.side})" for channels in (1, 3))
            raise ValueError(f"{self.name} takes uint8 images of shape {one} or {three}, not {found}")
        features = self.network.features(network_input(images))
        return self.requested(features, self.network.classifier(features))

    @staticmethod
    def can_be_compiled() -> bool:
        return False  # a network this small gains nothing from torch.compile


class DigitsConvnet(ConvnetExtractor):
    shipped_as = DIGITS_CONVNET


class FashionConvnet(ConvnetExtractor):
    """Classifies grey 28x28 pictures of clothes, as in Fashion-MNIST."""

    shipped_as = FASHION_CONVNET


class FoldedInception(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity has no types
    """torch-fidelity's Inception with its layers `2048` and `logits_unbiased`; features change only by rounding. Batch
    norms are folded into the convolutions before them, memory is laid out with channels last, and images are resized in
    two directions one after the other."""

    def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
        super().__init__(name, features_list, **settings)
        for block in self.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layers of `features_list` for uint8 images (B, 3, H, W)."""
        x = (resized(images.float(), self.INPUT_IMAGE_SIZE) - 128) / 128
        for name, layer in self.named_children():  # in their order
            if name != "fc":
                x = layer(x)
        features = x.flatten(1)
        layers = {"2048": features, "logits_unbiased": features.mm(self.fc.weight.T)}
        return tuple(layers[layer] for layer in self.features_list)


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) float32 as (B, C, side, side), by TensorFlow 1's bilinear interpolation. The bits are those
    of torch-fidelity's `interpolate_bilinear_2d_like_tensorflow1x`. That makes both neighbours of each row as wide as
    they will be, once for every row of the result; here each row of the images is widened once."""
    left, right, x = _neighbours(images.shape[3], side, images.device)
    from_left = images[..., left]
    wide = from_left + (images[..., right] - from_left) * x
    above, below, y = _neighbours(images.shape[2], side, images.device)
    from_above = wide[:, :, above]
    return from_above + (wide[:, :, below] - from_above) * y[:, None]


def _neighbours(size: int, resized_to: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel of the result: the pixels before and after it, and how far it is from the one before."""
    place = torch.arange(resized_to, dtype=torch.float32, device=device) * (size / resized_to)
    before = place.long()
    return before, (before + 1).clamp_max(size - 1), place - before


class ImagenetLite0(OfLayers):
    """EfficientNet-Lite0, a classifier of ImageNet's 1,000 classes: layers `1280` (B, 1280) and `logits` (B, 1000).

    It takes uint8 images (B, 3, H, W). As for its training (lite/efficientnet_lite_builder.py and preprocessing.py in
    tensorflow/tpu), they are resized to 224x224 by bicubic interpolation, and x becomes (x - 127) / 128. Unlike there,
    the interpolation has antialiasing, as PIL's, and nothing is cropped. (The README of the PyTorch package shows the
    means and deviations of another network.) `1280` is the mean of the last convolution over all places, after ReLU6.
    """

    LAYERS = ("1280", "logits")
    SIDE: ClassVar[int] = 224

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        from efficientnet_lite_pytorch import EfficientNet  # the extra `imagenet`

        super().__init__(name, features_list)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(feature_extractor_weights_path, "cpu", weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layers of `features_list` for uint8 images (B, 3, H, W)."""
        size = (self.SIDE, self.SIDE)
        x = nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 255)
        features = self.network.extract_features((x - 127) / 128).mean((2, 3))
        return self.requested(features, self.network._fc(features))


class Pixels(OfLayers):
    """The grey levels as x / 127.5 - 1, flattened in C order: no weights, no classes."""

    LAYERS = (PIXELS,)

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """(B, C * H * W) float32 of uint8 `images` (B, C, H, W)."""
        return (images.flatten(1).float() / 127.5 - 1,)
