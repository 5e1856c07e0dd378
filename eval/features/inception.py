"""torch-fidelity's Inception, faster."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3


class FoldedInception(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity has no types
    """torch-fidelity's Inception with its layers `2048` and `logits_unbiased`; features change only by rounding.

    Batch norms are folded into the convolutions before them, memory is laid out with channels last, and images are
    resized in two directions one after the other.
    """

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
    """Images (B, C, H, W) float32 as (B, C, side, side), by TensorFlow 1's bilinear interpolation.

    The bits are those of torch-fidelity's `interpolate_bilinear_2d_like_tensorflow1x`. That makes both neighbours of
    each row as wide as they will be, once for every row of the result; here each row of the images is widened once.
    """
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
