"""The pixels themselves as features, for data where distances between pixels are meaningful."""

from typing import Any

import torch_fidelity
from torch import Tensor

from taugrid.registry.extractors import PIXELS


class Pixels(torch_fidelity.FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """The grey levels as x / 127.5 - 1, flattened in C order: no weights, no classes."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """(B, C * H * W) float32 of uint8 `images` (B, C, H, W)."""
        return (images.flatten(1).float() / 127.5 - 1,)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (PIXELS,)
